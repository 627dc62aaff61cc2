"""metrics.jsonl: one row per logged step, for the report and for whoever plots it. Written by one worker."""

import json
from typing import Any

from zhlm.storage import Place


class MetricsLog:
    """Rows of a run so far. A restart drops the rows after its checkpoint, so that no step is told twice."""

    def __init__(self, place: Place, resumed_step: int) -> None:
        self._place = place
        text = place.read_text() if place.exists() and resumed_step else ""
        self._rows = [row for row in map(json.loads, text.splitlines()) if row["step"] <= resumed_step]

    def append(self, row: dict[str, Any]) -> None:
        self._rows.append(row)

    def flush(self) -> None:
        """Make the rows visible to readers; the file is small, and an object store cannot append."""
        self._place.write_text("".join(json.dumps(row) + "\n" for row in self._rows))
