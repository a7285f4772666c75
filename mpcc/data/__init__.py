"""Data sets: which files they consist of, how they are read, and what is cached of them."""
