"""The offline sample: settings in; a corpus in English and Chinese of exactly known entropy, and a tiny base model trained on it, out."""
