"""How much memory packing takes: a corpus ten times the object store, one document of 500 MB as JSONL, and the same as a text file.

Each is packed by a process of its own; meanwhile the proportional set sizes of it and of all its Ray processes are added up every 0.2 s.
The last line printed is the result, as JSON.
"""

import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.arms import NO_CLEANING, VARIANTS, run_config, run_pack
from benchmarks.corpus import Corpus, parser
from benchmarks.pack import QUIET

OBJECT_STORE_BYTES = 80_000_000
"""A little more than the least that Ray takes."""
CORPUS_FILES = 50
"""Of 16.2 MB each: ten times the object store."""
DOCUMENT_BYTES = 500_000_000
LIMIT_GB = 4.0
CASES = ("corpus", "jsonl", "text")


def measure(case: str, corpus: Corpus) -> dict[str, Any]:
    """Pack one case and watch."""
    with tempfile.TemporaryDirectory(prefix="zhlm-bench-") as scratch:
        command = [sys.executable, "-m", "benchmarks.memory", "--child", case, scratch]
        command += ["--folder", str(corpus.folder), "--spliced-share", str(corpus.spliced_share)]
        out, peak = machine.watched(command, QUIET)
    peak_gb = sum(size for size, _ in peak) / 1e9
    largest = [f"{name} {size / 1e9:.2f}" for size, name in peak[:3]]
    result = {"peak_gb": round(peak_gb, 3), "goal_gb": LIMIT_GB, "met": peak_gb <= LIMIT_GB, "processes": len(peak), "largest": largest}
    result |= json.loads(out.splitlines()[-1])
    print(f"{case:8}{json.dumps(result)}", file=sys.stderr, flush=True)
    return result


def pack(case: str, corpus: Corpus, scratch: Path) -> None:
    """In the child: start Ray with a small object store, pack, print what it took."""
    import ray

    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=OBJECT_STORE_BYTES)
    paths = corpus.files(CORPUS_FILES) if case == "corpus" else [long_document(corpus, case)]
    settings = VARIANTS["c_defaults"] if case == "corpus" else {"clean": {"max_chars": NO_CLEANING["max_chars"]}}
    document = {"document": "file"} if case == "text" else {}
    manifest, took = run_pack(run_config(case, corpus, paths, scratch, settings, **document))
    train = manifest["facts"]["streams"]["corpus"]["train"]
    source_mb = sum(p.stat().st_size for p in paths) / 1e6
    print(json.dumps({"source_mb": round(source_mb, 1), **took, "documents": train["documents"], "tokens": train["tokens"]}))


def long_document(corpus: Corpus, case: str) -> Path:
    """One document of 500 MB: a JSONL file of one line, or a text file."""
    path = corpus.place / f"long.{'txt' if case == 'text' else 'jsonl'}"
    if path.exists():
        return path
    as_written: Callable[[str], str] = (lambda text: text) if case == "text" else (lambda text: json.dumps(text, ensure_ascii=False)[1:-1])
    temporary, size = path.with_suffix(".part"), 0
    with temporary.open("w", encoding="utf-8") as file:
        file.write("" if case == "text" else '{"text": "')
        for text in corpus.documents("long"):
            size += len(text.encode()) + 1
            if size > DOCUMENT_BYTES:
                break
            file.write(as_written(text + "\n"))
        file.write("" if case == "text" else '"}\n')
    return temporary.rename(path)


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--cases", default=",".join(CASES), help="some of them (default: %(default)s)")
    options.add_argument("--child", nargs=2, metavar=("CASE", "SCRATCH"), help="pack one case; what the benchmark itself starts")
    given = options.parse_args()
    corpus = Corpus(given.folder, given.spliced_share)
    if given.child:
        pack(given.child[0], corpus, Path(given.child[1]))
        return
    wanted = given.cases.split(",")
    corpus.make(CORPUS_FILES if "corpus" in wanted else 1)
    for case in wanted:
        if case != "corpus":
            long_document(corpus, case)
    print(json.dumps({"bench": "memory", "cases": {c: measure(c, corpus) for c in wanted}, "machine": machine.facts()}))


if __name__ == "__main__":
    main()
