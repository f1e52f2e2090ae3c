"""Measurements of the library itself: what it costs, whom it accuses, what it reads."""
