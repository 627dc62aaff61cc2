"""Between the workers and the driver: what the one tells the other.

Nothing is imported here but Ray: the actor's process would load all of it, while the workers load theirs.
"""

import time
from typing import Any

import ray

ASKED_S = 5.0
"""How long the workers are asked to leave by what the controller said once."""


@ray.remote(num_cpus=0)
class Board:
    """Where workers leave what the driver shows. An actor, so that it reaches any machine and survives the workers."""

    def __init__(self) -> None:
        self._rows: list[dict[str, Any]] = []
        self._starts: list[tuple[int, list[str]]] = []
        self._waits = ""
        self._error: Exception | None = None
        self._asked, self._asked_s = "", 0.0

    def start(self, step: int, passed_over: list[str]) -> None:
        self._starts.append((step, passed_over))
        self._asked, self._error = "", None  # what was said of or by workers that are gone

    def ask(self, why: str) -> None:
        """The workers should leave. Said again and again as long as it holds."""
        self._asked, self._asked_s = why, time.monotonic()

    def asked(self) -> str:
        return self._asked if time.monotonic() < self._asked_s + ASKED_S else ""

    def put(self, row: dict[str, Any]) -> None:
        self._rows.append(row)
        self._waits = ""

    def wait(self, what: str) -> None:
        self._waits = what

    def fail(self, error: Exception) -> None:
        self._error = self._error or error

    def take(self) -> tuple[list[dict[str, Any]], list[tuple[int, list[str]]], Exception | None, str]:
        rows, self._rows = self._rows, []
        return rows, self._starts, self._error, self._waits
