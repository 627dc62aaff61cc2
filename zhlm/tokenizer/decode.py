"""Token ids as a text that a reader expects."""

import re
from collections.abc import Sequence
from typing import Any

HAN = "[\u2e80-\u303f\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff00-\uffef\U00020000-\U0003ffff]"
"""Han characters and full-width punctuation."""
BESIDE_HAN = re.compile(f"(?<={HAN}) +| +(?={HAN})")


def decode(tokenizer: Any, ids: Sequence[int]) -> str:
    """Without special tokens. WordPiece keeps no spaces and puts one between all words, and each Han character is a word: those beside
    Han characters are left out. Other tokenizers write the spaces that there were."""
    text = str(tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))
    return BESIDE_HAN.sub("", text) if type(tokenizer.backend_tokenizer.model).__name__ == "WordPiece" else text
