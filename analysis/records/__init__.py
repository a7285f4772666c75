"""Folders or an MLflow server in, one checked DataFrame of trials out."""
