"""Base model and corpus of the new language come in; the same model with more pieces in its tokenizer, more rows and a proof goes out."""
