"""Processes that decode images."""
