"""Networks that others trained, as trees of arrays, and how good they are."""
