"""Images: a source becomes an ordered manifest, and every file in it becomes pixels or a stated failure."""
