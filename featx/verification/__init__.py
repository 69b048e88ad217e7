"""Is what a file says true? Heads and fine-tuned networks."""
