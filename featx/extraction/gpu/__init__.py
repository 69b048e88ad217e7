"""Blocks that follow each other through a GPU, and layers that are kept there."""
