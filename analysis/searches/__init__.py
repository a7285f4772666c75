"""Tables of a search: its best points, what each axis matters, whether it beats another sweep."""
