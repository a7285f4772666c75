"""The folder of a sweep: its plan, the states of its trials, its lock, and its remote copy."""
