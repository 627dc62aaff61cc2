"""The two things done to each file, as plain functions of plain data: survey it, then pack it.

Both read and clean the same file, so that no text needs to be kept in between: reading and cleaning run at 100 MB/s and more.
Workers import this module, so nothing here imports torch, transformers or Ray.
"""

import pickle
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from zhlm.blocks.store import Shard, write_shard
from zhlm.config.schema import CleanConfig
from zhlm.corpus.files import SourceFile
from zhlm.corpus.read import read_documents
from zhlm.errors import CorpusError, VerificationError, ZhlmError
from zhlm.pack.dedup import hash_of
from zhlm.pack.packing import best_fit, concat
from zhlm.pack.split import Fate, Fates
from zhlm.records import Document, id_dtype
from zhlm.storage import Place
from zhlm.text.normalise import normalise
from zhlm.text.reject import rejection
from zhlm.tokenizer.encode import Encoder, Engine, Ids, Offsets, make_encoder

REJECTS_PER_REASON = 20
REJECT_CHARACTERS = 500

Split = Literal["train", "validation"]
SPLIT_OF = {Fate.TRAIN: "train", Fate.VALIDATION: "validation"}
REASON_OF = {Fate.DUPLICATE: "duplicate", Fate.IN_HELD_OUT: "in_held_out"}


@dataclass(frozen=True)
class FileTask:
    """One corpus file of a stream."""

    stream: str
    role: Literal["new", "old"]
    file: SourceFile
    field: str | None
    clean: CleanConfig
    sample_characters: int
    """How much of its text to hand back for comparing engines."""


@dataclass(frozen=True)
class Reject:
    reason: str
    path: str
    row: int
    text: str


@dataclass
class Survey:
    """What a file holds."""

    documents: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    hashes: bytearray = field(default_factory=bytearray)
    """Of the texts that cleaning keeps, in order."""
    rejects: list[Reject] = field(default_factory=list)
    sample: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Settings:
    """What packing needs to know of the run, the same for every file."""

    tokenizer_json: str
    engine: Engine
    parallel: bool
    vocabulary: int
    block_tokens: int
    packing: Literal["best_fit", "concat"]
    start_id: int | None
    end_id: int | None


@dataclass(frozen=True)
class PackTask:
    source: FileTask
    index: int
    """Of the shard that this file becomes."""
    folder: str
    """Of the stream's blocks."""
    fates: Fates
    """Of the texts that cleaning keeps, in order."""
    splits: tuple[Split, ...]
    """Those that get a shard from this file, an empty one if need be."""
    held_out_texts: int
    """How many validation texts to hand back."""


@dataclass
class Packed:
    shards: dict[Split, Shard] = field(default_factory=dict)
    dropped: Counter[str] = field(default_factory=Counter)
    rejects: list[Reject] = field(default_factory=list)
    held_out: list[str] = field(default_factory=list)


@dataclass
class _Tape:
    """The encoded documents of one split, in order."""

    ids: list[npt.NDArray[Any]] = field(default_factory=list)
    lengths: list[npt.NDArray[np.int64]] = field(default_factory=list)
    documents: int = 0
    utf8_bytes: int = 0
    characters: int = 0


def on_row(function: Callable[[Any], Any], row: dict[str, Any]) -> dict[str, Any]:
    """Apply a function to the task in a Ray Data row; tasks and results travel pickled, because they are no table.

    An error of ours is a result too: raised, it would reach the driver as the text of a traceback and no longer as what it is.
    """
    try:
        result = function(pickle.loads(row["task"]))
    except ZhlmError as error:
        result = error
    return {"index": row["index"], "result": pickle.dumps(result)}


def survey(task: FileTask) -> Survey:
    """Read and clean a file: counts, hashes, a few rejects, a little text."""
    found = Survey()
    characters = 0
    for document, text, reason in _cleaned(task):
        found.documents += 1
        if reason is not None:
            _drop(found.dropped, found.rejects, reason, document, text)
            continue
        found.hashes += hash_of(text)
        if characters < task.sample_characters:
            found.sample.append(text[: task.sample_characters])
            characters += len(text)
    return found


def pack_file(settings: Settings, task: PackTask) -> Packed:
    """Read and clean a file again, drop and split by the fates, encode, pack, and write a shard per split."""
    packed, tapes = Packed(), {split: _Tape() for split in task.splits}
    encoder = _encoder(settings.engine, settings.tokenizer_json, settings.parallel)
    for texts in _kept_batches(task, packed):
        for split, tape in tapes.items():
            _record(tape, texts[split], encoder, settings)
        room = task.held_out_texts - len(packed.held_out)
        packed.held_out += texts["validation"][: max(0, room)]
    for split, tape in tapes.items():
        packed.shards[split] = _write(task, split, tape, settings)
    return packed


@lru_cache(maxsize=2)
def _encoder(engine: Engine, tokenizer_json: str, parallel: bool) -> Encoder:
    """Kept between the files that one worker process gets: loading a large vocabulary takes a second."""
    return make_encoder(engine, tokenizer_json, parallel)


def _cleaned(task: FileTask) -> Iterator[tuple[Document, str, str | None]]:
    for batch in read_documents(task.file, task.field):
        for document in batch:
            text = normalise(document.text) if task.clean.normalise else document.text
            yield document, text, rejection(text, task.clean, task.role)


def _kept_batches(task: PackTask, packed: Packed, batch_characters: int = 2_000_000) -> Iterator[dict[Split, list[str]]]:
    """The texts of each split, batch by batch; what the fates drop is counted in `packed`."""
    texts: dict[Split, list[str]] = {"train": [], "validation": []}
    characters = kept = 0
    for document, text, reason in _cleaned(task.source):
        if reason is not None:
            continue
        kept += 1
        if kept > len(task.fates):
            break
        fate = Fate(task.fates[kept - 1])
        if fate in REASON_OF:
            _drop(packed.dropped, packed.rejects, REASON_OF[fate], document, text)
            continue
        texts["train" if fate is Fate.TRAIN else "validation"].append(text)
        characters += len(text)
        if characters >= batch_characters:
            yield texts
            texts, characters = {"train": [], "validation": []}, 0
    if kept != len(task.fates):
        path = task.source.file.path
        raise CorpusError(f"pack: {path} changed while it was read ({len(task.fates)} documents, then {kept}); run again", path=path)
    yield texts


def _drop(dropped: Counter[str], rejects: list[Reject], reason: str, document: Document, text: str) -> None:
    dropped[reason] += 1
    if dropped[reason] <= REJECTS_PER_REASON:
        rejects.append(Reject(reason, document.path, document.row, text[:REJECT_CHARACTERS]))


def _record(tape: _Tape, texts: list[str], encoder: Encoder, settings: Settings) -> None:
    if not texts:
        return
    ids, lengths = with_ends(*encoder.encode_batch(texts), settings.start_id, settings.end_id)
    if len(ids) and int(ids.max()) >= settings.vocabulary:
        raise VerificationError(f"pack: the {settings.engine} engine gave the id {ids.max()}, the vocabulary has {settings.vocabulary}")
    tape.ids.append(ids.astype(id_dtype(settings.vocabulary)))
    tape.lengths.append(lengths)
    tape.documents += len(texts)
    tape.characters += sum(map(len, texts))
    tape.utf8_bytes += sum(len(t.encode()) for t in texts)


def with_ends(ids_I: Ids, offsets: Offsets, start_id: int | None, end_id: int | None) -> tuple[Ids, npt.NDArray[np.int64]]:
    """Put the special tokens around each document; the ids of all, and the length of each."""
    before, added = int(start_id is not None), int(start_id is not None) + int(end_id is not None)
    lengths = np.diff(offsets)
    num_documents = len(lengths)
    out = np.empty(len(ids_I) + added * num_documents, np.uint32)
    starts = offsets[:-1] + added * np.arange(num_documents)
    out[np.arange(len(ids_I)) + np.repeat(added * np.arange(num_documents) + before, lengths)] = ids_I
    if start_id is not None:
        out[starts] = start_id
    if end_id is not None:
        out[starts + lengths + added - 1] = end_id
    return out, lengths + added


def _write(task: PackTask, split: Split, tape: _Tape, settings: Settings) -> Shard:
    ids = np.concatenate([np.empty(0, id_dtype(settings.vocabulary)), *tape.ids])
    lengths = np.concatenate([np.empty(0, np.int64), *tape.lengths])
    blocks = (best_fit if settings.packing == "best_fit" else concat)(ids, lengths, settings.block_tokens)
    tokens = sum(int(ends[-1]) for ends in blocks.ends)
    if tokens != len(ids) or int(lengths.sum()) != len(ids):
        raise VerificationError(f"pack: {task.source.file.path} gave {len(ids)} tokens but its blocks hold {tokens}; report this as a bug")
    return write_shard(
        Place(task.folder) / split,
        task.index,
        blocks,
        vocabulary=settings.vocabulary,
        documents=tape.documents,
        tokens=tokens,
        utf8_bytes=tape.utf8_bytes,
        characters=tape.characters,
        source=task.source.file.path,
    )
