"""The plain heart of a Batcher: what runs in a step, whose turn it is, and what comes of it."""
