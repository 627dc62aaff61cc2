"""The block store: packed token blocks in, the same blocks out in one order that no failure and no number of workers changes."""
