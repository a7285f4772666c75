"""Algorithm 1, the state that it changes, and one trial from its start to its result."""
