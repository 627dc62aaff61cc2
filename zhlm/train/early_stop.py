"""When a training ends before its last step: the same answer on every rank and after every restart, from the measurements alone."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from zhlm.config.schema import RunConfig
from zhlm.train.validate import new_bits_per_byte


class EarlyStop:
    """Counts the measurements since the best one. What a restart must know of it is in the rows of metrics.jsonl."""

    def __init__(self, config: RunConfig, rows: Iterable[Mapping[str, Any]]) -> None:
        """`rows`: of metrics.jsonl, up to the checkpoint that training goes on from."""
        self._rule, self._streams = config.train.early_stop, config.streams
        self._best, self._since = math.inf, 0
        for row in rows:
            if "validation" in row:
                self.note(row["validation"])

    def note(self, scores: Mapping[str, Mapping[str, float]]) -> None:
        bits = new_bits_per_byte(scores, self._streams)
        gained = bits < self._best - (self._rule.min_delta if self._rule else 0.0)
        self._best, self._since = (bits, 0) if gained else (self._best, self._since + 1)

    @property
    def due(self) -> bool:
        return self._rule is not None and self._since >= self._rule.patience
