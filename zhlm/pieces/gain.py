"""Rows added against tokens per character: what each further row of a vocabulary still brings, on the corpus that it was learned on."""

from typing import Any

import numpy as np

from zhlm.pieces.learn import Learned

CURVE_POINTS = 40


def curve_facts(proposed: Learned, learned: Learned, characters: int, limit: int) -> dict[str, Any]:
    """The curve as [rows, tokens per character], a few dozen points in geometric steps; how many rows were chosen; and what ended them.

    `proposed` is what learning gave when asked for `limit` pieces, on so many characters; `learned` are those of it that got a row. Words
    of a list are not among the rows, nor their tokens among those of the curve.
    """
    chosen = len(learned.pieces)
    saved = [0, *learned.saved, *learned.beyond]
    steps = np.geomspace(1, max(1, len(saved) - 1), CURVE_POINTS).round().astype(int).tolist()
    rows = sorted({0, chosen, *(n for n in steps if n < len(saved))})
    return {
        "curve": [[n, round((learned.num_tokens - saved[n]) / max(1, characters), 4)] for n in rows],
        "chosen_rows": chosen,
        "stopped_by": "gain" if proposed.beyond else "limit" if len(proposed.pieces) >= limit else "corpus",
    }
