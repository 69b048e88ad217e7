"""Outputs on disk: is this one finished, is it mine, can it be resumed? See `artifact`."""
