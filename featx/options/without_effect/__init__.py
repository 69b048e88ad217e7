"""Options that have no effect together, or in a given run: a table of them, and what is said."""
