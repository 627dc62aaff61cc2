"""The two things done to each part of a corpus, as plain functions of plain data: survey it, then pack it.

Both read the same files, so that no text needs to be kept in between; what the survey found clean is not cleaned again.
Workers import this module, so nothing here imports torch, transformers or Ray.
"""

import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from zhlm.blocks.packing import Kind, Packer
from zhlm.blocks.store import Part, Shard, ShardWriter, Split, commit_part, find_part, writing
from zhlm.config.schema import CleanConfig
from zhlm.corpus.parts import SourcePart
from zhlm.corpus.read import Batch, quietly, read_piece
from zhlm.errors import CorpusError, VerificationError
from zhlm.pack.dedup import Hashes
from zhlm.pack.split import Fate, Fates, fates_inline
from zhlm.pack.survey import NOT_TEXT, Survey, load_survey, save_survey
from zhlm.records import id_dtype
from zhlm.storage import Place
from zhlm.text.clean import Needs, clean_again, clean_batch
from zhlm.tokenizer.encode import Encoder, Engine, Ids, Offsets, make_encoder
from zhlm.tokenizer.long import LONG_CHARACTERS, in_pieces

REJECTS_PER_REASON = 20
REJECT_CHARACTERS = 500
HELD_OUT_DOCUMENTS = 5000
HELD_OUT_CHARACTERS = 20_000_000
"""At most so much text of a part is kept beside its blocks, for `evaluate`."""

REASON_OF = {Fate.DUPLICATE: "duplicate", Fate.NEAR_DUPLICATE: "near_duplicate", Fate.IN_HELD_OUT: "in_held_out"}


@dataclass(frozen=True)
class Source:
    """A part of a stream's files, and how its texts are read and cleaned."""

    role: Literal["new", "old"]
    part: SourcePart
    field: str | None
    clean: CleanConfig
    skip_non_text: bool = False


@dataclass(frozen=True)
class SurveyTask:
    source: Source
    store: str
    key: str
    signatures: bool
    """Whether near duplicates are looked for."""


@dataclass(frozen=True)
class Settings:
    """What packing needs to know of the run, the same for every part."""

    store: str
    tokenizer_json: str
    engine: Engine
    cuts: str | None
    """Where texts of more than LONG_CHARACTERS may be cut for encoding."""
    parallel: bool
    vocabulary: int
    block_tokens: int
    packing: Kind
    start_id: int | None
    end_id: int | None
    held_out_N2: Hashes = field(default_factory=lambda: np.empty((0, 2), np.uint64))
    """Of the documents that no stream may train on: here and not in the tasks, which are ten thousand."""
    truncate: bool = False


@dataclass(frozen=True)
class PackTask:
    source: Source
    key: str
    splits: tuple[Split, ...]
    """Those that get a shard from this part, an empty one if need be."""
    fates: Fates | None
    """Of the texts that cleaning keeps, in order. None: decided on the way from `share` and the settings' `held_out_N2`, without a look
    for duplicates."""
    share: float = 0.0
    needs_R: Needs | None = None
    """What cleaning each of the documents read takes, from the survey; None where there was none."""


@dataclass
class _Drops:
    """Documents that are left out, counted and sampled."""

    counts: Counter[str] = field(default_factory=Counter)
    rejects: list[dict[str, Any]] = field(default_factory=list)

    def add(self, reason: str, path: str, row: int, text: str) -> None:
        self.counts[reason] += 1
        if self.counts[reason] <= REJECTS_PER_REASON:
            self.rejects.append({"reason": reason, "path": path, "row": int(row), "text": text[:REJECT_CHARACTERS]})

    def not_text(self, path: str, row: int, value: Any) -> None:
        """Of a document that no text came of: told of while its batch is read."""
        self.add(NOT_TEXT, path, row, json.dumps(value, ensure_ascii=False, default=str))


def beginnings(wanted: Sequence[tuple[Source, int]]) -> list[str]:
    """So many characters from the beginning of each part, text by text."""
    texts: list[str] = []
    for source, characters in wanted:
        skip = quietly if source.skip_non_text else None
        batch = next(iter(read_piece(source.part.pieces[0], source.field, batch_documents=1024, skip=skip)), None)
        for text in batch.texts if batch else ():
            if characters <= 0:
                break
            texts.append(text[:characters])
            characters -= len(texts[-1])
    return texts


def survey(task: SurveyTask) -> Survey:
    """Read and clean a part: counts and hashes. What an earlier packer left in the store is taken from there."""
    store = Place(task.store)
    found = load_survey(store, task.key)
    if found is None:
        drops, parts, needs = _Drops(), [Survey.of_texts([], task.signatures)], []
        for cleaned in _cleaned(task.source, drops):
            needs.append(cleaned.needs)
            parts.append(Survey.of_texts(cleaned.texts, task.signatures))
            del cleaned  # a single text may be as large as memory allows
        found = Survey.joined(parts, needs, dict(drops.counts))
        _check_unchanged(task.source)
        save_survey(store, task.key, found)
    return found


def pack_part(settings: Settings, task: PackTask) -> Part:
    """Read and clean a part again, drop and split by the fates, encode, pack, write a shard per split, and commit the part.

    Raises: CorpusError when the files changed since the survey; VerificationError when a document or a token got lost.
    """
    store = Place(settings.store)
    found = find_part(store, task.key)
    if found is not None:  # another packer made it meanwhile
        return found[0]
    drops, held_out = _Drops(), _HeldOut()
    encoder = _encoder(settings.engine, settings.tokenizer_json, settings.parallel)
    with writing(store, task.key, task.splits, settings.block_tokens, settings.vocabulary) as writers:
        outs = {split: _Out(writers[split], encoder, settings) for split in task.splits}
        documents = 0
        for read, texts in _decided(task, settings.held_out_N2, drops):
            documents += read
            for split, out in outs.items():
                out.add(texts[split])
            held_out.add(texts["validation"])
        shards = {split: out.close(task.source.part.source) for split, out in outs.items()}
    documents += drops.counts[NOT_TEXT]
    part = Part(task.key, task.source.part.source, shards, documents, dict(sorted(drops.counts.items())))
    kept = sum(s.documents for s in shards.values())
    if documents != kept + sum(part.dropped.values()):
        raise VerificationError(
            f"pack: {part.source} has {documents} documents, kept {kept} and dropped {part.dropped}; report this as a bug"
        )
    _check_unchanged(task.source)
    if "validation" in task.splits:
        held_out.write(store, task.key)
    commit_part(store, part, rejects=drops.rejects)
    return part


def _check_unchanged(source: Source) -> None:
    """Raises: CorpusError. What was made of other bytes than the key stands for would be taken by every later run on the old ones."""
    path = next((p.file.path for p in source.part.pieces if p.file.changed()), None)
    if path is not None:
        raise CorpusError(
            f"pack: {path} changed while it was packed; when nothing writes to it any more, run the same command again", path=path
        )


@lru_cache(maxsize=2)
def _encoder(engine: Engine, tokenizer_json: str, parallel: bool) -> Encoder:
    """Kept between the parts that one worker process gets: loading a large vocabulary takes a second."""
    return make_encoder(engine, tokenizer_json, parallel)


@dataclass(frozen=True)
class _Cleaned:
    """What cleaning left of a batch."""

    read: int
    """Documents before."""
    batch: Batch
    """For the places of its documents; its texts are gone."""
    texts: list[str]
    kept: Sequence[int]
    """Where the texts were in the batch."""
    needs: Needs
    """Of all documents of the batch."""


def _cleaned(source: Source, drops: _Drops, needs_R: Needs | None = None) -> Iterator[_Cleaned]:
    """The batches of a part, with less work where it is known what its documents need."""
    done, skip = 0, drops.not_text if source.skip_non_text else None
    for piece in source.part.pieces:
        for batch in read_piece(piece, source.field, skip=skip):
            read = len(batch.texts)
            if needs_R is None:
                texts, reasons, needs = clean_batch(batch.texts, source.clean, source.role)
            else:
                needs = needs_R[done : done + read]
                texts, reasons = clean_again(batch.texts, needs, source.clean, source.role)
            kept: Sequence[int] = range(len(texts))
            if any(reasons):
                kept = [at for at, reason in enumerate(reasons) if reason is None]
                for at, reason in enumerate(reasons):
                    if reason is not None:
                        drops.add(reason, batch.path, batch.rows[at], texts[at] or batch.texts[at])
                texts = [texts[at] for at in kept]
            done += read
            batch.texts.clear()  # whoever holds the batch: a single text may be as large as memory allows
            yield _Cleaned(read, batch, texts, kept, needs)
            del texts


def _decided(task: PackTask, held_out_N2: Hashes, drops: _Drops) -> Iterator[tuple[int, dict[Split, list[str]]]]:
    """Per batch, the number of documents read and the texts of each split; what the fates drop is counted."""
    done = 0
    for cleaned in _cleaned(task.source, drops, task.needs_R):
        read, texts, known = cleaned.read, cleaned.texts, task.fates
        fates = fates_inline(texts, task.share, held_out_N2) if known is None else known[done : done + len(texts)]
        done += len(texts)
        if len(fates) != len(texts):
            break
        if not fates.any():  # all of them trained on
            yield read, {"train": texts, "validation": []}
            continue
        for at in np.flatnonzero(fates > Fate.VALIDATION).tolist():
            row = cleaned.batch.rows[cleaned.kept[at]]
            drops.add(REASON_OF[Fate(fates[at])], cleaned.batch.path, row, texts[at])
        by_fate = {f: [texts[at] for at in np.flatnonzero(fates == f).tolist()] for f in (Fate.TRAIN, Fate.VALIDATION)}
        del cleaned, texts
        yield read, {"train": by_fate[Fate.TRAIN], "validation": by_fate[Fate.VALIDATION]}
    if task.fates is not None and done != len(task.fates):
        path = task.source.part.source
        raise CorpusError(f"pack: {path} changed while it was read ({len(task.fates)} documents, then {done}); run again", path=path)


class _Out:
    """One split of a part: texts in, blocks written."""

    def __init__(self, writer: ShardWriter, encoder: Encoder, settings: Settings) -> None:
        self._writer, self._encoder, self._settings = writer, encoder, settings
        self._packer = Packer(settings.packing, settings.block_tokens, id_dtype(settings.vocabulary))
        self._documents = self._characters = self._utf8_bytes = self._tokens = self._written = self._cut = 0

    def add(self, texts: Sequence[str]) -> None:
        """Encode, pack, and write what is full."""
        if max(map(len, texts), default=0) <= LONG_CHARACTERS:
            self._add_short(texts)
            return
        short: list[str] = []
        for text in texts:
            if len(text) <= LONG_CHARACTERS:
                short.append(text)
                continue
            self._add_short(short)
            self._add_long(text)
            short = []
        self._add_short(short)

    def _add_short(self, texts: Sequence[str]) -> None:
        if not texts:
            return
        ids, lengths = with_ends(*self._encoder.encode_batch(texts), self._settings.start_id, self._settings.end_id)
        self._count(len(texts), texts)
        if self._settings.truncate and int(lengths.max()) > self._settings.block_tokens:
            before = len(ids)
            ids, lengths = truncated(ids, lengths, self._settings.block_tokens)
            self._cut += before - len(ids)
        self._pack(ids, lengths)

    def _add_long(self, text: str) -> None:
        """A piece at a time: the ids of a whole book need much more memory than its text."""
        start, end, before = self._settings.start_id, self._settings.end_id, None
        room = self._settings.block_tokens if self._settings.truncate else sys.maxsize
        for piece in in_pieces(text, self._settings.cuts):
            if before is not None:
                self._pack(before, np.array([len(before)]), unfinished=True)
            ids, offsets = self._encoder.encode_batch([piece])
            before, _ = with_ends(ids, offsets, start, None)
            start = None
            self._count(0, [piece])
            self._cut += max(0, len(before) - room)
            before, room = before[:room], max(0, room - len(before))
        assert before is not None, "a text has at least one piece"
        self._cut += int(end is not None and not room)
        last = before if end is None or not room else np.append(before, np.uint32(end))
        self._pack(last, np.array([len(last)]))
        self._documents += 1

    def _count(self, documents: int, texts: Sequence[str]) -> None:
        """Of encoded texts, which have their UTF-8 by then: Python keeps it beside the characters."""
        self._documents += documents
        self._characters += sum(map(len, texts))
        self._utf8_bytes += sum(map(len, map(str.encode, texts)))

    def _pack(self, ids: Ids, lengths: npt.NDArray[np.int64], unfinished: bool = False) -> None:
        if len(ids) and int(ids.max()) >= self._settings.vocabulary:
            engine, size = self._settings.engine, self._settings.vocabulary
            raise VerificationError(
                f"pack: the {engine} engine gave the id {ids.max()}, the vocabulary has {size}; set pack.engine: tokenizers"
            )
        self._tokens += len(ids)
        for blocks in self._packer.add(ids, lengths, unfinished=unfinished):
            self._write(blocks)

    def _write(self, blocks: Any) -> None:
        self._written += sum(int(ends[-1]) for ends in blocks.ends)
        self._writer.write(blocks)

    def close(self, source: str) -> Shard:
        """Write the rest. Raises: VerificationError when the blocks do not hold every token."""
        self._write(self._packer.finish())
        if self._written != self._tokens:
            raise VerificationError(f"pack: {source} gave {self._tokens} tokens but its blocks hold {self._written}; report this as a bug")
        counts = {"documents": self._documents, "tokens": self._tokens, "cut_tokens": self._cut}
        return self._writer.close(**counts, utf8_bytes=self._utf8_bytes, characters=self._characters)


class _HeldOut:
    """The first held-out texts of a part, as they are, for `evaluate`."""

    def __init__(self) -> None:
        self._texts: list[str] = []
        self._characters = 0

    def add(self, texts: Sequence[str]) -> None:
        for text in texts[: HELD_OUT_DOCUMENTS - len(self._texts)]:
            if not self._texts or self._characters + len(text) <= HELD_OUT_CHARACTERS:
                self._texts.append(text)
                self._characters += len(text)

    def write(self, store: Place, key: str) -> None:
        write_texts(store / key[:2] / f"{key}.held_out.parquet", self._texts)


def write_texts(place: Place, texts: Sequence[str]) -> None:
    """A Parquet file with a column `text`, whole as soon as it has its name: another packer may read it while this one writes it again."""
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"text": pa.array(texts, pa.large_string())}), sink)
    place.write_bytes(sink.getvalue())


def truncated(ids_I: Ids, lengths_N: npt.NDArray[np.int64], most: int) -> tuple[Ids, npt.NDArray[np.int64]]:
    """The first `most` tokens of each document; the ids of all, and the length of each."""
    places_I = np.arange(len(ids_I)) - np.repeat(np.cumsum(lengths_N) - lengths_N, lengths_N)
    return ids_I[places_I < most], np.minimum(lengths_N, most)


def with_ends(ids_I: Ids, offsets: Offsets, start_id: int | None, end_id: int | None) -> tuple[Ids, npt.NDArray[np.int64]]:
    """Put the special tokens around each document; the ids of all, and the length of each."""
    before, added = int(start_id is not None), int(start_id is not None) + int(end_id is not None)
    lengths = np.diff(offsets)
    if not added:
        return ids_I, lengths
    num_documents = len(lengths)
    out = np.empty(len(ids_I) + added * num_documents, np.uint32)
    starts = offsets[:-1] + added * np.arange(num_documents)
    middle = np.ones(len(out), np.bool_)
    if start_id is not None:
        out[starts] = start_id
        middle[starts] = False
    if end_id is not None:
        lasts = starts + before + lengths
        out[lasts] = end_id
        middle[lasts] = False
    out[middle] = ids_I
    return out, lengths + added
