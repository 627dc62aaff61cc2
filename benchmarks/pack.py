"""How fast we pack, against (a) `datasets.map` + group_texts and (b) a bare two-process loop with the same engine.

All arms are measured in one run, one after the other in every round, each in a process of its own; what is compared is the median over the
rounds of source MB per second. The last line printed is the result, as JSON.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

from benchmarks import machine
from benchmarks.arms import VARIANTS
from benchmarks.corpus import Corpus, parser

ARMS = ("a", "b", *VARIANTS)
GOALS = {("c_bare", "a"): 10.0, ("c_bare", "b"): 0.8, ("c_defaults", "a"): 6.0, ("c_tokenizers", "a"): 2.0}
QUIET = {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "RAY_USAGE_STATS_ENABLED": "0", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}


def run_arm(arm: str, corpus: Corpus, files: int) -> dict[str, Any]:
    """One measurement in a new process and a new scratch folder, and how busy the machine was just before."""
    busy = {"busy_before": machine.busy_share(), "load_before": round(os.getloadavg()[0], 2)}
    with tempfile.TemporaryDirectory(prefix="zhlm-bench-") as scratch:
        command = [sys.executable, "-m", "benchmarks.arms", arm, str(corpus.folder), str(corpus.spliced_share), str(files), scratch]
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ | QUIET)
        if done.returncode:
            raise SystemExit(f"benchmarks: arm {arm} failed:\n{done.stderr[-4000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1]) | busy
    print(f"{arm:13}{json.dumps(result)}", file=sys.stderr, flush=True)
    return result


def summary(results: Sequence[dict[str, Any]], megabytes: float) -> dict[str, Any]:
    """The medians of one arm, and every raw time."""
    seconds, last = [r["seconds"] for r in results], results[-1]
    median_s = statistics.median(seconds)
    rates = {"mb_per_s": round(megabytes / median_s, 2), "mtokens_per_s": round(last["tokens"] / median_s / 1e6, 3)}
    raw = {name: [r[name] for r in results] for name in ("seconds", "cpu_s", "busy_before", "load_before") if name in last}
    known = ("load_s", "tokenize_s", "engine", "fill", "dropped", "tokens")
    cpu = {"cpu_s_median": statistics.median(raw["cpu_s"])}
    return rates | {"rounds": len(results)} | cpu | raw | {name: last[name] for name in known if name in last}


def ratios(arms: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Each promised ratio of MB per second beside its goal; and the same of CPU seconds, which neighbours disturb less."""
    found = {}
    for (ours, other), goal in GOALS.items():
        if ours in arms and other in arms:
            ratio = arms[ours]["mb_per_s"] / arms[other]["mb_per_s"]
            by_cpu = arms[other]["cpu_s_median"] / arms[ours]["cpu_s_median"]
            found[f"{ours}/{other}"] = {"ratio": round(ratio, 2), "goal": goal, "met": ratio >= goal, "by_cpu": round(by_cpu, 2)}
    return found


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--arms", default=",".join(ARMS), help="some of them, to look at (default: %(default)s)")
    given = options.parse_args()
    corpus = Corpus(given.folder, given.spliced_share)
    corpus.make(given.files)
    megabytes = sum(path.stat().st_size for path in corpus.files(given.files)) / 1e6
    engine = run_arm("engine", corpus, given.files)
    wanted = given.arms.split(",")
    results: dict[str, list[dict[str, Any]]] = {arm: [] for arm in wanted}
    for number in range(given.rounds):
        first = number % len(wanted)  # so that no arm always follows the same one
        for arm in [*wanted[first:], *wanted[:first]]:
            results[arm].append(run_arm(arm, corpus, given.files))
    arms = {arm: summary(of_arm, megabytes) for arm, of_arm in results.items()}
    of_corpus = {"mb": round(megabytes, 1), "files": given.files, "spliced_share": given.spliced_share, "gigatoken_one_thread": engine}
    print(json.dumps({"bench": "pack", "corpus": of_corpus, "ratios": ratios(arms), "arms": arms, "machine": machine.facts()}))


if __name__ == "__main__":
    main()
