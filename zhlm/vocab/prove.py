"""The proof of any tokenizer folder, also one that others extended: what `zhlm vocab --verify` finds, counts and writes.

With the base, the new pieces are proved, and that the old ones are as they were; without it, every piece. All of the corpus is read, in
batches. Shape letters: I ids of all texts of a batch.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerFast

from zhlm.errors import BaseModelError, VerificationError
from zhlm.pieces.base import Base, merges_of
from zhlm.pieces.bytelevel import ByteLevel
from zhlm.pieces.extend import first_new_id
from zhlm.pieces.kinds import take_apart
from zhlm.pieces.learn import Learned
from zhlm.pieces.reach import reached
from zhlm.tokenizer.encode import HARD_TEXTS, TokenizersEncoder
from zhlm.tokenizer.engines import Engines
from zhlm.tokenizer.load import tokenizer_json
from zhlm.tokenizer.special import RESERVED
from zhlm.vocab.readings import Reader, Readings, batches
from zhlm.vocab.verify import verify

SPELLED_TEXTS = 2000
"""Texts of the corpus that the base's ids are spelled out against."""


@dataclass
class Findings:
    """What was found about a tokenizer; the content of verify.json."""

    kind: str
    entries: int
    embedding_rows: int | None
    """By config.json, where there is one."""
    pieces: int = 0
    """That were looked at: the new ones, or without a base all but special and reserved ones and single bytes."""
    words: int = 0
    """Of them, added tokens."""
    alone: int = 0
    covered: int = 0
    """Not alone, but in some text."""
    unreachable: list[str] = field(default_factory=list)
    """No text was found that produces them."""
    impossible: int = 0
    """Of them, pieces that no text can produce: merging their own characters ends in other pieces."""
    on_corpus: int = 0
    """Pieces that the corpus produces."""
    texts: int = 0
    characters: int = 0
    normalised: int = 0
    """Texts that come back as the normaliser made them, and are stable from then on."""
    lost: int = 0
    """Texts that do not come back."""
    lost_example: str = ""
    engines: dict[str, Any] = field(default_factory=dict)
    base: dict[str, Any] | None = None
    """Of old ids and old text, where the base was given."""
    tokens_per_character: dict[str, float] = field(default_factory=dict)
    """On the corpus."""
    unknown_share: dict[str, float] = field(default_factory=dict)
    """Of the tokens of the corpus; WordPiece alone has any."""
    problems: list[str] = field(default_factory=list)
    """What failed, a line each; empty: proved."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def prove(
    tokenizer: PreTrainedTokenizerFast,
    before: PreTrainedTokenizerFast | None,
    corpus: Iterable[str],
    folder: Path | None = None,
    embedding_rows: int | None = None,
) -> Findings:
    """Look at every piece, every text and every engine; nothing is raised for what fails, it is in `problems`.

    `folder` is where other forms of the tokenizer may lie.

    Raises: BaseModelError for a kind of tokenizer that cannot be taken apart.
    """
    base = take_apart(tokenizer.backend_tokenizer)
    findings = Findings(base.KIND, len(tokenizer.get_vocab()), embedding_rows)
    row_of, words = _pieces(tokenizer, before, base)
    reader = Reader(tokenizer, before.backend_tokenizer if before is not None else None, base, Engines(tokenizer, folder))
    found = Readings()
    sample: list[str] = []
    for texts in batches(corpus):
        found.add(reader.read(texts))
        sample += texts[: max(0, SPELLED_TEXTS - len(sample))]
    for name, tokens in found.tokens.items():
        findings.tokens_per_character[name] = tokens / found.characters if found.characters else 0.0
        findings.unknown_share[name] = found.unknown_share(name)
    findings.on_corpus = found.num_seen((*row_of.values(), *words.values()))
    found.add(reader.read(HARD_TEXTS))
    findings.texts, findings.characters = found.texts, found.characters
    findings.normalised, findings.lost, findings.lost_example = found.normalised, found.lost, found.lost_example
    _reach(tokenizer, base, row_of, words, found.seen, findings)
    findings.engines = {name: engine.as_dict() for name, engine in found.engines.items()}
    if before is not None:
        findings.base = _against(tokenizer, before, base, row_of, words, found, sample)
    findings.problems = list(_problems(findings))
    return findings


def _pieces(
    tokenizer: PreTrainedTokenizerFast, before: PreTrainedTokenizerFast | None, base: Base
) -> tuple[dict[str, int], dict[str, int]]:
    """Pieces and added words to prove, with their ids, in the order of these."""
    known = set(before.get_vocab()) if before is not None else set()
    added = {token.content: (row, token.special) for row, token in tokenizer.backend_tokenizer.get_added_tokens_decoder().items()}
    model = {p: row for p, row in sorted(base.vocabulary.items(), key=lambda item: item[1]) if p not in known and p not in added}
    words = {p: row for p, (row, special) in added.items() if p not in known and not special and not RESERVED.fullmatch(p)}
    reserved = (lambda p: len(p) == 1) if isinstance(base, ByteLevel) else RESERVED.fullmatch
    return {p: row for p, row in model.items() if not reserved(p)}, words


def _reach(
    tokenizer: PreTrainedTokenizerFast,
    base: Base,
    row_of: dict[str, int],
    words: Mapping[str, int],
    seen: set[int],
    findings: Findings,
) -> None:
    encoder = TokenizersEncoder(tokenizer_json(tokenizer))
    alone, covered = reached(encoder, base, row_of, seen)
    ids_I, offsets = encoder.encode_batch(list(words))
    rows = zip(words, np.split(ids_I, offsets[1:-1]), strict=True) if words else ()
    lost_words = [word for word, row in rows if row.tolist() != [words[word]]]
    dead = [piece for piece in row_of if piece not in alone and piece not in covered]
    merged = base.merge(dead) if base.MERGES else []
    findings.pieces, findings.words = len(row_of) + len(words), len(words)
    findings.alone, findings.covered = len(alone) + len(words) - len(lost_words), len(covered)
    findings.unreachable = [*(base.shown(piece) for piece in dead), *map(repr, lost_words)]
    findings.impossible = sum(ids != [row_of[piece]] for piece, ids in zip(dead, merged, strict=False))


def _against(
    tokenizer: PreTrainedTokenizerFast,
    before: PreTrainedTokenizerFast,
    base: Base,
    row_of: Mapping[str, int],
    words: Mapping[str, int],
    readings: Readings,
    sample: Sequence[str],
) -> dict[str, Any]:
    """Old ids in their places, old text with old ids, and whether the whole is the base with more merges behind."""
    now = tokenizer.get_vocab()
    moved = [piece for piece, row in before.get_vocab().items() if now.get(piece) != row]
    return {
        "moved_ids": len(moved),
        "old_texts": readings.old_texts,
        "old_texts_same": readings.old_texts_same,
        "example": readings.old_example,
        "as_the_base": _as_the_base(tokenizer, before, base, row_of, words, sample),
    }


def _as_the_base(
    tokenizer: PreTrainedTokenizerFast,
    before: PreTrainedTokenizerFast,
    base: Base,
    row_of: Mapping[str, int],
    words: Mapping[str, int],
    sample: Sequence[str],
) -> str:
    """`yes` where the proof of the vocab stage holds; else why it does not, or cannot be asked."""
    try:
        old = take_apart(before.backend_tokenizer)
    except BaseModelError as error:
        return f"not asked: {error}"
    if old.KIND != base.KIND:
        return f"no: the base is {old.KIND}"
    first_id = first_new_id(before)
    if [*row_of.values(), *words.values()] != list(range(first_id, first_id + len(row_of) + len(words))):
        return "not asked: new ids do not follow the base's"
    merges: list[tuple[str, str] | None] = [None] * len(row_of)
    if base.MERGES:
        old_merges, all_merges = merges_of(old.spec), merges_of(base.spec)
        if all_merges[: len(old_merges)] != old_merges:
            return "not asked: new merges are not behind the base's"
        made = {left + right: (left, right) for left, right in all_merges[len(old_merges) :]}
        merges = [made.get(piece) for piece in row_of]
    nothing = [0] * len(row_of)
    learned = Learned([*row_of], merges, nothing, 0, 0)
    try:
        verify(before, tokenizer, learned, first_id, sample, [], [*words])
    except (VerificationError, KeyError) as error:
        return f"no: {error}"
    return "yes"


def _problems(found: Findings) -> Iterable[str]:
    if found.embedding_rows is not None and found.embedding_rows < found.entries:
        yield f"the tokenizer has {found.entries:,} entries, the embedding only {found.embedding_rows:,} rows"
    if dead := len(found.unreachable):
        yield f"{dead:,} of {found.pieces:,} pieces are produced by no text that was found, {found.unreachable[0]} among them"
    if found.lost:
        yield f"{found.lost:,} of {found.texts:,} texts do not come back: {found.lost_example}"
    for name, engine in found.engines.items():
        if different := engine.get("different"):
            where = f"{different:,} of {engine['texts']:,} texts, {engine['example']!r} among them"
            yield f"{name} gives other ids than tokenizers for {where}"
    if found.base is not None:
        yield from _problems_with_base(found.base)


def _problems_with_base(found: Mapping[str, Any]) -> Iterable[str]:
    different = found["old_texts"] - found["old_texts_same"]
    if found["moved_ids"]:
        yield f"{found['moved_ids']:,} pieces of the base are gone or have another id"
    elif different:
        where = f"{different:,} of {found['old_texts']:,} texts without a new piece, {found['example']!r} among them"
        yield f"it gives other ids than the base for {where}"
    if found["as_the_base"].startswith("no:"):
        yield f"it is not the base with more pieces: {found['as_the_base'][4:]}"


def as_json(findings: Findings) -> str:
    return json.dumps(findings.as_dict(), indent=1, ensure_ascii=False)
