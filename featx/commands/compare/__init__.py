"""Commands that compare images by their features."""
