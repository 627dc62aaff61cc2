"""Whether a base needs more pieces for a language at all."""

import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from zhlm.errors import CorpusError
from zhlm.pieces.base import Base
from zhlm.pieces.wordpiece import WordPiece
from zhlm.tokenizer.encode import Encoder
from zhlm.tokenizer.fertility import tokens_per_character

GOOD_TOKENS_PER_CHARACTER = 0.9
"""Below this a base reads the language well already. Source: Chinese-LLaMA-Alpaca-3, which kept Llama-3's vocabulary; an assumption."""
GOOD_UNKNOWN_SHARE = 0.01
"""Above this share of unknown words, few tokens mean that little was read. An assumption."""
FORCE = "vocab.force: true (--force)"


def per_character(encoder: Encoder, samples: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """Tokens per character of each stream."""
    return {name: tokens_per_character(encoder, texts) for name, texts in samples.items()}


def unknown_share(base: Base, ids_I: npt.NDArray[np.uint32]) -> float:
    """Share of the ids I of some text that say only that a word is unknown; WordPiece alone has any."""
    return float((ids_I == base.unknown_id).mean()) if isinstance(base, WordPiece) and len(ids_I) else 0.0


def check_script(base: Base, texts: Iterable[str], names: Sequence[str]) -> None:
    """Refuse text without a single letter that the base spells with more than one token, or not at all.

    Raises: CorpusError.
    """
    letters = Counter(char for text in texts for char in text.lower() if unicodedata.category(char)[0] == "L")
    unknown = [base.unknown_id] if isinstance(base, WordPiece) else []
    if any(len(ids) > 1 or ids == unknown for ids in base.merge([base.written(char) for char in letters])):
        return
    common = "".join(char for char, _ in letters.most_common(5)) or "none at all"
    raise CorpusError(
        f"vocab: the base has a token for each letter of {', '.join(names)} ({common} are the commonest), expected text of a language that "
        f"it lacks; name other files, or set {FORCE} to learn longer pieces"
    )


def advice(before: Mapping[str, float], unknown: float) -> str | None:
    """Against extending, where the base needs few tokens per character for every new stream; None where it is worth it."""
    if unknown > GOOD_UNKNOWN_SHARE or max(before.values()) >= GOOD_TOKENS_PER_CHARACTER:
        return None
    values = ", ".join(f"{value:.2f} tokens per character of {name}" for name, value in before.items())
    why = f"the base needs only {values} (below {GOOD_TOKENS_PER_CHARACTER})"
    return f"{why}; keeping its vocabulary (vocab: null) is smaller and likely as good"
