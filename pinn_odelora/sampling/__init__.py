"""Which points a step has, and how many."""
