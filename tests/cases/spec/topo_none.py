"""Nothing that could be a topology."""
