"""The features file: its schema, a writer that survives kills, and a reader that maps without copying."""
