"""Heads at a C that is given or chosen: folds, scores, weights of classes, and the search."""
