"""What each training worker runs: build, restore, then step by step forward, backward, optimizer, account."""

import math
import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import ray
import ray.train
import ray.train.torch
import torch
from torch import distributed

from zhlm.blocks.read import BlockReader
from zhlm.checkpoint.state import Checkpoint, TrainState, newest, prune, save
from zhlm.config.schema import RunConfig
from zhlm.errors import CheckpointError, StorageError, TrainError, UserError
from zhlm.model.load import load_model
from zhlm.model.lora import make_trainable
from zhlm.objectives.causal import Batch, make_batch, sum_nats
from zhlm.records import Blocks
from zhlm.storage import Place, Run
from zhlm.train.engine import Engine, load_trainable
from zhlm.train.isolation import check_isolation
from zhlm.train.metrics import MetricsLog
from zhlm.train.schedule import Share, deal, rate_factor, share_of
from zhlm.train.validate import HeldOut, held_out, validate


@dataclass(frozen=True)
class Settings:
    """Plain data that the driver hands to every worker."""

    config: RunConfig
    folder: str
    """The run folder, absolute or remote."""
    steps: int


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
    engine: Engine
    held_out: list[HeldOut]


def train_worker(settings: dict[str, Any]) -> None:
    """Entry point under TorchTrainer. An error that every rank meets alike goes to the board: raised, it would only restart the workers."""
    board = settings.pop("board")
    config = RunConfig.model_validate_json(settings.pop("config"))
    try:
        _train(Settings(config, **settings), board)
    except (UserError, TrainError) as error:
        ray.get(board.fail.remote(error), timeout=60)


def _train(settings: Settings, board: Any) -> None:
    train = settings.config.train
    checkpoints = Run(Place(settings.folder)).checkpoints
    found, passed_over = newest(checkpoints)
    state = found.state if found else TrainState()
    worker = _build(settings, found)
    log = MetricsLog(worker.run.metrics, state.step) if worker.rank == 0 else None
    teller = _Teller(board, log, worker, passed_over, state.step)

    if state.step == 0:
        teller.tell(state, validation=validate(worker.engine.deepspeed, worker.held_out, worker.device))
    while state.step < settings.steps:
        started_s = time.monotonic()
        worker.engine.set_rates(rate_factor(state.step, settings.steps, train))
        loss_nats, tokens = _step(worker, state.step)
        state = TrainState(
            step=state.step + 1,
            consumed_blocks=state.consumed_blocks + train.global_batch_blocks,
            tokens=state.tokens + tokens,
            seconds=state.seconds + time.monotonic() - started_s,
        )
        last = state.step == settings.steps
        if state.step % train.log_every == 0 or last:
            teller.tell(state, loss_nats=loss_nats, grad_norm=worker.engine.grad_norm(), learning_rate=_rate(settings, state.step - 1))
        if state.step % train.validate_every == 0 or last:
            teller.tell(state, validation=validate(worker.engine.deepspeed, worker.held_out, worker.device))
        if state.step % train.checkpoint_every == 0 or last:
            _save(worker, state)
            ray.train.report({"step": state.step, "loss_nats": loss_nats})


def _build(settings: Settings, found: Checkpoint | None) -> Worker:
    config, train = settings.config, settings.config.train
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    device = ray.train.torch.get_device()
    share = share_of(train.global_batch_blocks, train.micro_batch_blocks, world_size)
    run = Run(Place(settings.folder))
    weights = {s.name: s.weight for s in config.streams}
    reader = BlockReader(run.blocks, weights, "train", config.seed)
    validation = BlockReader(run.blocks, weights, "validation", config.seed)

    dtype = torch.bfloat16 if train.precision == "bfloat16" else torch.float32
    # Found on each machine by itself: a folder fetched from an object store is on one disk only.
    model = load_model(run.base_model(config), revision=None if config.vocab else config.base.revision, dtype=dtype)
    check_isolation(model)
    model = make_trainable(model, train, config.seed)
    if train.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    if found:
        load_trainable(model, found)
    engine = Engine(model.to(device).train(), train, share)
    parts = held_out(validation, list(weights), train.validation_blocks, share.micro_blocks, rank, world_size)
    worker = Worker(settings, run, rank, world_size, device, share, reader, engine, parts)
    _mute_step(worker)
    engine.restore(found)
    return worker


def _mute_step(worker: Worker) -> None:
    """One step of the largest shape that learns nothing: too little memory shows now, and it creates the optimizer's moments."""
    worker.engine.set_rates(0.0)
    for _ in range(worker.share.accumulation):
        worker.engine.backward(0.0 * sum_nats(worker.engine.deepspeed, _batch(worker, []).to(worker.device)), 1)
        worker.engine.end_pass()


def _step(worker: Worker, step: int) -> tuple[float, int]:
    """One optimizer step. Returns the mean loss per target of the global batch, in nats, and the batch's tokens.

    Raises: TrainError on a non-finite loss, before the optimizer moves.
    """
    train, seed = worker.settings.config.train, worker.settings.config.seed
    dealt = deal(step, worker.rank, worker.world_size, train.global_batch_blocks, worker.share)
    batches = [_batch(worker, indices) for indices in dealt]
    counts = torch.tensor([sum(b.num_targets for b in batches), sum(b.num_tokens for b in batches)], device=worker.device)
    distributed.all_reduce(counts)
    num_targets, num_tokens = (int(c) for c in counts)

    sum_N = torch.zeros(1, dtype=torch.float64, device=worker.device)
    for number, (indices, batch) in enumerate(zip(dealt, batches, strict=True)):
        # Keyed by what is trained on, so that a restart draws the same dropout as the run that it replaces.
        torch.manual_seed(_key(seed, step, indices[0] if indices else -1 - worker.rank))
        nats = sum_nats(worker.engine.deepspeed, batch.to(worker.device))
        worker.engine.backward(nats, num_targets)
        sum_N += nats.detach().double()
        if number == len(batches) - 1:
            distributed.all_reduce(sum_N)
            _check_finite(worker, step, "loss", float(sum_N))
        worker.engine.end_pass()
    # DeepSpeed leaves out the optimizer's move, without a word, where gradients overflowed.
    _check_finite(worker, step, "gradient norm", worker.engine.grad_norm() or 0.0)
    return float(sum_N) / num_targets, num_tokens


def _check_finite(worker: Worker, step: int, what: str, value: float) -> None:
    if not math.isfinite(value):
        size = worker.settings.config.train.global_batch_blocks
        sources = {worker.reader.source(i) for i in range(step * size, (step + 1) * size)}
        raise TrainError(
            f"train: step {step + 1} has a {what} of {value}, expected a finite one; lower train.learning_rate, "
            f"or look at its texts, from {', '.join(sorted(sources)[:3])}"
        )


def _batch(worker: Worker, indices: list[int]) -> Batch:
    """The blocks at these places of the order, filled up with mute ones to the pass's shape."""
    missing = worker.share.micro_blocks - len(indices)
    blocks = worker.reader.read([*indices, *([0] * missing)])
    batch = make_batch(Blocks(np.asarray(blocks.ids_BT), blocks.ends))
    return batch.mute_after(len(indices))


def _key(*parts: int) -> int:
    return int(np.random.SeedSequence([p % (1 << 32) for p in parts]).generate_state(1, np.uint64)[0] >> 1)


def _rate(settings: Settings, step: int) -> float:
    return settings.config.train.learning_rate * rate_factor(step, settings.steps, settings.config.train)


def _save(worker: Worker, state: TrainState) -> None:
    """Rank 0 writes what all ranks gathered; a failure is told to all, so that none waits for the others."""
    trainable, optimizer = worker.engine.gather()
    problem: list[Exception | None] = [None]
    if worker.rank == 0:
        try:
            save(worker.run.checkpoints, state, trainable, optimizer)
            prune(worker.run.checkpoints, worker.settings.config.train.keep_checkpoints)
        except (StorageError, CheckpointError) as error:
            problem = [error]
    distributed.broadcast_object_list(problem, src=0)
    if problem[0] is not None:
        raise problem[0]


class _Teller:
    """Writes metrics and tells the driver; only rank 0 has a log, the others stay silent."""

    def __init__(self, board: Any, log: MetricsLog | None, worker: Worker, passed_over: list[str], resumed_step: int) -> None:
        self._board, self._log, self._workers = board, log, worker.world_size
        self._seen = TrainState(step=resumed_step)
        if log is not None:
            board.start.remote(resumed_step, passed_over)

    def tell(self, state: TrainState, **facts: Any) -> None:
        if self._log is None:
            return
        row: dict[str, Any] = {"step": state.step, **facts}
        if "loss_nats" in facts:
            seconds, tokens = state.seconds - self._seen.seconds, state.tokens - self._seen.tokens
            known = self._seen.tokens > 0 or self._seen.step == 0
            row |= {"tokens": state.tokens, "seconds": round(state.seconds, 3), "workers": self._workers}
            row["tokens_per_s"] = round(tokens / seconds, 1) if known and seconds > 0 else None
            self._seen = replace(state)
        self._log.append(row)
        self._log.flush()
        self._board.put.remote(row)
