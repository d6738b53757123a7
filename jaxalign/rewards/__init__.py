"""Where scores come from: reward functions of text, and ensembles of reward heads."""
