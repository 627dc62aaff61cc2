"""The ways to pack a corpus that pack.py compares. Each runs in a process of its own and prints what it took as one JSON line.

python -m benchmarks.arms ARM FOLDER SPLICED_SHARE FILES SCRATCH
"""

import json
import multiprocessing
import os
import sys
import time
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.json as pj

from benchmarks.corpus import REAL, Corpus, texts_of
from benchmarks.machine import tree_cpu_s

BLOCK_TOKENS = 1024
BATCH_DOCUMENTS = 4096
NO_CLEANING = {
    "normalise": False, "boilerplate": False, "min_chars": 1, "max_chars": 1_000_000_000, "max_broken_share": 1.0,
    "max_repeated_line_share": 1.0, "max_repeated_ngram_share": 1.0,
}  # fmt: skip
VARIANTS: dict[str, dict[str, Any]] = {
    "c_bare": {"clean": NO_CLEANING, "deduplicate": False},
    "c_defaults": {},
    "c_tokenizers": {"engine": "tokenizers"},
}
"""Settings of our pack stage that differ from its defaults."""


class Watch:
    """Elapsed and CPU seconds since it was made, of this process and all that it started."""

    def __init__(self) -> None:
        self._cpu_s, self._started_s = tree_cpu_s(os.getpid()), time.perf_counter()

    def read(self) -> dict[str, float]:
        seconds = time.perf_counter() - self._started_s
        return {"seconds": round(seconds, 3), "cpu_s": round(tree_cpu_s(os.getpid()) - self._cpu_s, 2)}


# ---- (a) what a user would pick


def datasets_map(files: Sequence[Path], base: Path, scratch: Path) -> dict[str, Any]:
    """`datasets.map` with two processes: tokenize, then group_texts, as in transformers' run_clm.py; the cache is new.

    Reading the files into the cache is not in `seconds`.
    """
    from datasets import load_dataset
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)
    watch = Watch()
    raw = load_dataset("json", data_files=[str(f) for f in files], split="train", cache_dir=str(scratch), num_proc=2)
    load_s = watch.read()["seconds"]
    watch = Watch()
    tokenized = raw.map(lambda rows: tokenizer(rows["text"]), batched=True, num_proc=2, remove_columns=raw.column_names)
    tokenize_s = watch.read()["seconds"]
    grouped = tokenized.map(group_texts, batched=True, num_proc=2)
    return {**watch.read(), "load_s": load_s, "tokenize_s": tokenize_s, "tokens": len(grouped) * BLOCK_TOKENS}


def group_texts(examples: dict[str, list[list[int]]]) -> dict[str, list[list[int]]]:
    """Concatenate and chunk; the remainder of each batch is lost. Source: transformers examples/pytorch/language-modeling/run_clm.py."""
    concatenated = {k: list(chain(*examples[k])) for k in examples}
    total = len(next(iter(concatenated.values()))) // BLOCK_TOKENS * BLOCK_TOKENS
    result = {k: [t[i : i + BLOCK_TOKENS] for i in range(0, total, BLOCK_TOKENS)] for k, t in concatenated.items()}
    return result | {"labels": result["input_ids"].copy()}


# ---- (b) as little as can be done


def two_processes(files: Sequence[Path], base: Path, scratch: Path) -> dict[str, Any]:
    """Two forked processes read, tokenize and write arrays, a file at a time: no packing, no cleaning, no Ray."""
    import gigatoken

    tokenizer_json = (base / "tokenizer.json").read_text(encoding="utf-8")

    def work(files: Any, results: Any) -> None:
        engine, tokens = gigatoken.Tokenizer.from_json(tokenizer_json), 0
        while (path := files.get()) is not None:
            tokens += _encode_file(engine, path, scratch / path.stem)
        results.put(tokens)

    context = multiprocessing.get_context("fork")
    watch = Watch()
    todo, results = context.SimpleQueue(), context.SimpleQueue()
    for path in [*files, None, None]:
        todo.put(path)
    processes = [context.Process(target=work, args=(todo, results)) for _ in range(2)]
    for process in processes:
        process.start()
    tokens = sum(results.get() for _ in processes)
    for process in processes:
        process.join()
    return {**watch.read(), "tokens": tokens}


def _encode_file(engine: Any, path: Path, stem: Path) -> int:
    column = pj.read_json(path, read_options=pj.ReadOptions(use_threads=False, block_size=4 << 20)).column("text")
    tokens = 0
    with open(f"{stem}.ids", "wb") as ids_file, open(f"{stem}.lengths", "wb") as lengths_file:
        for start in range(0, len(column), BATCH_DOCUMENTS):
            layout = engine.encode_batch(column.slice(start, BATCH_DOCUMENTS).to_pylist(), parallel=False).layout
            ids_file.write(np.asarray(layout.content.data).astype(np.uint16).tobytes())
            lengths_file.write(np.diff(np.asarray(layout.offsets.data)).astype(np.uint32).tobytes())
            tokens += len(layout.content)
    return tokens


# ---- (c) ours


def pack_stage(variant: str, corpus: Corpus, files: int, scratch: Path) -> dict[str, Any]:
    """The pack stage from its start to its manifest, in a new storage root, on a Ray that has packed 800 other documents before."""
    import ray

    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    pack = VARIANTS[variant]
    run_pack(run_config("warm", corpus, corpus.tiny(), scratch, {**pack, "shard_bytes": 50_000}))
    manifest, took = run_pack(run_config("timed", corpus, corpus.files(files), scratch, pack))
    facts = manifest["facts"]
    stream = facts["streams"]["corpus"]
    train = stream["train"]
    found = {"engine": facts["engine"]["engine"], "fill": train["fill"], "dropped": stream["dropped"]}
    return {**took, "tokens": train["tokens"], **found}


def run_config(name: str, corpus: Corpus, paths: Sequence[Path], scratch: Path, pack: dict[str, Any], **stream: Any) -> Any:
    """A config with one stream, and a small file for validation."""
    from zhlm.config.schema import RunConfig

    of_stream = {"name": "corpus", "role": "new", "paths": [str(p) for p in paths], "held_out": [str(corpus.held_out())]}
    data = {
        "name": name,
        "storage": {"root": str(scratch / "runs")},
        "base": {"model": str(corpus.base())},
        "streams": [of_stream | stream],
        "pack": {"block_tokens": BLOCK_TOKENS, **pack},
        "train": {"steps": 1, "start": "after_packing"},
    }
    return RunConfig.model_validate(data)


def run_pack(config: Any) -> tuple[dict[str, Any], dict[str, float]]:
    """The manifest of the pack stage, and what it took from the start of the stage to that."""
    from zhlm.display import Display
    from zhlm.pipeline import run_stages
    from zhlm.storage import Run

    with open(os.devnull, "w", encoding="utf-8") as nothing, Display(nothing) as display:
        watch = Watch()
        run_stages(config, Run.of(config), ("pack",), display)
        took = watch.read()
    return Run.of(config).manifest("pack"), took


# ---- how much the made corpus flatters an engine that remembers words


def engine_alone(files: Sequence[Path], base: Path) -> dict[str, Any]:
    """Tokens per second of gigatoken in one thread, on the real files, on as much of the corpus, and on all of the corpus."""
    real = [text for path in sorted(REAL.glob("*.jsonl")) for text in texts_of(path)]
    num_bytes = sum(len(t.encode()) for t in real)
    every = [text for path in files for text in texts_of(path)]
    as_much: list[str] = []
    taken = 0
    while taken < num_bytes:
        as_much.append(every[len(as_much)])
        taken += len(as_much[-1].encode())
    tokenizer_json = (base / "tokenizer.json").read_text(encoding="utf-8")
    sets = {"real": real, "corpus_as_long": as_much, "corpus": every}
    return {f"{name}_tokens_per_s": _encode_all(tokenizer_json, texts) for name, texts in sets.items()}


def _encode_all(tokenizer_json: str, texts: list[str]) -> int:
    import gigatoken

    engine, tokens = gigatoken.Tokenizer.from_json(tokenizer_json), 0
    started_s = time.perf_counter()
    for start in range(0, len(texts), BATCH_DOCUMENTS):
        tokens += len(engine.encode_batch(texts[start : start + BATCH_DOCUMENTS], parallel=False).layout.content)
    return round(tokens / (time.perf_counter() - started_s))


def main(arm: str, corpus: Corpus, files: int, scratch: Path) -> dict[str, Any]:
    """Run one arm on the first files of the corpus."""
    if arm == "a":
        return datasets_map(corpus.files(files), corpus.base(), scratch)
    if arm == "b":
        return two_processes(corpus.files(files), corpus.base(), scratch)
    if arm == "engine":
        return engine_alone(corpus.files(files), corpus.base())
    return pack_stage(arm, corpus, files, scratch)


if __name__ == "__main__":
    name, folder, spliced_share, count, scratch = sys.argv[1:]
    print(json.dumps(main(name, Corpus(Path(folder), float(spliced_share)), int(count), Path(scratch))))
