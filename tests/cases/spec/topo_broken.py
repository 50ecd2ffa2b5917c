"""A file that fails."""

raise RuntimeError("on purpose")
