"""Rows of a block store in, model inputs and a loss out; texts in, bits per byte out. Pure functions, no state."""
