"""What it costs to train only the new rows of a vocabulary: ours, PEFT's trainable tokens, and the whole tables, beside the same LoRA.

Each measurement in a process of its own with one thread, in turns; CPU seconds of a step and the growth of the peak memory. The last line
printed is the result, as JSON.
"""

import json
import resource
import statistics
import subprocess
import sys
import time
from argparse import ArgumentParser
from typing import Any

from benchmarks import machine

ROWS, NEW_ROWS = 150_000, 8000
TOKENS, STEPS = 128, 5
WAYS = ("new_rows", "peft_tokens", "all")


def measure(way: str) -> dict[str, float]:
    """In the child: the median step, and how much higher memory rose than before the first one."""
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = trainable(way)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    ids_BT = torch.randint(ROWS, (1, TOKENS))
    seconds = []
    for _ in range(STEPS):
        started = time.process_time()
        model(input_ids=ids_BT, labels=ids_BT).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.process_time() - started)
    peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"step_cpu_s": round(statistics.median(seconds), 3), "peak_mib": round((peak_kib - before_kib) / 1024, 1)}


def trainable(way: str) -> Any:
    """A tied Llama with LoRA and the named way to train its new rows."""
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    from zhlm.adapt.new_rows import split_rows

    sizes = {"hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 4, "num_attention_heads": 8}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=ROWS, tie_word_embeddings=True, **sizes))
    tables, new = ["embed_tokens", "lm_head"], range(ROWS - NEW_ROWS, ROWS)
    settings: dict[str, dict[str, Any]] = {
        "new_rows": {},
        "peft_tokens": {"trainable_token_indices": {table: list(new) for table in tables}},
        "all": {"modules_to_save": tables, "ensure_weight_tying": True},
    }
    adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj"], **settings[way]))
    if way == "new_rows":
        split_rows(model, new)
    return adapted


def main() -> None:
    options = ArgumentParser(description=(__doc__ or "").split("\n")[0])
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--child", choices=WAYS, help="measure one way; what the benchmark itself starts")
    given = options.parse_args()
    if given.child:
        print(json.dumps(measure(given.child)))
        return
    found: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for number in range(given.rounds):
        for way in WAYS[number % len(WAYS) :] + WAYS[: number % len(WAYS)]:
            done = subprocess.run(
                [sys.executable, "-m", "benchmarks.trained_rows", "--child", way], capture_output=True, text=True, check=True
            )
            found[way].append(json.loads(done.stdout.splitlines()[-1]))
    medians = {way: {name: statistics.median(r[name] for r in of_way) for name in of_way[0]} for way, of_way in found.items()}
    ratios = {name: {way: round(medians[way][name] / medians["new_rows"][name], 2) for way in WAYS[1:]} for name in medians["all"]}
    result = {"bench": "trained_rows", "medians": medians, "against_new_rows": ratios, "rounds": given.rounds}
    print(json.dumps(result | {"machine": machine.facts()}))


if __name__ == "__main__":
    main()
