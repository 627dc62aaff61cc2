"""A model and the pieces that it is to have come in; the model with a row for each, started by the chosen or the best rule, goes out."""
