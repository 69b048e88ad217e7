"""A network as a graph of operations: their names, what they produce, and what is kept of them."""
