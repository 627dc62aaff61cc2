"""metrics.jsonl, written by training, as curves."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

Points = list[tuple[float, float]]


@dataclass(frozen=True)
class TrainingLog:
    """What training logged, each curve as (step, value) with ascending steps."""

    curves: Mapping[str, Points]
    """By key of the rows: loss_nats, learning_rate, tokens_per_s, grad_norm ..."""
    validation: Mapping[str, Points]
    """Bits per byte on held-out blocks, by stream."""

    def last(self, key: str) -> float | None:
        points = self.curves.get(key)
        return points[-1][1] if points else None

    @property
    def steps(self) -> int:
        ends = [points[-1][0] for points in [*self.curves.values(), *self.validation.values()] if points]
        return int(max(ends, default=0))


def read_log(text: str) -> TrainingLog:
    """Curves from the rows of metrics.jsonl.

    After a restart the steps since the last checkpoint are logged again: the later row wins. A row that a kill tore is left out.
    """
    curves: dict[str, dict[float, float]] = {}
    validation: dict[str, dict[float, float]] = {}
    for line in text.splitlines():
        row = _row(line)
        if row is None:
            continue
        step = float(row["step"])
        for key, value in row.items():
            if key not in ("step", "unix_s") and _is_number(value):
                curves.setdefault(key, {})[step] = float(value)
        for stream, scores in (row.get("validation") or {}).items():
            if _is_number(scores.get("bits_per_byte")):
                validation.setdefault(stream, {})[step] = float(scores["bits_per_byte"])
    return TrainingLog(*({k: sorted(points.items()) for k, points in group.items()} for group in (curves, validation)))


def _row(line: str) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except json.JSONDecodeError:
        return None
    return row if isinstance(row, dict) and _is_number(row.get("step")) else None


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def thinned(points: Sequence[tuple[float, float]], limit: int) -> Points:
    """At most `limit` points: means of equal runs of points, the first and the last point kept."""
    if len(points) <= limit:
        return list(points)
    inner, parts = points[1:-1], limit - 2
    bounds = [len(inner) * i // parts for i in range(parts + 1)]
    runs = [inner[a:b] for a, b in pairwise(bounds)]
    return [points[0], *(_mean(run) for run in runs), points[-1]]


def smoothed(points: Sequence[tuple[float, float]], share: float = 0.04) -> Points:
    """Each value replaced by the mean of its neighbours, `share` of the curve wide.

    At the start, where a loss falls fast, the window shrinks on both sides; at the end it is cut, so that the last value is not one
    batch's luck.
    """
    reach = int(len(points) * share / 2)
    reaches = [min(reach, i) for i in range(len(points))]
    return [(points[i][0], _mean(points[i - r : i + r + 1])[1]) for i, r in enumerate(reaches)]


def _mean(run: Sequence[tuple[float, float]]) -> tuple[float, float]:
    return math.fsum(x for x, _ in run) / len(run), math.fsum(y for _, y in run) / len(run)
