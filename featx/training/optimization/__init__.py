"""What a step does to the weights."""
