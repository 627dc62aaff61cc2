"""What the person sees: a live line per running stage on a terminal, plain lines in a log or job; all other noise goes to a file."""

import os
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self, TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from zhlm.records import Progress

PLAIN_INTERVAL_S = 5.0
"""Least time between two progress lines where the output is not a terminal."""


@contextmanager
def quiet(log_path: Path) -> Iterator[TextIO]:
    """Send everything that this process and its children print to a file; yields the real standard output.

    At the level of file descriptors, because Ray's and vLLM's native parts never ask Python where to print.
    """
    log_path.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    saved = os.dup(1), os.dup(2)
    log = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    terminal = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8", errors="replace")
    try:
        os.dup2(log, 1)
        os.dup2(log, 2)
        yield terminal
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        terminal.close()
        for number, descriptor in enumerate(saved, start=1):
            os.dup2(descriptor, number)
            os.close(descriptor)
        os.close(log)


@dataclass
class _Running:
    """A stage between its start and its end."""

    started_s: float
    first: tuple[float, float] | None = None
    """When the first progress of this attempt came, and how much was done then."""
    unit: str = ""
    printed_s: float = float("-inf")
    row: Table | None = None


class Display:
    """Shows the stages that run now, from any thread. A context manager, so that a live line never outlives an error."""

    def __init__(self, terminal: TextIO) -> None:
        self._console = Console(file=terminal, highlight=False, soft_wrap=True)
        self._live: Live | None = None
        if self._console.is_terminal:
            # Unasked, Live would show all that anybody prints; that belongs in the log.
            self._live = Live(console=self._console, refresh_per_second=4, transient=True, redirect_stdout=False, redirect_stderr=False)
        self._stages: dict[str, _Running] = {}
        self._lock = threading.RLock()

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with self._lock:
            self._stages.clear()
            self._refresh()
        if self._live:
            self._live.stop()

    def line(self, text: str = "", style: str = "") -> None:
        """A lasting line, above the live ones."""
        self._console.print(Text(text, style=style))

    def start(self, stage: str, why: str) -> None:
        with self._lock:
            self._stages[stage] = _Running(time.monotonic())
            self.line(f"{stage:9} {why}", "bold")

    def finish(self, stage: str, summary: str) -> None:
        with self._lock:
            running = self._stages.pop(stage)
            self._refresh()
            self.line(f"{stage:9} done in {_span(time.monotonic() - running.started_s)}{': ' + summary if summary else ''}", "green")

    def skip(self, stage: str) -> None:
        self.line(f"{stage:9} finished earlier, nothing to do", "dim")

    def report(self, progress: Progress) -> None:
        """Receives every progress of a stage; decides itself what is worth showing."""
        now = time.monotonic()
        with self._lock:
            running = self._stages.setdefault(progress.stage, _Running(now))
            if running.first is None or progress.done < running.first[1] or progress.unit != running.unit:
                running.first, running.unit = (now, progress.done), progress.unit
            left_s = _left_s(running.first, now, progress)
            if self._live:
                running.row = _live_row(progress, left_s)
                self._refresh()
            elif now - running.printed_s >= PLAIN_INTERVAL_S or progress.done >= progress.total:
                running.printed_s = now
                left = f"  left {_span(left_s)}" if left_s is not None else ""
                self.line(f"{progress.stage:9} {_count(progress)}  {_facts(progress.facts)}{left}")

    def _refresh(self) -> None:
        if self._live:
            self._live.update(Group(*(running.row for running in self._stages.values() if running.row)))


def _left_s(first: tuple[float, float], now: float, progress: Progress) -> float | None:
    seconds, done = now - first[0], progress.done - first[1]
    return (progress.total - progress.done) * seconds / done if done > 0 and seconds > 1 else None


def _live_row(progress: Progress, left_s: float | None) -> Table:
    grid = Table.grid(padding=(0, 2))
    bar = ProgressBar(total=max(progress.total, 1e-9), completed=progress.done, width=28)
    left = f"left {_span(left_s)}" if left_s is not None else ""
    facts = Text(_facts(progress.facts), "cyan", no_wrap=True, overflow="ellipsis")
    grid.add_row(Text(f"{progress.stage:9}", "bold"), bar, _count(progress), Text(left, "dim"), facts)
    return grid


def _count(progress: Progress) -> str:
    return f"{progress.done:,.0f}/{progress.total:,.0f} {progress.unit}"


def _facts(facts: Mapping[str, float | int | str]) -> str:
    return "  ".join(f"{_LABELS.get(k, k.replace('_', ' '))} {_value(k, v)}" for k, v in facts.items())


_LABELS = {"tokens_per_s": "tok/s", "learning_rate": "lr", "bits_per_byte": "bits/byte", "loss_nats": "loss"}


def _value(key: str, value: float | int | str) -> str:
    if isinstance(value, str):
        return value
    if key == "learning_rate":
        return f"{value:.1e}"
    return f"{value:,.0f}" if isinstance(value, int) or abs(value) >= 1000 else f"{value:.3f}"


def _span(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02}m" if hours else f"{minutes}m{rest:02}s" if minutes else f"{rest}s"
