"""Rows of a block store in, model inputs and a loss out. Pure functions, no state."""
