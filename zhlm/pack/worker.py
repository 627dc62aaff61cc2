"""What runs in the tasks of Ray Data: function(task) for one part of the corpus after the other."""

import pickle
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import ray

# Both take a second, which a process that ran `ready` has behind it.
import ray.data

import zhlm.pack.tasks  # noqa: F401
from zhlm.errors import ClusterError, ZhlmError

ATTEMPTS = 4
"""At one part: when so many workers died over it, the fault is in the part."""


def ready() -> None:
    """Nothing: importing this module is the work."""


def answer(function: Callable[[Any], Any], task: Any) -> bytes:
    """What a function makes of a task, pickled.

    An error of ours is an answer too: raised, it would reach the driver as the text of a traceback and no longer as what it is.
    """
    try:
        return pickle.dumps(function(task))
    except ZhlmError as error:
        return pickle.dumps(error)


def on_row(function: Callable[[Any], Any], execution: str, row: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The answer for every task in a Ray Data row, with its number; tasks and answers travel pickled, because they are no table.

    Ray Data repeats for ever what its worker died over. So the attempts at each part are counted, on this machine and for this execution.
    """
    context = ray.get_runtime_context()
    counters = Path(context.get_temp_dir()) / context.get_session_name() / f"zhlm-attempts-{execution}"
    counters.mkdir(exist_ok=True)
    for index, task in pickle.loads(row["tasks"]):
        counter = counters / task.key
        yield {"index": index, "answer": answer(partial(_attempt, counter, function), task)}


def _attempt(counter: Path, function: Callable[[Any], Any], task: Any) -> Any:
    """Raises: ClusterError at an attempt that is one too many."""
    died, source = len(counter.read_text()) if counter.exists() else 0, task.source.part.source
    if died >= ATTEMPTS:
        raise ClusterError(
            f"pack: {died} workers died over {source}, expected one to get through; they lack memory or the engine crashes: lower "
            "resources.pack_tasks or set pack.engine: tokenizers, and run the same command again",
            path=source,
        )
    counter.write_text("+" * (died + 1))
    result = function(task)
    counter.unlink(missing_ok=True)
    return result
