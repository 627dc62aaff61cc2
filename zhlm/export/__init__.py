"""The newest checkpoint in, adapter/ and merged/ out: plain Hugging Face folders, reloaded and compared before they count."""
