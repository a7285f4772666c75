"""Laid-out tables as text, Markdown, LaTeX, CSV and HTML; figures."""
