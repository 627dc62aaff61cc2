"""Training state in several processes, as workers have it: a small network under DeepSpeed, stepped a few times."""

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import distributed, multiprocessing, nn


def on_ranks(world_size: int, folder: Path, work: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What `work(rank, *arguments)` returns on each rank of a gloo group of new processes."""
    store = folder / f"store-{os.urandom(4).hex()}"
    multiprocessing.spawn(_start, (world_size, store, work, arguments), nprocs=world_size)
    return [pickle.loads(_result(store, rank).read_bytes()) for rank in range(world_size)]


def _result(store: Path, rank: int) -> Path:
    return store.with_name(f"{store.name}-{rank}")


def _start(rank: int, world_size: int, store: Path, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size), "DS_ACCELERATOR": "cpu"}
    distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world_size)
    _result(store, rank).write_bytes(pickle.dumps(work(rank, *arguments)))
    distributed.barrier()
    distributed.destroy_process_group()


class Net(nn.Module):
    """Odd sizes, which two ranks cannot share evenly."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.narrow = nn.Linear(5, 7), nn.Linear(7, 3)
        self.scale = nn.Parameter(torch.tensor([1.5]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.narrow(torch.tanh(self.wide(x))) * self.scale).square().mean()


def under_zero(stage: int) -> tuple[dict[str, nn.Parameter], torch.optim.Optimizer]:
    """Parameters by name and their optimizer; matrices and vectors are groups of their own, as in training."""
    from zhlm.checkpoint.sharded import create_moments
    from zhlm.train.engine import _import_deepspeed

    torch.manual_seed(0)
    net = Net()
    parameters = dict(net.named_parameters())
    groups = [{"params": [p for p in parameters.values() if (p.ndim > 1) == matrices]} for matrices in (True, False)]
    optimizer = torch.optim.AdamW(groups, lr=1e-2)
    config = {"train_micro_batch_size_per_gpu": 2, "zero_optimization": {"stage": stage}, "steps_per_print": 10**9}
    engine, *_ = _import_deepspeed().initialize(model=net, optimizer=optimizer, config=config, dist_init_required=False)
    create_moments(optimizer)
    engine.backward(engine(torch.ones(2, 5)))
    engine.step()
    return parameters, optimizer


def hand_on(rank: int, source: str, target: str, stages: list[int]) -> list[list[str]]:
    """Restore a checkpoint under one stage, save it again, restore that under the next one. Returns the names that this rank wrote."""
    from zhlm.checkpoint.saver import Keep, Saver
    from zhlm.checkpoint.sharded import StateCopy, scatter
    from zhlm.checkpoint.state import TrainState, newest
    from zhlm.storage import Place

    written = []
    for stage in stages:
        found, _ = newest(Place(source))
        assert found is not None
        parameters, optimizer = under_zero(stage)
        scatter(parameters, optimizer, found.trainable(), found.optimizer(), found.state.step)
        source = f"{target}/zero{stage}"
        copy = StateCopy(parameters, optimizer, 0)
        with Saver(Place(source), copy, Keep(1), {}, torch.device("cpu")) as saver:
            saver.save(TrainState(step=5), wait=True)
            written.append(sorted(copy.assemble()["trainable"]))
    return written


def fail_on_the_last(rank: int, target: str) -> str:
    """A save of step 1, and one of step 2 whose file the last rank cannot write. Returns what this rank was told."""
    from zhlm.checkpoint.saver import Keep, Saver
    from zhlm.checkpoint.sharded import StateCopy, create_moments
    from zhlm.checkpoint.state import TrainState
    from zhlm.checkpoint.writing import Writing
    from zhlm.errors import StorageError
    from zhlm.storage import Place

    def no_room(*_: Any) -> str:
        raise StorageError("checkpoint: no room on the last rank")

    parameters = {name: nn.Parameter(torch.ones(4)) for name in "abc"}
    optimizer = torch.optim.AdamW(parameters.values())
    create_moments(optimizer)
    try:
        with Saver(Place(target), StateCopy(parameters, optimizer, 0), Keep(2), {}, torch.device("cpu")) as saver:
            saver.save(TrainState(step=1), wait=True)
            if rank == distributed.get_world_size() - 1:
                Writing.put = no_room  # type: ignore[method-assign]
            saver.save(TrainState(step=2))
            while True:
                saver.look()
    except StorageError as error:
        return str(error)


def both(rank: int, source: str, target: str, stages: list[int]) -> tuple[list[list[str]], str]:
    """In the same processes: starting them is what takes long."""
    return hand_on(rank, source, target, stages), fail_on_the_last(rank, f"{target}/failing")
