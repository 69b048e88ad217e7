"""What features say about images: which are alike, and how they lie."""
