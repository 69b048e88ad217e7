"""What a network sees: which pixels decide, what its units look for, what changes when an image does."""
