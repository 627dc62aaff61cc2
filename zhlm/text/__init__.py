"""Rules on text: a string comes in; the cleaned string, or the named reason to reject it, goes out."""
