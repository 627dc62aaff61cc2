"""The pack stage: corpus files -> committed shards of token blocks, on Ray Data, one task per file.

Two passes. The first surveys every file (counts, hashes); then the driver decides each document's fate, in the order of files and rows;
the second packs every file by these fates. So neither the number of tasks nor their timing changes a single byte.
"""

import pickle
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import ray
from ray.data import DataContext, TaskPoolStrategy
from ray.data.exceptions import ExecutionTimeoutError
from transformers import PreTrainedTokenizerFast

from zhlm.config.schema import RunConfig, StreamConfig
from zhlm.corpus.files import SourceFile, find_files
from zhlm.errors import ConfigError, CorpusError, DeadlineError, ZhlmError
from zhlm.model.load import load_model_config, local_folder, model_positions
from zhlm.pack.dedup import as_hashes
from zhlm.pack.finish import dropped, finish
from zhlm.pack.split import Fate, Fates, decide
from zhlm.pack.tasks import FileTask, Packed, PackTask, Settings, Split, Survey, on_row, pack_file, survey
from zhlm.records import Progress, Report
from zhlm.storage import Place, Run
from zhlm.tokenizer.encode import choose_encoder
from zhlm.tokenizer.load import load_tokenizer, tokenizer_json, vocabulary_of

HELD_OUT_DOCUMENTS = 5000
"""At most this many go to held_out.parquet, the first ones in the order of files and rows."""
SAMPLE_CHARACTERS = 1_000_000
"""Of all files together, to compare the engines on."""
SLOWEST_BYTES_PER_S = 200_000
"""A file that takes longer than this hangs: the slower engine does ten times as much on one core."""

T = TypeVar("T")
R = TypeVar("R")


@dataclass
class _Stream:
    """A stream on its way through the stage."""

    config: StreamConfig
    training: list[SourceFile]
    held_out: list[SourceFile]
    surveys: list[Survey] = field(default_factory=list)
    """Of the training files, then of the held-out ones."""
    packed: list[Packed] = field(default_factory=list)
    """In the same order."""

    @property
    def files(self) -> list[SourceFile]:
        return [*self.training, *self.held_out]


def run(config: RunConfig, report: Report) -> dict[str, Any]:
    """Pack every stream of the config into the run's block store.

    Raises: CorpusError for a missing, broken or empty corpus, ConfigError for settings that do not fit the tokenizer or the model.
    """
    place = Run.of(config)
    streams = [_find(stream, place, config) for stream in config.streams]
    num_files = sum(len(s.files) for s in streams)
    source = str(local_folder(place.base_model(config), config.base.revision))
    _check_positions(config, source)
    tokenizer = load_tokenizer(source)
    start_id, end_id = _special_ids(config, tokenizer)
    told = _Told(report, num_files)

    _survey_all(streams, config, told, SAMPLE_CHARACTERS // num_files + 1)
    fates = [_decide(stream, config) for stream in streams]
    sample = [text for stream in streams for each in stream.surveys for text in each.sample]
    as_json = tokenizer_json(tokenizer)
    _, engine = choose_encoder(as_json, config.pack.engine, sample)
    settings = Settings(
        tokenizer_json=as_json,
        engine=engine["engine"],
        parallel=num_files < config.resources.pack_tasks,
        vocabulary=vocabulary_of(tokenizer),
        block_tokens=config.pack.block_tokens,
        packing=config.pack.packing,
        start_id=start_id,
        end_id=end_id,
    )
    _pack_all(streams, fates, settings, place.blocks, config, told)
    facts = {s.config.name: finish(place.blocks / s.config.name, s.surveys, s.packed, settings.block_tokens) for s in streams}
    return {"engine": engine, "vocabulary": settings.vocabulary, "streams": facts, "conservation": "checked"}


def _find(stream: StreamConfig, place: Run, config: RunConfig) -> _Stream:
    """The files of a stream; one that is named as held out is not trained on, although `paths` may cover it."""
    held_out = find_files([place.resolve(p) for p in stream.held_out])
    kept_out = {f.path for f in held_out}
    training = [f for f in find_files([place.resolve(p) for p in stream.paths]) if f.path not in kept_out]
    if not training:
        raise CorpusError(f"pack: every file of stream {stream.name} is also in its held_out; name other files in one of the two")
    if not held_out and config.pack.validation_share == 0:
        raise ConfigError(
            f"pack: stream {stream.name} has no held_out files and pack.validation_share is 0, "
            "expected one of the two for validation; set pack.validation_share: 0.01"
        )
    return _Stream(stream, training, held_out)


def _check_positions(config: RunConfig, source: str) -> None:
    positions, asked = model_positions(load_model_config(source)), config.pack.block_tokens
    if positions is not None and asked > positions:
        raise ConfigError(f"pack: block_tokens {asked} exceeds the {positions} positions of {config.base.model}; lower pack.block_tokens")


def _special_ids(config: RunConfig, tokenizer: PreTrainedTokenizerFast) -> tuple[int | None, int | None]:
    """The ids put before and after each document, None for nothing."""
    ids: list[int | None] = []
    for setting, name in (("document_start", config.pack.document_start), ("document_end", config.pack.document_end)):
        token_id = None if name == "none" else getattr(tokenizer, f"{name}_token_id")
        if name != "none" and token_id is None:
            raise ConfigError(
                f"pack: {setting} is {name} but the tokenizer of {config.base.model} has no {name} token; set pack.{setting}: none"
            )
        ids.append(token_id)
    return ids[0], ids[1]


def _survey_all(streams: Sequence[_Stream], config: RunConfig, told: "_Told", sample_characters: int) -> None:
    tasks = [_file_task(stream, file, config, sample_characters) for stream in streams for file in stream.files]
    surveys = iter(_on_every_file(survey, tasks, [t.file for t in tasks], config, lambda s: told.read(s)))
    for stream in streams:
        stream.surveys = [next(surveys) for _ in stream.files]


def _file_task(stream: _Stream, file: SourceFile, config: RunConfig, sample_characters: int) -> FileTask:
    return FileTask(stream.config.name, stream.config.role, file, stream.config.field, config.pack.clean, sample_characters)


def _decide(stream: _Stream, config: RunConfig) -> tuple[list[Fates], list[Fates]]:
    """Fates of the documents in the training and the held-out files; a stream that leaves a split empty is refused."""
    name, share = stream.config.name, config.pack.validation_share
    hashes = [as_hashes(bytes(each.hashes)) for each in stream.surveys]
    training, held_out = hashes[: len(stream.training)], hashes[len(stream.training) :]
    fates = decide(training, held_out, share=share, deduplicate=config.pack.deduplicate)
    num_training = sum(int((f == Fate.TRAIN).sum()) for f in fates[0])
    num_validation = sum(int((f == Fate.VALIDATION).sum()) for f in [*fates[0], *fates[1]])
    if num_training and num_validation:
        return fates
    read, reasons = sum(s.documents for s in stream.surveys), dropped(stream.surveys, [])
    counted = f"{read} documents read" + "".join(f", {reason}: {count}" for reason, count in reasons.items())
    if not num_training:
        remedy = "name text that is not in held_out" if any(map(len, training)) else "name more text, or loosen pack.clean"
        raise CorpusError(f"pack: stream {name} has nothing to train on ({counted}), expected at least one document; {remedy}")
    if stream.held_out:
        raise CorpusError(f"pack: the held_out files of stream {name} keep no document ({counted}); name others or loosen pack.clean")
    enough = min(0.5, 5 / num_training)
    raise CorpusError(
        f"pack: validation_share {share} holds out none of the {num_training} documents of stream {name}, expected at least one; "
        f"set pack.validation_share: {enough:.2g}, or name held_out files"
    )


def _pack_all(
    streams: Sequence[_Stream],
    fates: Sequence[tuple[list[Fates], list[Fates]]],
    settings: Settings,
    blocks: Place,
    config: RunConfig,
    told: "_Told",
) -> None:
    tasks = []
    for stream, fate in zip(streams, fates, strict=True):
        folder = blocks / stream.config.name
        folder.delete()  # what an interrupted attempt left
        tasks += list(_pack_tasks(stream, fate, folder, config))
    results = iter(_on_every_file(partial(pack_file, settings), tasks, [t.source.file for t in tasks], config, lambda p: told.packed(p)))
    for stream in streams:
        stream.packed = [next(results) for _ in stream.files]


def _pack_tasks(stream: _Stream, fates: tuple[list[Fates], list[Fates]], folder: Place, config: RunConfig) -> Iterator[PackTask]:
    of_training: tuple[Split, ...] = ("train",) if stream.held_out else ("train", "validation")
    wanted = HELD_OUT_DOCUMENTS
    for files, file_fates, splits in ((stream.training, fates[0], of_training), (stream.held_out, fates[1], ("validation",))):
        for index, (file, fate) in enumerate(zip(files, file_fates, strict=True)):
            held_out = min(wanted, int((fate == Fate.VALIDATION).sum()))
            wanted -= held_out
            yield PackTask(_file_task(stream, file, config, 0), index, str(folder), fate, splits, held_out)


def _on_every_file(
    function: Callable[[T], R], tasks: Sequence[T], files: Sequence[SourceFile], config: RunConfig, done: Callable[[R], None]
) -> list[R]:
    """function(task) for every file in Ray Data tasks, results in the order of the tasks; `done` hears of each as soon as it is there."""
    rows = [{"index": i, "task": pickle.dumps(task)} for i, task in enumerate(tasks)]
    results: dict[int, R] = {}
    with _quiet(1800 + max(f.size_bytes for f in files) / SLOWEST_BYTES_PER_S):
        mapped = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
            partial(on_row, function), num_cpus=1, compute=TaskPoolStrategy(size=min(len(rows), config.resources.pack_tasks))
        )
        try:
            for row in mapped.iter_rows():
                result = pickle.loads(row["result"])
                if isinstance(result, ZhlmError):
                    raise result
                results[row["index"]] = result
                done(result)
        except ExecutionTimeoutError as error:
            left = next(files[i].path for i in range(len(tasks)) if i not in results)
            raise DeadlineError(
                f"pack: no file was finished for too long, {left} is waited for; does the cluster have a free CPU?"
            ) from error
    return [results[i] for i in range(len(tasks))]


@contextmanager
def _quiet(deadline_s: float) -> Iterator[None]:
    """Ray Data without its own progress bars, and with a deadline; what was set before is put back."""
    context = DataContext.get_current()
    wanted = {"enable_progress_bars": False, "print_on_execution_start": False, "execution_no_progress_timeout_s": deadline_s}
    before = {name: getattr(context, name) for name in wanted}
    try:
        for name, value in wanted.items():
            setattr(context, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(context, name, value)


class _Told:
    """Progress in files; reading and packing are half of each."""

    def __init__(self, report: Report, num_files: int) -> None:
        self._report, self._num_files = report, num_files
        self._done = 0.0
        self._documents = self._tokens = 0
        self._packing_since = 0.0
        self._tell({"step": "reading"})

    def read(self, survey: Survey) -> None:
        self._done += 0.5
        self._documents += survey.documents
        self._packing_since = time.monotonic()
        self._tell({"step": "reading", "documents": self._documents})

    def packed(self, packed: Packed) -> None:
        self._done += 0.5
        self._tokens += sum(s.tokens for s in packed.shards.values())
        rate = self._tokens / max(time.monotonic() - self._packing_since, 1e-3)
        self._tell({"step": "packing", "documents": self._documents, "tokens": self._tokens, "tokens_per_s": round(rate)})

    def _tell(self, facts: dict[str, float | int | str]) -> None:
        self._report(Progress("pack", self._done, self._num_files, "files", facts))
