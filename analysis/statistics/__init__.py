"""Arrays in; estimates, intervals, tests and power out. Knows nothing of trials."""
