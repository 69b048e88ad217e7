"""The batched second-order solver: every class, value of C and fold is a row of the same matrix products."""
