"""The engines that may read a tokenizer, each against what `tokenizers` makes of it as transformers loads it, id for id."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import sentencepiece
from transformers import PreTrainedTokenizerFast

from zhlm.tokenizer.encode import GigatokenEncoder, TokenizersEncoder
from zhlm.tokenizer.load import tokenizer_json

MODEL_FILES = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model")
Ids = npt.NDArray[np.uint32]
Offsets = npt.NDArray[np.int64]


@dataclass
class Agreement:
    """On how many texts an engine was asked, and on how many it differed."""

    reason: str = ""
    """Why it cannot read this tokenizer, or failed on the way."""
    texts: int = 0
    different: int = 0
    example: str = ""

    def add(self, other: "Agreement") -> None:
        self.texts += other.texts
        self.different += other.different
        self.reason, self.example = self.reason or other.reason, self.example or other.example

    def problem(self, texts: int) -> str:
        """What is wrong where an engine was to read so many texts; empty: nothing."""
        if self.different:
            return f"gives other ids than tokenizers for {self.different:,} of {self.texts:,} texts, {self.example!r} among them"
        return self.reason if self.texts < texts else ""

    def as_dict(self) -> dict[str, Any]:
        if self.texts == 0:
            return {"reason": self.reason}
        return {"texts": self.texts, "different": self.different, "example": self.example}


@dataclass
class Engine:
    """One engine."""

    encode: Callable[[Sequence[str]], tuple[Ids, Offsets]] | None
    """Texts -> ids and offsets; None where it cannot read this tokenizer."""
    reason: str = ""
    """Why it cannot, or failed on the way."""

    def compare(self, texts: Sequence[str], ids_I: Ids, offsets: Offsets) -> Agreement:
        """Count the texts whose ids are not these."""
        if self.encode is None:
            return Agreement(self.reason)
        try:
            got_I, got_offsets = self.encode(texts)
        except Exception as error:  # a foreign engine: whatever it raises, the others still count
            self.encode, self.reason = None, f"failed: {_first_line(error)}"
            return Agreement(self.reason)
        if np.array_equal(got_offsets, offsets) and np.array_equal(got_I, ids_I):
            return Agreement(texts=len(texts))
        pairs = zip(texts, np.split(got_I, got_offsets[1:-1]), np.split(ids_I, offsets[1:-1]), strict=True)
        wrong = [text for text, one, two in pairs if not np.array_equal(one, two)]
        return Agreement("", len(texts), len(wrong), wrong[0][:40])


@dataclass
class Engines:
    """All engines for one tokenizer."""

    tokenizer: PreTrainedTokenizerFast
    folder: Path | None
    """Where a SentencePiece model may lie."""
    parallel: bool = True
    """Use every core of the machine, not one."""
    by_name: dict[str, Engine] = field(init=False)

    def __post_init__(self) -> None:
        self.by_name = {"transformers": Engine(self._wrapped), "gigatoken": self._gigatoken()}
        raw = self.folder / "tokenizer.json" if self.folder else None
        if raw is not None and raw.is_file():  # which a transformers class may have built anew
            self.by_name["tokenizer.json"] = Engine(TokenizersEncoder(raw.read_text(encoding="utf-8"), self.parallel).encode_batch)
        files = [self.folder / name for name in MODEL_FILES if (self.folder / name).is_file()] if self.folder else []
        if files:
            self.by_name["sentencepiece"] = _sentencepiece(files[0])

    def _wrapped(self, texts: Sequence[str]) -> tuple[Ids, Offsets]:
        return _flat(self.tokenizer(list(texts), add_special_tokens=False)["input_ids"])

    def _gigatoken(self) -> Engine:
        try:
            return Engine(GigatokenEncoder(tokenizer_json(self.tokenizer), self.parallel).encode_batch)
        except Exception as error:  # it says no to kinds that it does not know in many ways
            return Engine(None, f"does not read this kind ({_first_line(error)})")


def _sentencepiece(file: Path) -> Engine:
    try:
        processor = sentencepiece.SentencePieceProcessor(model_file=str(file))
    except (RuntimeError, OSError) as error:  # tokenizer.model may be a file of tiktoken
        return Engine(None, f"cannot read {file.name} ({_first_line(error)})")
    return Engine(lambda texts: _flat(processor.encode(list(texts))))


def _flat(rows: Sequence[Sequence[int]]) -> tuple[Ids, Offsets]:
    offsets = np.zeros(len(rows) + 1, np.int64)
    np.cumsum([len(row) for row in rows], out=offsets[1:])
    return np.fromiter(chain.from_iterable(rows), np.uint32, int(offsets[-1])), offsets


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:120]
