"""zhlm teaches an existing language model a language that it does not know, on a Ray cluster."""
