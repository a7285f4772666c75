"""Data sets: which files they are, how they are read, and what is kept of them on this machine."""
