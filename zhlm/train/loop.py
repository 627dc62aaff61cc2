"""What each training worker runs: build, restore, then step by step forward, backward, optimizer, account."""

import math
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np
import ray
import ray.train
import ray.train.torch
import torch
from ray.exceptions import RayError
from torch import distributed

from zhlm.adapt.lora import make_trainable
from zhlm.adapt.new_rows import new_rows_of
from zhlm.blocks.read import BlockReader, training_reader
from zhlm.blocks.store import Ledger, read_plan
from zhlm.checkpoint.saver import Keep, Saver, newest_together
from zhlm.checkpoint.state import Checkpoint, Scores, TrainState
from zhlm.config.schema import RunConfig
from zhlm.errors import DeadlineError, RunError, StorageError, TrainError, UserError
from zhlm.model.load import load_base, local_folder
from zhlm.model.packed import take_documents
from zhlm.objectives.batch import BatchMaker
from zhlm.objectives.choose import objective_of
from zhlm.objectives.fused import Loss
from zhlm.objectives.isolation import check_isolation
from zhlm.storage import Place, Run
from zhlm.tokenizer.load import load_tokenizer
from zhlm.train.early_stop import EarlyStop
from zhlm.train.engine import Engine, load_trainable
from zhlm.train.feed import FailedElsewhere, Feed, Regroup
from zhlm.train.metrics import BlockTrace, MetricsLog, read_rows
from zhlm.train.schedule import Share, deal, rate_factor, share_of, steps_at_the_peak
from zhlm.train.shortage import Shortage, memory_for
from zhlm.train.validate import HeldOut, held_out, validate


@dataclass(frozen=True)
class Settings:
    """Plain data that the driver hands to every worker."""

    config: RunConfig
    folder: str
    """The run folder, absolute or remote."""
    steps: int
    made_for: dict[str, Any] = field(default_factory=dict)
    """What a checkpoint can be taken up for: see checkpoint/made_for.py."""


@dataclass
class Worker:
    """What one rank holds through the whole loop."""

    settings: Settings
    run: Run
    rank: int
    world_size: int
    device: torch.device
    share: Share
    reader: BlockReader
    objective: BatchMaker
    engine: Engine
    loss: Loss
    held_out: list[HeldOut]
    waits: "_Waits"

    def deal(self, step: int) -> list[list[int]]:
        """This rank's block indices in each pass of a step."""
        return deal(step, self.rank, self.world_size, self.settings.config.train.global_batch_blocks, self.share)


def train_worker(settings: dict[str, Any]) -> None:
    """Entry point under TorchTrainer. Errors with a name go to the board, for the driver, and end all workers for good (elastic.py)."""
    board = settings.pop("board")
    config = RunConfig.model_validate_json(settings.pop("config"))
    try:
        _train(Settings(config, **settings), board)
    except (UserError, TrainError, DeadlineError) as error:
        ray.get(board.fail.remote(error), timeout=60)
        raise TrainError(str(error)) from error  # the other ranks may not have met it, and would wait for this one
    except FailedElsewhere:
        return
    except Shortage as shortage:  # raised, for the others may wait for this rank; elastic.py starts nobody again for it
        raise shortage.told(config, ray.train.get_context().get_world_size()) from shortage


class _Waits:
    """What a rank waits for. Readers look ahead, so that it is told only when nothing can be done meanwhile."""

    def __init__(self, board: Any) -> None:
        self._board, self._ahead, self._ask_next_s = board, "", 0.0

    def note(self, what: str) -> None:
        self._ahead = what

    def tell(self, what: str | None = None) -> None:
        self._board.wait.remote((what or self._ahead).removeprefix("train waits for "))

    def asked(self) -> str:
        """Why the workers should leave, if they should. One rank asks, once a second: a millisecond, and the feed tells all of them."""
        if time.monotonic() < self._ask_next_s or ray.train.get_context().get_world_rank() != 0:
            return ""
        self._ask_next_s = time.monotonic() + 1
        with suppress(RayError):  # a driver that is busy or out of reach now can ask later
            return str(ray.get(self._board.asked.remote(), timeout=10))
        return ""


def _train(settings: Settings, board: Any) -> None:
    train = settings.config.train
    checkpoints = Run(Place(settings.folder)).checkpoints
    found, passed_over = newest_together(checkpoints)
    state = found.state if found else TrainState()
    rows = read_rows(Run(Place(settings.folder)).metrics, state.step)
    # A run that was shorter once measured at its own end as well.
    stop = EarlyStop(settings.config, [r for r in rows if r["step"] % train.validate_every == 0 or r["step"] == settings.steps])
    worker = _build(settings, found, _Waits(board))
    log = MetricsLog(worker.run, state.step) if worker.rank == 0 else None
    teller = _Teller(board, log, worker, passed_over, state)
    trace = BlockTrace(worker.run.folder / "trace", worker.rank, worker.world_size, state.step, worker.reader)

    if worker.loss.facts:
        teller.note(state, **worker.loss.facts)
    if state.step == 0:
        _validate(worker, state, stop, teller)
    with (
        _feed(worker, range(state.step, settings.steps)) as feed,
        _saver(worker, teller, trace, state) as saver,
    ):
        while state.step < settings.steps and not stop.due:
            started_s = time.monotonic()
            worker.engine.set_rates(rate_factor(state.step, settings.steps, train))
            try:
                loss_nats, targets, tokens = _step(worker, feed, trace, state.step)
            except Regroup:
                saver.save(state, wait=True)
                raise
            state = TrainState(
                step=state.step + 1,
                consumed_blocks=state.consumed_blocks + train.global_batch_blocks,
                tokens=state.tokens + tokens,
                seconds=state.seconds + time.monotonic() - started_s,
            )
            last = state.step == settings.steps
            if not targets:
                teller.note(state, nothing_to_learn=True)
            if state.step % train.log_every == 0 or last:
                rate = train.learning_rate * rate_factor(state.step - 1, settings.steps, train)
                teller.tell_step(state, feed.waited_s, loss_nats=loss_nats, grad_norm=worker.engine.grad_norm(), learning_rate=rate)
            scores = None
            if state.step % train.validate_every == 0 or last:
                scores = _validate(worker, state, stop, teller)
            if state.step % train.checkpoint_every == 0 or last or stop.due or state.step == steps_at_the_peak(settings.steps, train):
                blocked_s = saver.save(state, scores, wait=last or stop.due)
                teller.note(state, checkpoint_blocked_s=round(blocked_s, 5))
            saver.look()
        teller.catch_up()


def _feed(worker: Worker, steps: range) -> Feed:
    return Feed(worker.reader, worker.deal, steps, worker.share.micro_blocks, worker.objective, worker.device)


@memory_for("a validation")
def _validate(worker: Worker, state: TrainState, stop: EarlyStop, teller: "_Teller") -> Scores:
    scores = validate(worker.engine.deepspeed, worker.held_out, worker.device, worker.loss)
    stop.note(scores)
    teller.tell(state, validation=scores, **({"stopped_early": True} if stop.due else {}))
    return scores


@memory_for("building the model")
def _build(settings: Settings, found: Checkpoint | None, waits: _Waits) -> Worker:
    config, train = settings.config, settings.config.train
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    device = ray.train.torch.get_device()
    share = share_of(train.global_batch_blocks, train.micro_batch_blocks, world_size)
    run = Run(Place(settings.folder))
    weights = {s.name: s.weight for s in config.streams}
    validation = BlockReader(run, weights, "validation", config.seed, waits.tell)
    reader = training_reader(run, config, waits.note)

    dtype = torch.bfloat16 if train.precision == "bfloat16" else torch.float32
    # Found on each machine by itself: a folder fetched from an object store is on one disk only.
    base, revision = run.base_model(config), None if config.vocab else config.base.revision
    model = take_documents(load_base(config, base, dtype=dtype))
    objective = objective_of(config, load_tokenizer(str(local_folder(base, revision, weights=False))), model.config)
    check_isolation(model, objective, config.pack.packing)
    model = make_trainable(model, train, config.seed, new_rows_of(config, run))
    if train.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    if found:
        load_trainable(model, found)
    loss = Loss(model, config, device)
    engine = Engine(model.train(), train, share, device)
    parts = held_out(validation, list(weights), train.validation_blocks, share.micro_blocks, objective, rank, world_size)
    worker = Worker(settings, run, rank, world_size, device, share, reader, objective, engine, loss, parts, waits)
    loss.compare(engine.deepspeed, next((b.to(device) for part in parts for b in part.batches()), None))
    _mute_step(worker)
    engine.restore(found)
    return worker


@memory_for("the first batch")
def _mute_step(worker: Worker) -> None:
    """One step of the largest shape that learns nothing: too little memory shows now, and it creates the optimizer's moments."""
    batch = worker.objective.largest_batch(worker.share.micro_blocks, worker.settings.config.pack.block_tokens).mute_after(0)
    worker.engine.set_rates(0.0)
    for _ in range(worker.share.accumulation):
        worker.engine.backward(0.0 * worker.loss(worker.engine.deepspeed, batch.to(worker.device)), 1)
        worker.engine.end_pass()


@memory_for("a training step")
def _step(worker: Worker, feed: Feed, trace: BlockTrace, step: int) -> tuple[float, int, int]:
    """One optimizer step. Returns the mean loss per target of the global batch, in nats, and the batch's targets and tokens.

    A step whose blocks hold nothing to learn moves nothing, not even by weight decay or momentum: its loss is 0.

    Raises: TrainError on a non-finite loss, before the optimizer moves.
    """
    dealt = worker.deal(step)
    blocks, batches, num_targets, num_tokens = feed.take(worker.waits.tell, worker.waits.asked)
    if worker.settings.config.train.trace_blocks and (problem := trace.append(step + 1, list(chain.from_iterable(dealt)), blocks)):
        worker.waits.tell(problem)  # as of the metrics: if it does not come back, the next save says so to all ranks

    if num_targets == 0:  # on all ranks
        worker.engine.leave_out(step + 1)
        return 0.0, 0, num_tokens
    sum_N = torch.zeros(1, dtype=torch.float64, device=worker.device)
    for number, (indices, batch) in enumerate(zip(dealt, batches, strict=True)):
        # Keyed by what is trained on, so that a restart draws the same dropout as the run that it replaces.
        torch.manual_seed(_key(worker.settings.config.seed, step, indices[0] if indices else -1 - worker.rank))
        nats = worker.loss(worker.engine.deepspeed, batch.to(worker.device))
        worker.engine.backward(nats, num_targets)
        sum_N += nats.detach().double()
        if number == len(batches) - 1:
            distributed.all_reduce(sum_N)
            _check_finite(worker, step, "loss", float(sum_N))
        worker.engine.end_pass()
    # DeepSpeed leaves out the optimizer's move, without a word, where gradients overflowed.
    _check_finite(worker, step, "gradient norm", worker.engine.grad_norm() or 0.0)
    return float(sum_N) / num_targets, num_targets, num_tokens


def _check_finite(worker: Worker, step: int, what: str, value: float) -> None:
    if not math.isfinite(value):
        size = worker.settings.config.train.global_batch_blocks
        sources = {worker.reader.source(i) for i in range(step * size, (step + 1) * size)}
        raise TrainError(
            f"train: step {step + 1} has a {what} of {value}, expected a finite one; lower train.learning_rate, "
            f"or look at its texts, from {', '.join(sorted(sources)[:3])}"
        )


def _key(*parts: int) -> int:
    return int(np.random.SeedSequence([p % (1 << 32) for p in parts]).generate_state(1, np.uint64)[0] >> 1)


@memory_for("the copy for checkpoints")
def _saver(worker: Worker, teller: "_Teller", trace: BlockTrace, resumed: TrainState) -> Saver:
    train, streams = worker.settings.config.train, worker.settings.config.streams

    def catch_up() -> None:
        teller.catch_up()
        trace.catch_up()

    return Saver(
        worker.run.checkpoints,
        worker.engine.state_copy(),
        Keep(
            train.keep_checkpoints,
            train.keep_best,
            tuple(s.name for s in streams if s.role == "new"),
            steps_at_the_peak(worker.settings.steps, train),
        ),
        worker.settings.made_for,
        worker.device,
        resumed.step,
        tells=worker.waits.tell,
        first=catch_up,
        reports=lambda whole: ray.train.report({"step": whole.step}),
    )


class _Teller:
    """Writes metrics and tells the driver; only rank 0 has a log, the others stay silent."""

    def __init__(self, board: Any, log: MetricsLog | None, worker: Worker, passed_over: list[str], resumed: TrainState) -> None:
        self._board, self._log, self._worker = board, log, worker
        self._seen, self._waited_s, self._packed, self._is_behind = resumed, 0.0, 0.0, resumed.step > 0  # later rows go
        self._lock = threading.Lock()  # the thread that saves catches up too
        if log is not None:
            board.start.remote(resumed.step, passed_over)

    def tell(self, state: TrainState, **facts: Any) -> None:
        if self._log is not None:
            with self._lock:
                row, self._is_behind = self._log.append({"step": state.step, **facts}), True
            self._board.put.remote(row)
            try:
                self.catch_up()
            except StorageError as error:  # it may be back in a moment; if not, the next save says so to all ranks
                self._worker.waits.tell(str(error))

    def catch_up(self) -> None:
        """Write the rows that are not written yet. Raises: StorageError."""
        with self._lock:
            if self._log is not None and self._is_behind:
                self._log.flush()
                self._is_behind = False

    def note(self, state: TrainState, **facts: Any) -> None:
        """A row that is written with the next one, or with the next checkpoint."""
        with self._lock:
            if self._log is not None:
                self._log.append({"step": state.step, **facts})
                self._is_behind = True

    def tell_step(self, state: TrainState, waited_s: float, **facts: Any) -> None:
        """`waited_s`: for blocks, since the loop began. Rates and shares are of the steps since the last row."""
        if self._log is None:
            return
        seconds, tokens = state.seconds - self._seen.seconds, state.tokens - self._seen.tokens
        facts |= {"tokens": state.tokens, "seconds": round(state.seconds, 3), "workers": self._worker.world_size}
        facts |= {"tokens_per_s": round(tokens / seconds, 1), "data_wait_share": round((waited_s - self._waited_s) / seconds, 5)}
        if self._packed < 1:  # of a large corpus, the ledger takes a second to read
            with suppress(StorageError, RunError):  # one rank asks, and may ask again at the next row
                self._packed = packed_share(self._worker.run)
        self._seen, self._waited_s = state, waited_s
        self.tell(state, **facts, **({"packed_share": round(self._packed, 4)} if self._packed < 1 else {}))


def packed_share(run: Run) -> float:
    """How much of the plan the packer has done by now, counted in parts."""
    plan = read_plan(run.blocks)
    planned = sum(map(len, plan.streams.values())) if plan else 0
    return len(Ledger(run.blocks).read()) / planned if planned else 1.0
