"""Estimates, intervals, tests and power from arrays; independent of trials and tables."""
