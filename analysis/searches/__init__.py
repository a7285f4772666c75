"""Tables of a search: its best points, importance of axes, comparison with another sweep."""
