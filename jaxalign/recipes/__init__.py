"""A whole run as a function: one module for each method."""
