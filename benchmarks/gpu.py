"""Training on one GPU: tokens per second and MFU of LoRA and of all parameters, beside transformers' Trainer with PEFT on the same blocks.

Random Llamas of 0.5B and 8B, blocks of 4,096 tokens that are one document each, bfloat16. Every arm in a process of its own, in turns;
medians over the rounds. The last line printed is the result, as JSON. Without a GPU it says so and ends with 2.
"""

import json
import statistics
import subprocess
import sys
import tempfile
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.made_blocks import write_blocks
from benchmarks.train import in_turns, machine_facts, step_seconds
from zhlm.config.schema import RunConfig
from zhlm.storage import Run

SHAPES: dict[str, dict[str, Any]] = {
    "0.5B": {
        "vocab_size": 128_256, "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
        "num_key_value_heads": 8, "tie_word_embeddings": True,
    },
    "8B": {
        "vocab_size": 128_256, "hidden_size": 4096, "intermediate_size": 14_336, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 8, "tie_word_embeddings": False,
    },
}  # fmt: skip
"""As Llama-3 has them; the smaller one is cut to half a billion parameters."""
METHODS: dict[str, dict[str, Any]] = {"lora": {"lora": {"r": 16}, "embeddings": "none"}, "full": {"lora": None}}
SETTINGS: dict[str, dict[str, Any]] = {
    "0.5B": {"micro_batch_blocks": 4},
    "8B": {"micro_batch_blocks": 1, "gradient_checkpointing": True},
}
PEAK_TFLOPS = {"B200": 2250.0, "H200": 989.0, "H100": 989.0, "A100": 312.0, "L40S": 362.0, "L4": 121.0, "RTX 4090": 165.0}
"""Of dense bfloat16 products, by the makers' data sheets; a device's name contains the key."""
GOALS = {"ratio": 1.25, "mfu": 0.5}
BLOCK_TOKENS, STEPS, LORA_RANK = 4096, 30, 16


def linear_shapes(shape: Mapping[str, Any]) -> list[tuple[int, int]]:
    """(inputs, outputs) of every linear layer of one block."""
    width, inner = shape["hidden_size"], shape["intermediate_size"]
    kv = width // shape["num_attention_heads"] * shape["num_key_value_heads"]
    return [(width, width), (width, kv), (width, kv), (width, width), (width, inner), (width, inner), (inner, width)]


def flops_per_token(shape: Mapping[str, Any], block_tokens: int, lora_rank: int | None) -> float:
    """Floating point operations that training one token needs, of matrix products: recomputation and what is not one do not count.

    2 for each weight in the forward pass, 2 for the gradient of its input, 2 for its own where it is trained. Attention is causal: a token
    meets half of the block, in two products, and backward takes twice as many. Lookups in the embedding are free.
    Source: "PaLM: Scaling Language Modeling with Pathways" (Chowdhery et al., 2022), appendix B; we add frozen weights and halve attention.
    """
    layers, linears = shape["num_hidden_layers"], linear_shapes(shape)
    weights = layers * sum(i * o for i, o in linears) + shape["vocab_size"] * shape["hidden_size"]
    adapter = layers * sum(lora_rank * (i + o) for i, o in linears) if lora_rank else 0
    attention = layers * 3 * 4 * shape["hidden_size"] * (block_tokens + 1) / 2
    return (6 if lora_rank is None else 4) * weights + 6 * adapter + attention


def peak_flops(device_name: str, peak_tflops: float | None) -> float | None:
    """Per second, of the GPU; None for one that is not in the list and was not told."""
    known = next((peak for name, peak in PEAK_TFLOPS.items() if name in device_name), None)
    return (peak_tflops or known) * 1e12 if peak_tflops or known else None


def config_of(folder: Path, size: str, method: str, steps: int, block_tokens: int, workers: Mapping[str, Any]) -> RunConfig:
    """One run per model; its blocks serve all arms."""
    data = {
        "name": f"gpu-{size}",
        "storage": {"root": str(folder / "runs")},
        "base": {"model": str(folder / f"base-{size}")},
        "streams": [{"name": "made", "role": "new", "paths": [str(folder / "made.txt")]}],
        "pack": {"block_tokens": block_tokens},
        "train": {
            "steps": steps, "global_batch_blocks": 16, "schedule": "constant", "warmup_share": 0.0, "learning_rate": 1e-5, "log_every": 1,
            "validate_every": 10**6, "checkpoint_every": 10**6, "validation_blocks": 1, "precision": "bfloat16", "zero_stage": 0,
            **SETTINGS.get(size, {"micro_batch_blocks": 4}), **METHODS[method],
        },
        "resources": dict(workers),
    }  # fmt: skip
    return RunConfig.model_validate_json(json.dumps(data))


def prepare(config: RunConfig, shape: Mapping[str, Any], device: str) -> None:
    """A random model and blocks of random documents, one in each block."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from zhlm.sample.base import train_tokenizer
    from zhlm.sample.corpus import stories

    folder = Path(config.base.model)
    if (folder / "tokenizer.json").exists():
        return
    torch.manual_seed(config.seed)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(device):
        model = LlamaForCausalLM(LlamaConfig(max_position_embeddings=config.pack.block_tokens, **shape))
    torch.set_default_dtype(before)
    model.save_pretrained(folder)
    (stream,) = config.streams
    assert config.train.steps is not None, "the benchmark sets it"
    write_blocks(
        Run.of(config).folder.path, stream.name, blocks=config.train.steps * config.train.global_batch_blocks,
        block_tokens=config.pack.block_tokens, vocabulary=shape["vocab_size"], documents_per_block=1,
    )  # fmt: skip
    # Last, as the sign that all is there.
    train_tokenizer(stories("zh", 100, config.seed), 300, config.pack.block_tokens).save_pretrained(folder)


def measure(arm: str, config: RunConfig) -> dict[str, Any]:
    """In the child: the seconds of its steps, and their losses."""
    if arm == "zhlm":
        from benchmarks.train_arms import zhlm_steps

        found = zhlm_steps(config)
        return {"told_s": found["told_s"], "losses": found["losses"]}
    import torch

    from benchmarks.train_loops import transformers_trainer

    told: list[tuple[float, float]] = []
    device = "cuda" if torch.cuda.is_available() else "cpu"
    transformers_trainer(config, config.train.steps or 0, lambda _, *facts: told.append(facts), deepspeed=False, device=device)
    return {"step_s": [seconds for seconds, _ in told], "losses": [loss for _, loss in told]}


def child(arm: str, config: RunConfig) -> dict[str, Any]:
    """One arm in a new process; what stopped it (too little memory, say) where it fails, for the others are still worth knowing."""
    with tempfile.TemporaryDirectory(prefix="zhlm-bench-") as scratch:
        given, result = Path(scratch) / "config.json", Path(scratch) / "result.json"
        given.write_text(config.model_dump_json(), encoding="utf-8")
        command = [sys.executable, "-m", "benchmarks.gpu", "--child", arm, str(given), str(result)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            return {"failed": (done.stderr.strip().splitlines() or ["without a word"])[-1]}
        found: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
    return found


def compare(config: RunConfig, size: str, method: str, rounds: int, peak: float | None) -> dict[str, Any]:
    """Tokens per second and MFU of both, and their ratio beside its goal."""
    found = in_turns({arm: lambda arm=arm: child(arm, config) for arm in ("zhlm", "transformers")}, rounds)
    flops = flops_per_token(SHAPES[size], config.pack.block_tokens, LORA_RANK if method == "lora" else None)
    step_tokens = config.train.global_batch_blocks * config.pack.block_tokens
    results: dict[str, Any] = {}
    for arm, of_arm in found.items():
        failed = next((r["failed"] for r in of_arm if "failed" in r), None)
        if failed is not None:
            results[arm] = {"failed": failed}
            continue
        rates = [step_tokens / step_seconds(r) for r in of_arm]
        rate = statistics.median(rates)
        results[arm] = {"tokens_per_s": round(rate), "rounds": [round(r) for r in rates], "last_loss": round(of_arm[-1]["losses"][-1], 4)}
        results[arm]["mfu"] = peak and round(rate * flops / peak, 4)
    ours, theirs = results["zhlm"], results["transformers"]
    if "failed" not in ours and "failed" not in theirs:
        ratio = ours["tokens_per_s"] / theirs["tokens_per_s"]
        met = ratio >= GOALS["ratio"] and (ours["mfu"] or 0.0) >= GOALS["mfu"]
        results |= {"ratio": round(ratio, 3), "goals": GOALS, "met": met}
    print(f"{size} {method}: {json.dumps(results)}", file=sys.stderr, flush=True)
    return results


def run_all(given: Namespace) -> dict[str, Any]:
    import torch

    name = torch.cuda.get_device_name(0)
    peak, resources = peak_flops(name, given.peak_tflops), {"workers": 1, "gpus_per_worker": 1, "cpus_per_worker": 1}
    found = {}
    given.folder.mkdir(parents=True, exist_ok=True)
    for size in given.sizes.split(","):
        for method in given.methods.split(","):
            config = config_of(given.folder.absolute(), size, method, given.steps, BLOCK_TOKENS, resources)
            prepare(config, SHAPES[size], "cuda")
            found[f"{size}/{method}"] = compare(config, size, method, given.rounds, peak)
    return {"bench": "gpu", "device": name, "peak_tflops": peak and peak / 1e12, "results": found, "machine": machine_facts()}


def main() -> int:
    options = ArgumentParser(description=(__doc__ or "").split("\n")[0])
    options.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "zhlm-benchmarks" / "gpu")
    options.add_argument("--sizes", default=",".join(SHAPES), help="some of them (default: %(default)s)")
    options.add_argument("--methods", default=",".join(METHODS), help="some of them (default: %(default)s)")
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--steps", type=int, default=STEPS)
    options.add_argument("--peak-tflops", type=float, help="of dense bfloat16 products, for a GPU that is not in the list")
    options.add_argument("--child", nargs=3, metavar=("ARM", "CONFIG", "RESULT"), help="one arm; what the benchmark itself starts")
    given = options.parse_args()
    if given.child:
        arm, config, result = given.child
        found = measure(arm, RunConfig.model_validate_json(Path(config).read_text(encoding="utf-8")))
        Path(result).write_text(json.dumps(found), encoding="utf-8")
        return 0
    import torch

    if not torch.cuda.is_available():
        print("benchmarks: gpu: torch sees no CUDA device, expected one; run it on a machine with a GPU", file=sys.stderr)
        return 2
    print(json.dumps(run_all(given)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
