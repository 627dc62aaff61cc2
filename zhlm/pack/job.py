"""The pack stage: corpus files -> committed shards of token blocks, on Ray Data, one task per part of the corpus.

Where copies are looked for, a first pass surveys every part (counts, hashes) and the driver decides each document's fate; then the plan is
written, and every part that the store does not have yet is packed, in the order in which training will read it. Neither the number of tasks
nor their timing, nor the names or the listing order of the files, changes a byte.
"""

import pickle
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import ray
from ray.data import DataContext, TaskPoolStrategy
from ray.data._internal.execution.resource_manager import ResourceManager
from ray.data.exceptions import ExecutionTimeoutError
from ray.exceptions import GetTimeoutError
from transformers import PretrainedConfig, PreTrainedTokenizerFast

from zhlm.blocks.order import packing_order
from zhlm.blocks.store import Ledger, Part, beat, find_part, write_plan
from zhlm.config.schema import RunConfig
from zhlm.corpus.read import text_field
from zhlm.errors import ConfigError, DeadlineError, StorageError, ZhlmError
from zhlm.model.load import load_model_config, local_folder, model_positions
from zhlm.objectives.choose import objective_of
from zhlm.pack.finish import finish
from zhlm.pack.planning import Stream, find_stream, held_out_hashes, make_plan, pack_tasks, recipe_of, refuse_empty, survey_tasks
from zhlm.pack.survey import Survey
from zhlm.pack.tasks import PackTask, Settings, SurveyTask, beginnings, pack_part, survey
from zhlm.pack.worker import answer, on_row, ready
from zhlm.records import Progress, Report
from zhlm.storage import Place, Run
from zhlm.tokenizer.encode import choose_encoder
from zhlm.tokenizer.load import digest_of, load_tokenizer, tokenizer_json, vocabulary_of
from zhlm.tokenizer.long import safe_cuts
from zhlm.tokenizer.special import DocumentToken, document_token

SAMPLE_PARTS = 16
SAMPLE_CHARACTERS = 200_000
"""Of all sampled parts together, to compare the engines on."""
LITTLE_BYTES = 1 << 20
SAMPLE_TIMEOUT_S = 1800
SLOWEST_BYTES_PER_S = 200_000
"""A part that takes longer than this hangs: the slower engine does ten times as much on one core."""
MOST_TOGETHER = 8
BEAT_S = 5.0
STORE_THREADS = 16

T = TypeVar("T", SurveyTask, PackTask)
R = TypeVar("R")


def run(config: RunConfig, report: Report) -> dict[str, Any]:
    """Pack every stream of the config: plan and ledger into the run folder, data files into the shared store.

    Raises: CorpusError for a missing, broken or empty corpus, ConfigError for settings that do not fit the tokenizer or the model.
    """
    place = Run.of(config)
    with _heartbeat(place.blocks):
        _wake_workers(config.resources.pack_tasks)
        streams = [find_stream(stream, config, place.resolve) for stream in config.streams]
        told = _Told(report, streams)
        settings, facts, recipe = _prepare(config, place, streams)
        surveying = [(s, t) for s in streams for t in survey_tasks(s, config.pack, str(place.store))]
        _survey_all(surveying, config, told)
        tasks = pack_tasks(streams, config.pack, recipe)
        settings = replace(settings, held_out_N2=held_out_hashes(streams, config.pack))
        for stream in streams:  # signatures of a large corpus are gigabytes
            stream.surveys.clear()
        write_plan(place.blocks, make_plan(tasks, recipe))
        parts = _pack_all(streams, tasks, settings, config, place, told)
        packed = {s.name: _finish(s, parts[s.name], place, config) for s in streams}
    return {
        **facts,
        "vocabulary": settings.vocabulary,
        "recipe": recipe,
        "streams": packed,
        "conservation": "checked",
        "summary": told.summary() + _stand_ins(facts["document_tokens"]),
    }


def _wake_workers(most: int) -> None:
    """Have processes started and their imports done while the driver looks at the corpus. Nobody waits for them.

    No more than there are CPUs: an autoscaler would start nodes for them before it is known whether anything is left to pack.
    """
    if not ray.is_initialized():  # a caller of a few small files works without
        return
    remote: Any = ray.remote(num_cpus=1)(ready)
    for _ in range(min(most, int(ray.cluster_resources().get("CPU", 0)))):
        remote.remote()


def _prepare(config: RunConfig, place: Run, streams: Sequence[Stream]) -> tuple[Settings, dict[str, Any], dict[str, Any]]:
    """Tokenizer and engine, what is to be said of them, and the recipe that follows."""
    source = str(local_folder(place.base_model(config), config.base.revision, weights=False))
    model_config = load_model_config(source)
    _check_positions(config, model_config)
    sampling = _begin_sample(streams)
    tokenizer = load_tokenizer(source)
    objective_of(config, tokenizer, model_config)  # what it lacks is said now, not after hours of packing
    start, end = _document_tokens(config, tokenizer)
    as_json, sample = tokenizer_json(tokenizer), _sample(sampling)
    encoder, engine = choose_encoder(as_json, config.pack.engine, sample)
    settings = Settings(
        store=str(place.store),
        tokenizer_json=as_json,
        engine=engine["engine"],
        cuts=safe_cuts(encoder, sample),
        parallel=sum(len(s.training) + len(s.held_out) for s in streams) < config.resources.pack_tasks,
        vocabulary=vocabulary_of(tokenizer),
        block_tokens=config.pack.block_tokens,
        packing=config.pack.packing,
        truncate=config.pack.truncate,
        start_id=start.id if start else None,
        end_id=end.id if end else None,
    )
    tokens = {where: token and token._asdict() for where, token in (("start", start), ("end", end))}
    return settings, {"engine": engine, "document_tokens": tokens}, recipe_of(settings, digest_of(tokenizer), config.pack)


def _check_positions(config: RunConfig, model_config: PretrainedConfig) -> None:
    positions, asked = model_positions(model_config), config.pack.block_tokens
    if positions is not None and asked > positions:
        raise ConfigError(f"pack: block_tokens {asked} exceeds the {positions} positions of {config.base.model}; lower pack.block_tokens")


def _document_tokens(config: RunConfig, tokenizer: PreTrainedTokenizerFast) -> tuple[DocumentToken | None, DocumentToken | None]:
    """What is put before and after each document, None for nothing."""
    found: list[DocumentToken | None] = []
    for setting, name in (("document_start", config.pack.document_start), ("document_end", config.pack.document_end)):
        token = document_token(tokenizer, name)
        if name != "none" and token is None:
            raise ConfigError(
                f"pack: {setting} is {name} but the tokenizer of {config.base.model} has no {name} token; set pack.{setting}: none, "
                f"or add one with vocab.special_tokens.{name}_token"
            )
        found.append(token)
    return found[0], found[1]


def _stand_ins(tokens: dict[str, Any]) -> str:
    """For the person, where BERT's tokens stand in for those that were asked for."""
    verbs = {"start": "begin", "end": "end"}
    found = [f"{verbs[where]} with {token['text']}" for where, token in tokens.items() if token and token["role"] in ("cls", "sep")]
    return f"; documents {' and '.join(found)}, for the tokenizer has no bos or eos" if found else ""


def _begin_sample(streams: Sequence[Stream]) -> Any:
    """Have some texts of every stream read, from parts spread over it; by a task, because one text may be more than the driver can hold."""
    wanted = []
    for stream in streams:
        chosen = stream.training[:: -(-len(stream.training) // max(1, SAMPLE_PARTS // len(streams)))]
        wanted += [(source, SAMPLE_CHARACTERS // len(streams) // len(chosen)) for source in chosen]
    task: Any = ray.remote(num_cpus=1, max_retries=2)(answer)
    return task.remote(beginnings, wanted)


def _sample(sampling: Any) -> list[str]:
    try:
        pickled = ray.get(sampling, timeout=SAMPLE_TIMEOUT_S)
    except GetTimeoutError as error:
        raise DeadlineError(f"pack: no sample was read within {SAMPLE_TIMEOUT_S} s; does the cluster have a free CPU?") from error
    result: list[str] | ZhlmError = pickle.loads(pickled)
    if isinstance(result, ZhlmError):
        raise result
    return result


def _survey_all(surveying: Sequence[tuple[Stream, Any]], config: RunConfig, told: "_Told") -> None:
    tasks = [task for _, task in surveying]

    def done(index: int, found: Survey) -> None:
        stream, task = surveying[index]
        stream.surveys[task.source.part.key] = found
        told.surveyed(len(surveying), found)

    sizes = [t.source.part.size_bytes for t in tasks]
    if sum(sizes) <= LITTLE_BYTES and all(sizes):  # sooner done than sent
        for index, task in enumerate(tasks):
            done(index, survey(task))
        return
    _on_every_part(survey, tasks, sizes, config, done, "surveyed")


def _pack_all(
    streams: Sequence[Stream], tasks: dict[str, list[PackTask]], settings: Settings, config: RunConfig, place: Run, told: "_Told"
) -> dict[str, list[Part]]:
    """Commit what the store has and pack what it has not. Returns the parts of each stream, in the plan's order."""
    order = _packing_order(streams, tasks, config.seed)
    with ThreadPoolExecutor(STORE_THREADS) as pool:
        looked = pool.map(lambda at: find_part(place.store, tasks[at[0]][at[1]].key), order)
        parts = {at: found[0] for at, found in zip(order, looked, strict=True) if found}
    ledger = Ledger(place.blocks)
    ledger.start(parts)
    told.reused(parts.values())
    missing = [at for at in order if at not in parts]

    def done(index: int, part: Part) -> None:
        ledger.append(*missing[index], part)
        parts[missing[index]] = part
        told.packed(part)

    wanted = [tasks[name][number] for name, number in missing]
    _on_every_part(partial(pack_part, settings), wanted, [t.source.part.size_bytes for t in wanted], config, done, "packed")
    ledger.flush()
    return {name: [parts[name, number] for number in range(len(each))] for name, each in tasks.items()}


def _packing_order(streams: Sequence[Stream], tasks: dict[str, list[PackTask]], seed: int) -> list[tuple[str, int]]:
    """(stream, number in the plan): held-out parts first, then the others as training will ask for them."""
    first = [(s.name, n) for s in streams for n in range(len(s.training), len(tasks[s.name]))]
    sizes = [[t.part.size_bytes for t in s.training] for s in streams]
    return first + [(streams[s].name, n) for s, n in packing_order(sizes, [s.config.weight for s in streams], seed)]


def _finish(stream: Stream, parts: list[Part], place: Run, config: RunConfig) -> dict[str, Any]:
    facts = finish(place.blocks / stream.name, place.store, parts, config.pack.block_tokens)
    training, validation = facts["train"]["documents"], facts["validation"]["documents"]
    refuse_empty(stream, config.pack, training=training, validation=validation, read=facts["documents_in"], dropped=facts["dropped"])
    first = stream.training[0]
    return {"field": text_field(first.part.pieces[0].file, first.field) or None} | facts


def _on_every_part(
    function: Callable[[T], R],
    tasks: Sequence[T],
    sizes: Sequence[int],
    config: RunConfig,
    done: Callable[[int, R], None],
    verb: str,
) -> None:
    """function(task) for every part in Ray Data tasks; `done` hears of each, with its number, as soon as it is there."""
    if not tasks:
        return
    workers = min(len(tasks), config.resources.pack_tasks)
    rows = [{"tasks": pickle.dumps([(i, tasks[i]) for i in group])} for group in dealt(len(tasks), workers)]
    left = set(range(len(tasks)))
    with _quiet(1800 + max(sizes) / SLOWEST_BYTES_PER_S):
        mapped = ray.data.from_items(rows, override_num_blocks=len(rows)).flat_map(
            partial(on_row, function, uuid.uuid4().hex), num_cpus=1, compute=TaskPoolStrategy(size=workers)
        )
        # Not iter_rows: its thread outlives an interruption, and Ray ends a program that asks for anything after ray.shutdown().
        bundles = mapped.iter_internal_ref_bundles()
        try:
            for bundle in bundles:
                for row in (row for block in ray.get(bundle.block_refs) for row in block.to_pylist()):
                    result = pickle.loads(row["answer"])
                    if isinstance(result, ZhlmError):
                        raise result
                    left.remove(row["index"])
                    done(row["index"], result)
        except ExecutionTimeoutError as error:
            raise DeadlineError(
                f"pack: no part was {verb} for too long, {len(left)} of {len(tasks)} are waited for; does the cluster have a free CPU?"
            ) from error
        finally:
            del bundles  # ends the threads of Ray Data here and now; the traceback of an error would keep it


def dealt(count: int, workers: int) -> list[list[int]]:
    """The numbers of all parts in groups, one for each Ray Data task.

    Ray Data looks after its tasks every 0.1 s only, so a worker gets several parts at once while there are many, and single ones at the
    end, when all should finish together. Neighbours go to different workers: what is trained on first is packed first.
    """
    groups: list[list[int]] = []
    done = 0
    while done < count:
        together = min(count - done, workers * max(1, min(MOST_TOGETHER, (count - done) // (2 * workers))))
        groups += [list(range(done + w, done + together, workers)) for w in range(min(workers, together))]
        done += together
    return groups


@contextmanager
def _quiet(deadline_s: float) -> Iterator[None]:
    """Ray Data without its own progress bars, with a deadline, and with answers one by one; what was set before is put back."""
    context = DataContext.get_current()
    wanted = [
        (context, "enable_progress_bars", False),
        (context, "print_on_execution_start", False),
        (context, "execution_no_progress_timeout_s", deadline_s),
        (context, "target_max_block_size", 1),  # byte: every answer travels as soon as it is there
        # Every second Ray Data asks how many CPUs there are, and believes for the first one that there are none: it runs a single task.
        (ResourceManager, "GLOBAL_LIMITS_UPDATE_INTERVAL_S", 0.1),
    ]
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in wanted]
    try:
        for owner, name, value in wanted:
            setattr(owner, name, value)
        yield
    finally:
        for owner, name, value in before:
            setattr(owner, name, value)


@contextmanager
def _heartbeat(blocks: Place) -> Iterator[None]:
    """Tells readers that wait for blocks that somebody is at work, until it says how the work ended."""
    stop = threading.Event()

    def tell() -> None:
        while not stop.wait(BEAT_S):
            with suppress(StorageError):  # the next one may get through
                beat(blocks, "packing")

    beat(blocks, "packing")
    thread = threading.Thread(target=tell, daemon=True, name="zhlm-pack-heartbeat")
    thread.start()
    message: str | None = "it was interrupted"
    try:
        yield
        message = None
    except Exception as error:
        message = str(error)
        raise
    finally:
        stop.set()
        thread.join(timeout=60)
        with suppress(StorageError) if message is not None else nullcontext():  # what ended the work is what the user must hear
            beat(blocks, "done" if message is None else "failed", message or "")


class _Told:
    """Progress in shards; where all of them are surveyed first, that is half of the work on each."""

    def __init__(self, report: Report, streams: Sequence[Stream]) -> None:
        sources = [source for s in streams for source in [*s.training, *s.held_out]]
        self._report, self._total = report, len(sources)
        self._source_bytes = sum(source.part.size_bytes for source in sources)
        self._done, self._per_shard = 0.0, 1.0
        self._documents = self._tokens = self._reused = self._tokens_reused = 0
        self._started_s = self._packing_s = time.monotonic()
        self._tell({"step": "looking"})

    def surveyed(self, of: int, found: Survey) -> None:
        if of == self._total:
            self._per_shard = 0.5
            self._done += 0.5
        self._documents += found.documents
        self._packing_s = time.monotonic()
        self._tell({"step": "reading", "documents": self._documents})

    def reused(self, parts: Iterable[Part]) -> None:
        for part in parts:
            self._reused += 1
            self._done += self._per_shard
            self._tokens += sum(s.tokens for s in part.shards.values())
        self._tokens_reused = self._tokens

    def packed(self, part: Part) -> None:
        self._done += self._per_shard
        self._tokens += sum(s.tokens for s in part.shards.values())
        rate = (self._tokens - self._tokens_reused) / max(time.monotonic() - self._packing_s, 1e-3)
        reused = {"reused": self._reused} if self._reused else {}
        self._tell({"step": "packing", "tokens": self._tokens, "tokens_per_s": round(rate), **reused})

    def summary(self) -> str:
        rate = self._source_bytes / 1e6 / max(time.monotonic() - self._started_s, 1e-3)
        reused = f", {self._reused} of {self._total} shards reused" if self._reused else ""
        return f"{self._tokens:,} tokens in {self._total} shards, {rate:.1f} MB/s{reused}"

    def _tell(self, facts: dict[str, float | int | str]) -> None:
        self._report(Progress("pack", self._done, self._total, "shards", facts))
