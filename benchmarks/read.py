"""How fast training blocks are read in the order of training, against what one GPU needs.

The corpus is packed into blocks of 4,096 first. The last line printed is the result, as JSON.
"""

import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.arms import VARIANTS, run_config, run_pack
from benchmarks.corpus import Corpus, parser

BLOCK_TOKENS = 4096
STEP_BLOCKS = 8
NEEDED_TOKENS_PER_S = 10_000
"""By one GPU."""
GOAL = 200


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--rounds", type=int, default=5)
    given = options.parse_args()
    corpus = Corpus(given.folder, given.spliced_share)
    corpus.make(given.files)
    with tempfile.TemporaryDirectory(prefix="zhlm-bench-") as scratch:
        pack = VARIANTS["c_bare"] | {"block_tokens": BLOCK_TOKENS}
        config = run_config("read", corpus, corpus.files(given.files), Path(scratch), pack)
        run_pack(config)
        busy, results = machine.busy_share(), [read_all(config) for _ in range(given.rounds)]
    first, again = (statistics.median(r[n] for r in results) for n in (0, 1))
    ratio = first / NEEDED_TOKENS_PER_S
    print(
        json.dumps(
            {
                "bench": "read",
                "tokens_per_s": {"first_pass": round(first), "second_pass": round(again)},
                "needed_tokens_per_s": NEEDED_TOKENS_PER_S,
                "ratio": round(ratio),
                "goal": GOAL,
                "met": ratio >= GOAL,
                "raw": results,
                "busy_before": busy,
                "machine": machine.facts(),
            }
        )
    )


def read_all(config: Any) -> tuple[int, int]:
    """Tokens per second of a new reader over its first pass, in which every shard is opened and its hash is verified, and its second."""
    from zhlm.blocks.read import training_reader
    from zhlm.storage import Run

    reader = training_reader(Run.of(config), config)
    total = sum(shard.blocks for shard in reader.shards(0))
    rates = []
    for start in (0, total):
        started_s = time.perf_counter()
        for first in range(start, start + total - STEP_BLOCKS, STEP_BLOCKS):
            assert reader.read(range(first, first + STEP_BLOCKS)).ids_BT.shape == (STEP_BLOCKS, BLOCK_TOKENS), "a block is missing"
        rates.append(round(total * BLOCK_TOKENS / (time.perf_counter() - started_s)))
    return rates[0], rates[1]


if __name__ == "__main__":
    main()
