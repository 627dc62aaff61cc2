"""Every way to train, on tiny models and two CPU workers: train, checkpoint, resume, export, load again, equal logits.

ZeRO stage and offload x what is trained x tied or not x architecture x precision. All combinations go through the same two workers, one
after the other. Prints a table, and the result as one JSON line, last.
"""

import json
import os
import shutil
import sys
import tempfile
import time
from argparse import ArgumentParser
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import combinations, product
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.made_blocks import write_blocks
from zhlm.config.schema import RunConfig
from zhlm.errors import ZhlmError
from zhlm.storage import Run

VOCABULARY, ADDED, BLOCK_TOKENS, STEPS = 96, 9, 32, 2
AXES: dict[str, tuple[Any, ...]] = {
    "zero": ("0", "1", "2", "3", "2 offload", "3 offload"),
    "method": ("lora", "lora + new_rows", "lora + all", "full"),
    "tied": (True, False),
    "architecture": ("gpt2", "llama", "bloom"),
    "precision": ("float32", "bfloat16"),
}
ASIDE, DONE = "aside", "trained_twice"
OFFLOADED = {"2 offload": "optimizer", "3 offload": "all"}


@dataclass(frozen=True)
class Combination:
    """One value of each axis."""

    zero: str
    method: str
    tied: bool
    architecture: str
    precision: str

    @property
    def name(self) -> str:
        tied = "tied" if self.tied else "untied"
        return f"zero {self.zero}, {self.method}, {self.architecture} {tied}, {self.precision}"

    @property
    def pairs(self) -> set[tuple[Any, ...]]:
        return {(*one, *other) for one, other in combinations(asdict(self).items(), 2)}


def every(axes: dict[str, tuple[Any, ...]] | None = None) -> list[Combination]:
    """All combinations of the axes."""
    axes = axes or AXES
    return [Combination(*values) for values in product(*(axes[f.name] for f in fields(Combination)))]


def covering(axes: dict[str, tuple[Any, ...]] | None = None) -> list[Combination]:
    """Few combinations in which every pair of values of two axes comes at least once; the same ones each time.

    Greedy: each takes the most pairs that are still missing, of equal ones that with the rarest values. No fewer are possible than the
    product of the two longest axes.
    """
    candidates = every(axes)
    missing = set[tuple[Any, ...]]().union(*(c.pairs for c in candidates))
    chosen: list[Combination] = []
    used = Counter[tuple[str, Any]]()
    while missing:
        best = max(candidates, key=lambda c: (len(c.pairs & missing), -sum(used[v] for v in asdict(c).items())))
        missing -= best.pairs
        used.update(asdict(best).items())
        chosen.append(best)
    return chosen


# ---- one combination as a run


def prepare(one: Combination, folder: Path) -> RunConfig:
    """A run with its blocks packed and, where rows are new, its vocabulary extended."""
    new_rows = one.method == "lora + new_rows"
    data = {
        "name": one.name.replace(" ", "_").replace(",", "").replace("+", "and"),
        "storage": {"root": str(folder / "runs")},
        "base": {"model": str(folder / "bases" / f"{one.architecture}-{one.tied}")},
        "streams": [{"name": "zh", "role": "new", "paths": [str(folder / "zh.txt")]}],
        "pack": {"block_tokens": BLOCK_TOKENS},
        "train": {
            "steps": STEPS, "global_batch_blocks": 6, "micro_batch_blocks": 2, "learning_rate": 1e-2, "log_every": 1,
            "checkpoint_every": STEPS // 2, "validation_blocks": 4, "zero_stage": int(one.zero[0]),
            "offload": OFFLOADED.get(one.zero, "none"), "precision": one.precision,
            "lora": None if one.method == "full" else {"r": 4, "dropout": 0.1},
            "embeddings": {"lora": "none", "lora + new_rows": "new_rows"}.get(one.method, "all"),
        },
        "vocab": {} if new_rows else None,
        "resources": {"workers": 2},
    }  # fmt: skip
    config = RunConfig.model_validate_json(json.dumps(data))
    run = Run.of(config)
    base = Path(config.base.model)
    if not base.exists():
        _save_base(one, base)
    write_blocks(run.folder.path, "zh", blocks=30, block_tokens=BLOCK_TOKENS, vocabulary=VOCABULARY)
    if new_rows:  # as the vocab stage leaves it
        shutil.copytree(base, run.vocab.path)
        (run.vocab / "manifest.json").write_text(json.dumps({"facts": {"added": ADDED}}))
    return config


def _save_base(one: Combination, folder: Path) -> None:
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import AutoModelForCausalLM, BloomConfig, GPT2Config, LlamaConfig, PreTrainedTokenizerFast

    both: dict[str, Any] = {"vocab_size": VOCABULARY, "tie_word_embeddings": one.tied, "bos_token_id": 0, "eos_token_id": 1}
    sizes: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    configs = {
        "gpt2": lambda: GPT2Config(n_positions=64, n_embd=32, n_layer=2, n_head=2, **both),
        "llama": lambda: LlamaConfig(intermediate_size=64, max_position_embeddings=64, **sizes, **both),
        "bloom": lambda: BloomConfig(hidden_size=32, n_layer=2, n_head=2, **both),
    }
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(configs[one.architecture]()).save_pretrained(folder)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())[: VOCABULARY - 2]
    tokenizer = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(["<bos>", "<eos>", *letters])}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>").save_pretrained(folder)


# ---- train and resume, on the workers


def train_all(settings: dict[str, Any]) -> None:
    """On a Ray Train worker: every run to its end; its last checkpoint is put aside, and it goes on from the one before. In one process,
    because DeepSpeed keeps the process groups of its first use."""
    from torch import distributed

    from zhlm.train.loop import train_worker

    board = settings["board"]
    for config, folder in settings["runs"]:
        for time_ in ("once", "resumed"):
            train_worker({"config": config, "folder": folder, "steps": STEPS, "board": board})
            distributed.barrier()
            last, aside = (Path(folder) / place / f"step_{STEPS:08d}" for place in ("checkpoints", ASIDE))
            if distributed.get_rank() == 0 and time_ == "once" and last.exists():
                aside.parent.mkdir()
                last.rename(aside)
            distributed.barrier()
        (Path(folder) / DONE).touch()


def train(configs: Sequence[RunConfig]) -> str:
    """Train them on two workers of the Ray that is up, until one fails. Returns what a worker found wrong, if it did."""
    import ray
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.train.v2.api.exceptions import TrainingFailedError

    from zhlm.train import job
    from zhlm.train.board import Board

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    board = Board.remote()  # type: ignore[attr-defined]
    runs = [(c.model_dump_json(), str(Run.of(c).folder)) for c in configs]
    with tempfile.TemporaryDirectory(prefix="zhlm-matrix-") as storage:
        try:
            TorchTrainer(
                train_all,
                train_loop_config={"runs": runs, "board": board},
                scaling_config=job.scaling_config(configs[0].resources),
                torch_config=TorchConfig(backend="gloo"),
                run_config=ray.train.RunConfig(storage_path=storage),
            ).fit()
        except TrainingFailedError as failed:
            return str(failed).strip().splitlines()[-1]
    error = ray.get(board.take.remote())[2]
    return f"{type(error).__name__}: {error}" if error else ""


# ---- what came out


def check(config: RunConfig) -> dict[str, Any]:
    """Whether the resumed run ended where the untouched one did, and both exports give the trained logits."""
    import torch

    from zhlm.checkpoint.state import newest
    from zhlm.export import job as export

    run = Run.of(config)
    (found, _), (once, _) = newest(run.checkpoints), newest(run.folder / ASIDE)
    if found is None or once is None or found.state.step != STEPS:
        return {"result": "failed", "why": "no checkpoint of the last step"}
    one, other = once.trainable(), found.trainable()
    assert set(one) == set(other), "the same parameters are trained"
    difference = max(float((one[name] - other[name]).abs().max()) for name in one)
    exact = all(torch.equal(one[name], other[name]) for name in one)
    facts = export.run(config, lambda _: None)
    logits = {name: facts[name] for name in facts if name.endswith("_difference")}
    return {"result": "works" if exact else "resumed otherwise", "resumed_difference": difference, **logits}


def outcomes(chosen: Sequence[Combination], folder: Path) -> Iterator[tuple[Combination, dict[str, Any]]]:
    """Train and check them all."""
    kept = {one: prepare(one, folder) for one in chosen}
    while kept:
        problem = train(list(kept.values()))
        through = [one for one, config in kept.items() if (Run.of(config).folder / DONE).exists()]
        for one in through:
            config = kept.pop(one)
            try:
                yield one, check(config)
            except ZhlmError as error:
                yield one, {"result": "failed", "why": f"{error}; {problem}"}
        if kept:  # the first that did not come through stopped the others
            one = next(iter(kept))
            del kept[one]
            yield one, {"result": "failed", "why": problem}


def main() -> None:
    options = ArgumentParser(description=(__doc__ or "").split("\n")[0])
    options.add_argument("--pairs", action="store_true", help="only a covering of all pairs of values, as the test has it")
    options.add_argument("--only", default="", help="only combinations whose names contain this")
    given = options.parse_args()
    import ray

    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    chosen = [one for one in (covering() if given.pairs else every()) if given.only in one.name]
    started_s = time.monotonic()
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory(prefix="zhlm-matrix-") as folder:
        for one, outcome in outcomes(chosen, Path(folder)):
            found[one.name] = outcome
            print(f"{outcome['result']:18}{one.name:60}{outcome.get('why', '')}", flush=True)
    counts = {result: sum(o["result"] == result for o in found.values()) for result in sorted({o["result"] for o in found.values()})}
    took = {"seconds": round(time.monotonic() - started_s, 1), "cpu_s": round(machine.tree_cpu_s(os.getpid()), 1)}
    print(json.dumps({"bench": "matrix", "counts": counts, **took, "combinations": found, "machine": machine.facts()}))


if __name__ == "__main__":
    main()
