"""The model of the paper: prior, networks and the terms of the objective."""
