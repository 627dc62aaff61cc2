"""A model at work: texts in; bits per byte, filled masks, and prompts read as the objective has it out."""
