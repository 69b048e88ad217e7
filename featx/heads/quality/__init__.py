"""How good heads are: accuracies, and what else is said of scores."""
