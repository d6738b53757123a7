"""Records of preferences, prompt trees made from them, and batches of packed trees."""
