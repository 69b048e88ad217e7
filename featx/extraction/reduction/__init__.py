"""Fewer values for each image: layers projected before they are written."""
