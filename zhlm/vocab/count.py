"""Corpus files -> pre-token counts of the new streams, and a sample of every stream's text. One file at a time, so files go in parallel."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tokenizers import Tokenizer

from zhlm.config.schema import StreamConfig
from zhlm.corpus.files import SourceFile
from zhlm.corpus.read import read_documents
from zhlm.text.normalise import normalise
from zhlm.vocab.kinds import take_apart

LEARN_CHARS = 20_000_000
"""Text that is learned from at most, spread over the files by size: about 3 GB of memory (1.3 GB measured at 8 million)."""
SAMPLE_CHARS = 500_000
"""Text of each stream that tokens per character and the proof are measured on at most."""

UNKNOWN_BYTES = 1 << 30
"""Stands for the size of a dataset of the hub, which nobody knows before it was read."""


@dataclass(frozen=True)
class CountTask:
    """One file to count, and how much of it."""

    stream: str
    file: SourceFile
    field: str | None
    learn_chars: int
    sample_chars: int


@dataclass(frozen=True)
class FileCount:
    """What one corpus file gave."""

    pre_tokens: Counter[str]
    documents: int
    characters: int
    """Learned from, the sample of an old stream not included."""
    sample: list[str]


def plan_counts(streams: Sequence[StreamConfig], files: Mapping[str, Sequence[SourceFile]]) -> list[CountTask]:
    """A task per file: of a corpus beyond the limits, every file gives its share by size."""
    new_bytes = sum(_size(f) for s in streams if s.role == "new" for f in files[s.name])
    tasks = []
    for stream in streams:
        learn_limit = LEARN_CHARS if stream.role == "new" else 0
        stream_bytes = sum(_size(f) for f in files[stream.name])
        for file in files[stream.name]:
            # A character takes a byte at least (except in a compressed file), so below the limit in bytes nothing is left out.
            learn_chars, sample_chars = -(-learn_limit * _size(file) // new_bytes), -(-SAMPLE_CHARS * _size(file) // stream_bytes)
            tasks.append(CountTask(stream.name, file, stream.field, learn_chars, sample_chars))
    return tasks


def _size(file: SourceFile) -> int:
    return file.size_bytes or UNKNOWN_BYTES


def count_file(task: CountTask, tokenizer_json: str) -> FileCount:
    """Pre-tokens of a file's first documents, up to a number of characters, and the first of them as a sample."""
    base = take_apart(Tokenizer.from_str(tokenizer_json))
    pre_tokens: Counter[str] = Counter()
    sample: list[str] = []
    documents = learned = seen = 0
    for batch in read_documents(task.file, task.field):
        for text in (normalise(document.text) for document in batch):
            if seen < task.sample_chars:
                sample.append(text)
            if learned < task.learn_chars:
                pre_tokens.update(base.pre_tokens(text))
                documents += 1
                learned += len(text)
            seen += len(text)
        if seen >= max(task.learn_chars, task.sample_chars):
            break
    return FileCount(pre_tokens, documents, learned, sample)
