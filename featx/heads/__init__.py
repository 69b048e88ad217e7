"""Linear heads on features: splitting, fitting, choosing C, measuring, saving."""
