"""The wiring of each method: what it prepares over a whole batch, and its loss on a microbatch."""
