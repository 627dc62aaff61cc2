"""Tokenizers: a hub name or folder comes in; a loaded tokenizer, a fast encoder that agrees with it, and its fertility go out."""
