"""Measures what was gained and what was forgotten. In: the base model, the merged export, held-out texts, metrics.jsonl. Out:
results.json and report.html: bits per byte of every stream for both models, continuations of the same prompts side by side."""
