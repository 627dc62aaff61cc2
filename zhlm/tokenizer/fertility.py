"""How well a tokenizer fits a text: tokens per character."""

from collections.abc import Sequence

from zhlm.tokenizer.encode import Encoder


def tokens_per_character(encoder: Encoder, texts: Sequence[str]) -> float:
    """Mean over all characters of the texts; below 1 means that words or phrases are single tokens. 0 for no text."""
    characters = sum(map(len, texts))
    ids, _ = encoder.encode_batch(texts)
    return len(ids) / characters if characters else 0.0
