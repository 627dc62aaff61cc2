"""What reading text with a tokenizer shows: ids that occur, round trips, engines that differ, old text with old ids.

That of the parts of a corpus adds up to that of all of it, so they may be read in any number of processes. Shape letters: I ids of all
texts of a batch.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from zhlm.pieces.base import Base
from zhlm.pieces.wordpiece import WordPiece
from zhlm.tokenizer.encode import TokenizersEncoder
from zhlm.tokenizer.engines import Agreement, Engines
from zhlm.tokenizer.load import tokenizer_json

BATCH_TEXTS = 1000
BATCH_CHARS = 100_000
"""Read at once: an id takes `tokenizers` a hundred bytes, so a batch of Chinese, spelled in bytes by the base, 30 MB."""
LONGEST_CHARS = 1_000_000
"""Of a text: a longer one is read in pieces of so many characters."""

Ids = npt.NDArray[np.uint32]
Encoded = tuple[Ids, npt.NDArray[np.int64]]
"""Ids of all texts, and offsets, one more than the texts."""


@dataclass
class Readings:
    """What reading some texts showed."""

    texts: int = 0
    characters: int = 0
    seen: set[int] = field(default_factory=set)
    """Ids that occurred."""
    tokens: Counter[str] = field(default_factory=Counter)
    """With the tokenizer ("after") and its base ("before")."""
    unknown: Counter[str] = field(default_factory=Counter)
    """Of them, those that say only that a word is unknown; WordPiece alone has any."""
    new_tokens: int = 0
    """Of those after, the ones that the base does not have."""
    normalised: int = 0
    """Texts that come back as the normaliser made them, and are stable from then on."""
    lost: int = 0
    """Texts that do not come back."""
    lost_example: str = ""
    old_texts: int = 0
    """Texts without a new token."""
    old_texts_same: int = 0
    """Of them, those that have the base's ids."""
    old_example: str = ""
    """One that has others."""
    engines: dict[str, Agreement] = field(default_factory=dict)

    def add(self, other: "Readings") -> None:
        """Take in what other texts showed."""
        self.seen |= other.seen
        self.tokens.update(other.tokens)
        self.unknown.update(other.unknown)
        for name in ("texts", "characters", "new_tokens", "normalised", "lost", "old_texts", "old_texts_same"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.lost_example, self.old_example = self.lost_example or other.lost_example, self.old_example or other.old_example
        for name, engine in other.engines.items():
            self.engines.setdefault(name, Agreement()).add(engine)

    def num_seen(self, ids: Collection[int]) -> int:
        return sum(i in self.seen for i in ids)

    def unknown_share(self, when: str) -> float:
        return self.unknown[when] / self.tokens[when] if self.tokens[when] else 0.0


def batches(texts: Iterable[str]) -> Iterator[list[str]]:
    """Texts in batches of bounded size, whatever their lengths."""
    batch: list[str] = []
    characters = 0
    for text in texts:
        for start in range(0, max(1, len(text)), LONGEST_CHARS):
            batch.append(text[start : start + LONGEST_CHARS])
            characters += len(batch[-1])
            if len(batch) == BATCH_TEXTS or characters >= BATCH_CHARS:
                yield batch
                batch, characters = [], 0
    if batch:
        yield batch


class Reader:
    """Reads texts with a tokenizer, its base where there is one, and all engines.

    `check` raises for texts whose ids after and before are not what they must be; without it, round trips are counted.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        before: Tokenizer | None,
        base: Base,
        engines: Engines,
        check: Callable[[Sequence[str], Encoded, Encoded], None] | None = None,
    ) -> None:
        self.backend, self.base, self.engines, self.check = tokenizer.backend_tokenizer, base, engines, check
        self.encoder = TokenizersEncoder(tokenizer_json(tokenizer), engines.parallel)
        self.before = TokenizersEncoder(before.to_str(), engines.parallel) if before is not None else None
        self.old_ids = np.array(sorted(before.get_vocab().values()) if before is not None else [], np.uint32)

    def read(self, texts: Sequence[str]) -> Readings:
        """What one batch shows."""
        ids_I, offsets = after = self.encoder.encode_batch(texts)
        found = Readings(len(texts), sum(map(len, texts)), set(np.unique(ids_I).tolist()))
        found.engines = {name: engine.compare(texts, ids_I, offsets) for name, engine in self.engines.by_name.items()}
        self._count(found, "after", ids_I)
        if self.before is not None:
            before = self.before.encode_batch(texts)
            self._count(found, "before", before[0])
            self._old(found, texts, after, before)
            if self.check is not None:
                self.check(texts, after, before)
        if self.check is None and self.base.MERGES:  # WordPiece forgets where spaces were
            self._round_trips(found, texts, np.split(ids_I, offsets[1:-1]))
        return found

    def read_all(self, texts: Iterable[str]) -> Readings:
        """What all batches show."""
        found = Readings()
        for batch in batches(texts):
            found.add(self.read(batch))
        return found

    def _count(self, found: Readings, when: str, ids_I: Ids) -> None:
        found.tokens[when] += len(ids_I)
        if isinstance(self.base, WordPiece):
            found.unknown[when] += int((ids_I == self.base.unknown_id).sum())

    def _round_trips(self, found: Readings, texts: Sequence[str], rows: Sequence[Ids]) -> None:
        came_back = self.backend.decode_batch([row.tolist() for row in rows], skip_special_tokens=False)
        changed = [(text, got) for text, got in zip(texts, came_back, strict=True) if got != text]
        if not changed:
            return
        ids_I, offsets = self.encoder.encode_batch([got for _, got in changed])
        again = self.backend.decode_batch([row.tolist() for row in np.split(ids_I, offsets[1:-1])], skip_special_tokens=False)
        for (text, got), stable in zip(changed, again, strict=True):
            meant = self.backend.normalizer is not None or got.strip(" ") == text.strip(" ")  # Llama takes a space in front for its own
            if stable == got and got.count("\ufffd") <= text.count("\ufffd") and meant:
                found.normalised += 1
            else:
                found.lost += 1
                found.lost_example = found.lost_example or f"{text[:40]!r} became {got[:40]!r}"

    def _old(self, found: Readings, texts: Sequence[str], after: Encoded, before: Encoded) -> None:
        (ids_I, offsets), (before_I, before_offsets) = after, before
        new_before_I = np.concatenate([[0], np.cumsum(~np.isin(ids_I, self.old_ids))])
        found.new_tokens = int(new_before_I[-1])
        for n in np.flatnonzero(new_before_I[offsets[1:]] == new_before_I[offsets[:-1]]):
            found.old_texts += 1
            now, then = ids_I[offsets[n] : offsets[n + 1]], before_I[before_offsets[n] : before_offsets[n + 1]]
            same = np.array_equal(now, then)
            found.old_texts_same += same
            found.old_example = found.old_example if same else (found.old_example or texts[n][:40])
