"""From a config's streams to the parts that are packed: their keys, the fate of every document, and what is refused before any work."""

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from zhlm.blocks.store import Plan, Planned, Split
from zhlm.config.schema import PackConfig, RunConfig, StreamConfig
from zhlm.corpus.files import SourceFile
from zhlm.corpus.parts import parts_of
from zhlm.corpus.streams import files_of, held_out_of
from zhlm.errors import ConfigError, CorpusError
from zhlm.pack.dedup import Hashes, among
from zhlm.pack.split import Fate, Fates, decide, drop_near, held_out_by_hash
from zhlm.pack.survey import Survey
from zhlm.pack.tasks import PackTask, Settings, Source, SurveyTask
from zhlm.storage import digest
from zhlm.text.clean import Needs

RECIPE_VERSION = 2
"""Raised when the same settings and files give other blocks than before."""

_NONE: Hashes = np.empty((0, 2), np.uint64)


@dataclass
class Stream:
    """A stream on its way through the stage."""

    config: StreamConfig
    training: list[Source]
    held_out: list[Source]
    surveys: dict[str, Survey] = field(default_factory=dict)
    """By the key of the source part."""

    @property
    def name(self) -> str:
        return self.config.name

    def surveyed(self, sources: Sequence[Source]) -> list[Survey]:
        return [self.surveys[s.part.key] for s in sources]


def find_stream(stream: StreamConfig, config: RunConfig, resolve: Callable[[str], str]) -> Stream:
    """The parts of a stream. Raises: CorpusError or ConfigError for a stream that can't give both splits."""
    training, held_out = files_of(stream, resolve), held_out_of(stream, resolve)
    if not held_out and config.pack.validation_share == 0:
        raise ConfigError(
            f"pack: stream {stream.name} has no held_out files and pack.validation_share is 0, "
            "expected one of the two for validation; set pack.validation_share: 0.01"
        )

    def sources(files: Sequence[SourceFile]) -> list[Source]:
        parts = parts_of(files, config.pack.shard_bytes)
        return [Source(stream.role, part, stream.field, config.pack.clean, stream.skip_non_text) for part in parts]

    return Stream(stream, sources(training), sources(held_out))


def survey_tasks(stream: Stream, pack: PackConfig, store: str) -> list[SurveyTask]:
    """The parts whose documents must be known before any is packed: all of them where copies are looked for, else the held-out ones."""
    everything = pack.deduplicate or pack.near_duplicates is not None
    sources = [*stream.training, *stream.held_out] if everything else stream.held_out
    near = pack.near_duplicates is not None
    return [SurveyTask(source, store, digest({"survey": RECIPE_VERSION, "near": near} | _content(source)), near) for source in sources]


def recipe_of(settings: Settings, tokenizer_digest: str, pack: PackConfig) -> dict[str, Any]:
    """Everything but the files that decides the blocks, in plain words."""
    return {
        "version": RECIPE_VERSION,
        "tokenizer": tokenizer_digest,
        "engine": settings.engine,
        "vocabulary": settings.vocabulary,
        "block_tokens": settings.block_tokens,
        "packing": settings.packing,
        "start_id": settings.start_id,
        "end_id": settings.end_id,
        "clean": pack.clean.model_dump(mode="json"),
        "deduplicate": pack.deduplicate,
        "near_duplicates": pack.near_duplicates,
        "shard_bytes": pack.shard_bytes,
        "validation_share": pack.validation_share,
        **({"truncate": True} if settings.truncate else {}),
    }


def pack_tasks(streams: Sequence[Stream], pack: PackConfig, recipe: dict[str, Any]) -> dict[str, list[PackTask]]:
    """What to pack of each stream, with the fate of every document that the survey knows. Training parts first, then the held-out ones."""
    known = hashlib.sha256(held_out_hashes(streams, pack).tobytes()).hexdigest()
    decided = _decide(streams, pack) if pack.deduplicate or pack.near_duplicates is not None else None
    tasks = {}
    for n, stream in enumerate(streams):
        of_training: tuple[Split, ...] = ("train",) if stream.held_out else ("train", "validation")
        if decided is not None:
            fates = decided[n]
            training = [_decided(source, of_training, f, recipe) for source, f in zip(stream.training, fates, strict=False)]
        else:
            share = 0.0 if stream.held_out else pack.validation_share
            training = [_undecided(source, of_training, share, known, recipe) for source in stream.training]
            fates = [np.full(len(s.hashes_N2), Fate.VALIDATION, np.uint8) for s in stream.surveyed(stream.held_out)]
        of_held_out = fates[len(fates) - len(stream.held_out) :]
        held_out = [_decided(source, ("validation",), f, recipe) for source, f in zip(stream.held_out, of_held_out, strict=True)]
        tasks[stream.name] = [replace(task, needs_R=_needs(stream, task.source)) for task in [*training, *held_out]]
    return tasks


def held_out_hashes(streams: Sequence[Stream], pack: PackConfig) -> Hashes:
    """Of all documents that some stream validates on, sorted; none where fates are decided before packing."""
    if pack.deduplicate or pack.near_duplicates is not None:
        return _NONE
    hashes: Hashes = np.concatenate([_NONE, *(_validation_hashes(stream, pack) for stream in streams)])
    in_order: Hashes = hashes[np.lexsort((hashes[:, 1], hashes[:, 0]))]
    return in_order


def _validation_hashes(stream: Stream, pack: PackConfig) -> Hashes:
    """Of the documents that the stream validates on, as far as they are surveyed: no other stream may train on them."""
    share = 0.0 if stream.held_out else pack.validation_share
    surveyed = [stream.surveys[s.part.key].hashes_N2 for s in stream.training if s.part.key in stream.surveys]
    by_hash = [hashes[held_out_by_hash(hashes, share)] for hashes in surveyed]
    return np.concatenate([_NONE, *by_hash, *(s.hashes_N2 for s in stream.surveyed(stream.held_out))])


def _content(source: Source) -> dict[str, Any]:
    """What a part's cleaned texts depend on."""
    skips = {"skip_non_text": True} if source.skip_non_text else {}  # only then: what is in the store keeps its key
    return {"part": source.part.key, "field": source.field, "role": source.role, "clean": source.clean.model_dump(mode="json")} | skips


def _key(source: Source, splits: Sequence[Split], recipe: dict[str, Any], decided: Any) -> str:
    """Two runs that share it share the blocks: how the fates were decided does not matter, only what they are."""
    packing = {k: recipe[k] for k in ("version", "tokenizer", "engine", "block_tokens", "packing", "start_id", "end_id")}
    return digest({"packing": packing, "splits": list(splits), "decided": decided} | _content(source))


def _decided(source: Source, splits: tuple[Split, ...], fates: Fates, recipe: dict[str, Any]) -> PackTask:
    return PackTask(source, _key(source, splits, recipe, hashlib.sha256(fates.tobytes()).hexdigest()), splits, fates)


def _undecided(source: Source, splits: tuple[Split, ...], share: float, held_out: str, recipe: dict[str, Any]) -> PackTask:
    """`held_out`: a hash of the hashes of what may not be trained on."""
    return PackTask(source, _key(source, splits, recipe, [share, held_out]), splits, None, share)


def _needs(stream: Stream, source: Source) -> Needs | None:
    survey = stream.surveys.get(source.part.key)
    return None if survey is None else survey.needs_R


def _decide(streams: Sequence[Stream], pack: PackConfig) -> list[list[Fates]]:
    """Per stream, fates of the documents in the training and then the held-out parts; a stream that leaves a split empty is refused."""
    validation = [_validation_hashes(stream, pack) for stream in streams]
    surveys = [stream.surveyed([*stream.training, *stream.held_out]) for stream in streams]
    decided = []
    for n, (stream, each) in enumerate(zip(streams, surveys, strict=True)):
        hashes, num_training = [s.hashes_N2 for s in each], len(stream.training)
        training, held_out = hashes[:num_training], hashes[num_training:]
        of_training, of_held_out = decide(training, held_out, share=pack.validation_share, deduplicate=pack.deduplicate)
        elsewhere = np.concatenate([_NONE, *validation[:n], *validation[n + 1 :]])
        found = among(np.concatenate([_NONE, *training]), [elsewhere])  # sorts those from elsewhere, so only once
        for fates, there in zip(of_training, np.split(found, np.cumsum([len(part) for part in training])[:-1]), strict=True):
            fates[(fates == Fate.TRAIN) & there] = Fate.IN_HELD_OUT
        decided.append([*of_training, *of_held_out])
    if pack.near_duplicates is not None:
        signatures = [[s.signatures_NK for s in each if s.signatures_NK is not None] for each in surveys]
        drop_near(list(zip(decided, signatures, strict=True)), pack.near_duplicates)
    for stream, each, of_stream in zip(streams, surveys, decided, strict=True):
        dropped = sum((Counter(survey.dropped) for survey in each), Counter[str]())
        every, read = np.concatenate(of_stream), sum(survey.documents for survey in each)
        training_left, validation_left = (int((every == fate).sum()) for fate in (Fate.TRAIN, Fate.VALIDATION))
        refuse_empty(stream, pack, training=training_left, validation=validation_left, read=read, dropped=dropped)
    return decided


def refuse_empty(stream: Stream, pack: PackConfig, *, training: int, validation: int, read: int, dropped: Mapping[str, int]) -> None:
    """Raises: CorpusError when a stream has no document to train on, or none to validate on."""
    counted, name = f"{read} documents read" + "".join(f", {reason}: {count}" for reason, count in sorted(dropped.items())), stream.name
    if not training:
        remedy = (
            "name text that is not in held_out" if read > sum(dropped.values()) + validation else "name more text, or loosen pack.clean"
        )
        raise CorpusError(f"pack: stream {name} has nothing to train on ({counted}), expected at least one document; {remedy}")
    if validation:
        return
    if stream.held_out:
        raise CorpusError(f"pack: the held_out files of stream {name} keep no document ({counted}); name others or loosen pack.clean")
    raise CorpusError(
        f"pack: validation_share {pack.validation_share} holds out none of the {training} documents of stream {name}, "
        f"expected at least one; set pack.validation_share: {min(0.5, 5 / training):.2g}, or name held_out files"
    )


def make_plan(tasks: Mapping[str, Sequence[PackTask]], recipe: dict[str, Any]) -> Plan:
    """The plan of a run, from every stream's tasks."""
    return Plan(recipe, {name: tuple(Planned(t.key, t.source.part.source, t.splits) for t in each) for name, each in tasks.items()})
