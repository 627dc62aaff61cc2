"""The error tree: what can go wrong, and whose move is next.

A message has four parts: what failed, the value met, what was expected, what to do. The message is the first argument and every
fact is keyword-only with a default, because an exception whose constructor demands more cannot be unpickled on Ray's driver.
"""

from typing import Any


class ZhlmError(Exception):
    """Any error that zhlm raises on purpose."""

    def __init__(self, message: str = "", **facts: Any) -> None:
        super().__init__(message)
        self.facts = facts

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), str(self), self.facts)


def _rebuild(kind: type[ZhlmError], message: str, facts: dict[str, Any]) -> ZhlmError:
    return kind(message, **facts)


class UserError(ZhlmError):
    """Something the user can mend: printed as one line, exit code 2."""


class ConfigError(UserError):
    """The YAML file or a --set override is wrong, or asks for contradictory things."""


class CorpusError(UserError):
    """A corpus file is missing, empty, broken, or has no such field."""


class BaseModelError(UserError):
    """The base model or its tokenizer cannot be loaded, or they do not fit each other or the config."""


class AdviceError(UserError):
    """What was asked for would cost more than it gains; forcing it is possible."""


class ClusterError(UserError):
    """The cluster cannot be reached, or can never hold what the run asks for."""


class StorageError(UserError):
    """The run folder cannot be written or read: no permission, disk full, store out of reach."""


class RunError(UserError):
    """The run folder belongs to another run, or lacks what the asked stage needs."""


class ServeError(UserError):
    """The server cannot start: port in use, serving packages missing."""


class CheckpointError(ZhlmError):
    """A checkpoint is torn or does not fit the model."""


class TrainError(ZhlmError):
    """Training cannot go on: a non-finite loss, or workers that kept failing."""


class VerificationError(ZhlmError):
    """What was written does not behave like what was in memory."""


class DeadlineError(ZhlmError):
    """A wait reached its deadline; the message says what it waited for."""


def find_user_error(error: BaseException) -> UserError | None:
    """The user's mistake behind an error, however Ray wrapped it; None when there is none."""
    seen: set[int] = set()
    queue: list[BaseException] = [error]
    while queue:
        current = queue.pop(0)
        if id(current) in seen:
            continue
        seen.add(id(current))
        # RayTaskError keeps its origin in `cause`, Ray Train one exception per rank in `worker_failures`. What `ray.get` raises is of the
        # origin's class too, but its message is the whole traceback.
        origin = getattr(current, "cause", None)
        if isinstance(current, UserError) and not isinstance(origin, UserError):
            return current
        behind = [origin, current.__cause__, current.__context__]
        failures = getattr(current, "worker_failures", None)
        behind += list(failures.values()) if isinstance(failures, dict) else []
        queue += [b for b in behind if isinstance(b, BaseException)]
    return None
