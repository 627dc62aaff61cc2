"""Corpus files -> pre-token counts of the new streams, and a sample of every stream's text. One piece of a file at a time, so they go in
parallel, and in bounded memory, however large the corpus is.
"""

import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from tokenizers import Tokenizer

from zhlm.config.schema import StreamConfig
from zhlm.corpus.files import SourceFile
from zhlm.corpus.parts import Piece, cut, whole
from zhlm.corpus.read import quietly, read_piece
from zhlm.pieces.kinds import take_apart
from zhlm.text.normalise import normalise

LEARN_CHARS = 100_000_000
"""Text that is learned from at most, spread evenly over the corpus, and old text that is proved. A core counts 1.2 million a second, and
more of it hardly tells more: 8,000 pieces from a tenth of a corpus of 3.7 million need 3% more tokens on other documents than those from
all of it, from half 0.3%."""
MAX_SYMBOLS = 16_000_000
"""Length of all different pre-tokens together, which is what learning takes memory by: 1.2 GB at 13 million."""
SAMPLE_CHARS = 500_000
"""Text of each stream that tokens per character and the proof are measured on at most."""

PIECE_BYTES = 16 << 20
THIN_CHARS = 1_000_000
"""Counted between two looks at the size."""
SEED = 21
UNKNOWN_BYTES = 1 << 30
"""Stands for the size of a dataset of the hub, which nobody knows before it was read."""


@dataclass(frozen=True)
class CountTask:
    """A piece of a file to count, and how much of it."""

    stream: str
    piece: Piece
    field: str | None
    learn_chars: int
    sample_chars: int
    prove_chars: int
    """Read again by the proof: all that was learned from, and as much old text."""
    max_symbols: int
    skip_non_text: bool = False


@dataclass(frozen=True)
class FileCount:
    """What one piece of a corpus file gave."""

    pre_tokens: Counter[str]
    """Thinned to the memory there is: a sum of any of them is, on average, what it would be without."""
    documents: int
    characters: int
    """Learned from, the sample of an old stream not included."""
    dropped: int
    """Rare pre-tokens that were dropped, others being counted for them."""
    sample: list[str]
    words: set[str]
    """Where a word is spelled with the longest pieces, not by merging (WordPiece), all words that the proof will read: no new piece may
    take one its spelling."""


def plan_counts(streams: Sequence[StreamConfig], files: Mapping[str, Sequence[SourceFile]]) -> list[CountTask]:
    """A task per piece of a file: of a corpus beyond the limits, every one gives its share by size."""
    pieces = {stream.name: [piece for file in files[stream.name] for piece in _pieces(file)] for stream in streams}
    bytes_of = {role: sum(size for s in streams if s.role == role for _, size in pieces[s.name]) for role in ("new", "old")}
    tasks = []
    for stream in streams:
        stream_bytes = sum(size for _, size in pieces[stream.name])
        for piece, size in pieces[stream.name]:
            # A character takes a byte at least (except in a compressed file), so below the limit in bytes nothing is left out.
            chars, symbols = (-(-limit * size // bytes_of[stream.role]) for limit in (LEARN_CHARS, MAX_SYMBOLS))
            sample = -(-SAMPLE_CHARS * size // stream_bytes)
            learn = chars if stream.role == "new" else 0
            task = CountTask(stream.name, piece, stream.field, learn, sample, max(chars, sample), symbols, stream.skip_non_text)
            tasks.append(task)
    return tasks


def _pieces(file: SourceFile) -> Iterator[tuple[Piece, int]]:
    if file.size_bytes and file.hub is None:
        yield from cut(file, PIECE_BYTES)
    else:
        yield whole(file), file.size_bytes or UNKNOWN_BYTES


def count_file(task: CountTask, tokenizer_json: str) -> FileCount:
    """Pre-tokens of a piece's first documents, up to a number of characters, the first of them as a sample, and the words of WordPiece."""
    base = take_apart(Tokenizer.from_str(tokenizer_json))
    pre_tokens: Counter[str] = Counter()
    sample: list[str] = []
    words = set[str]()
    rng = random.Random(SEED)
    documents = learned = seen = dropped = 0
    thin_at = THIN_CHARS
    for text in read_task(task, max(task.learn_chars, task.sample_chars) if base.MERGES else task.prove_chars):
        if seen < task.sample_chars:
            sample.append(text)
        if learned < task.learn_chars:
            pre_tokens.update(base.pre_tokens(text))
            documents += 1
            learned += len(text)
        if learned >= thin_at:
            dropped += thin(pre_tokens, task.max_symbols, rng)
            thin_at = learned + THIN_CHARS
        if not base.MERGES:
            words.update(base.pre_tokens(text))
        seen += len(text)
    return FileCount(pre_tokens, documents, learned, dropped + thin(pre_tokens, task.max_symbols, rng), sample, words)


def read_task(task: CountTask, chars: int) -> Iterator[str]:
    """A piece's first documents, normalised, until they have so many characters."""
    seen = 0
    for batch in read_piece(task.piece, task.field, skip=quietly if task.skip_non_text else None):
        for text in map(normalise, batch.texts):
            if seen >= chars:
                return
            yield text
            seen += len(text)


def thin(counts: Counter[str], max_symbols: int, rng: random.Random) -> int:
    """Drop rare pre-tokens until all together are no longer than `max_symbols`; returns how many were dropped.

    One that occurs n times, less than a threshold w, stays with probability n / w and then counts w. So every sum of counts keeps its
    expected value, that of a pair inside of many rare pre-tokens too: in Chinese, where a pre-token is a run of characters, 9 of 10 occur
    once, and without them 8,000 pieces need 2.5% more tokens on other documents. Half of them, with doubled counts, need 0.1% more.

    Source: threshold sampling, Duffield, Lund and Thorup, "Learn more, sample less" (2005).
    """
    before, threshold = len(counts), 1
    while sum(map(len, counts)) > max_symbols:
        threshold *= 2
        for rare in [pre_token for pre_token, count in counts.items() if count < threshold]:
            if rng.random() * threshold < counts[rare]:
                counts[rare] = threshold
            else:
                del counts[rare]
    return before - len(counts)
