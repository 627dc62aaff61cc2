"""What the vocab stage promises, on real text.

pieces: as good as those of a tokenizer of the language's own, all reachable, the same in all engines. learning: time and memory. speed: the
longer tokenizer's against the base's. appended: the proof of a vocabulary that was extended the usual way. rows: where new rows start, and
what that is worth after training.

The last line printed is the result, as JSON. --docs FOLDER writes the curves of `rows` there as a picture.
"""

import json
import re
import statistics
import sys
import tempfile
import time
from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import appended, machine, new_rows
from benchmarks.corpus import REAL
from benchmarks.extension import SHARE, documents, english_base, extended, train_bpe
from benchmarks.pack import QUIET

ROWS = 8000
GOALS = {"tokens_against_scratch": 1.03, "learning_s": 60.0, "peak_gb": 2.0, "speed_share": 0.9}
ENGINES = ("tokenizers", "gigatoken")
HAN = re.compile("[\u3400-\u9fff]+")
PARTS = ("pieces", "learning", "speed", "appended", "rows")


# ---- pieces


def pieces() -> dict[str, Any]:
    """8,000 rows learned on nine documents of ten, against a tokenizer that has these documents' merges alone, on the tenth."""
    from zhlm.pieces.extend import first_new_id
    from zhlm.pieces.gain import curve_facts
    from zhlm.tokenizer.encode import TokenizersEncoder
    from zhlm.tokenizer.fertility import tokens_per_character
    from zhlm.tokenizer.load import tokenizer_json
    from zhlm.vocab.verify import verify

    chinese, english = documents("docs_zh"), documents("docs_en")
    unseen, seen = chinese[::SHARE], [text for n, text in enumerate(chinese) if n % SHARE]
    before = english_base()
    after, learned, proposed = extended(before, seen, ROWS)
    scratch = train_bpe(seen, 256 + ROWS)
    encoders = {"base": tokenizer_json(before), "extended": tokenizer_json(after), "scratch": scratch.to_str()}
    encoders = {name: TokenizersEncoder(spec) for name, spec in encoders.items()}
    han = [
        run for text in unseen for run in HAN.findall(text)
    ]  # without the English words, which the base knows and the other has to learn
    per_character, per_han = ({name: tokens_per_character(e, texts) for name, e in encoders.items()} for texts in (unseen, han))
    proof = verify(before, after, learned, first_new_id(before), unseen, english)
    of_han = per_han["extended"] / per_han["scratch"]
    ratio = per_character["extended"] / per_character["scratch"]
    reachable, same = proof.reachable / proof.new_pieces, same_ids(after, [*chinese, *english])
    return {
        "tokens_per_character": {name: round(value, 4) for name, value in per_character.items()},
        "against_scratch": {
            "ratio": round(ratio, 4),
            "goal": GOALS["tokens_against_scratch"],
            "met": ratio <= 1.03,
            "of_han_alone": round(of_han, 4),
        },
        "rows": len(learned.pieces),
        "reachable": {"share": reachable, "alone": proof.alone, "in_text": proof.covered, "goal": 1.0, "met": reachable == 1.0},
        "same_ids": {**same, "goal": 1.0, "met": all(share == 1.0 for share in same.values())},
        "old_texts_same": proof.old_texts_same / proof.old_texts,
        "old_tokens_new_share": round(proof.old_tokens_new_share, 5),
        **curve_facts(proposed, learned, sum(map(len, seen)), ROWS),
    }


def same_ids(tokenizer: Any, texts: Sequence[str]) -> dict[str, float]:
    """Share of the tokens in texts that an engine encodes exactly as `tokenizers` does."""
    from zhlm.tokenizer.encode import make_encoder
    from zhlm.tokenizer.load import tokenizer_json

    spec = tokenizer_json(tokenizer)
    reference = rows_of(make_encoder("tokenizers", spec), texts)
    others = {"gigatoken": rows_of(make_encoder("gigatoken", spec), texts)}
    others["transformers"] = [np.asarray(ids) for ids in tokenizer(list(texts), add_special_tokens=False)["input_ids"]]
    total = sum(map(len, reference))
    return {
        name: sum(len(row) for row, other in zip(reference, rows, strict=True) if np.array_equal(row, other)) / total
        for name, rows in others.items()
    }


def rows_of(encoder: Any, texts: Sequence[str]) -> list[Any]:
    ids_I, offsets = encoder.encode_batch(texts)
    return np.split(ids_I, offsets[1:-1])


# ---- what it costs


def learning() -> dict[str, Any]:
    """The vocab stage in a process of its own, on all of docs_zh and poems_zh, while all its processes' memory is summed up."""
    with tempfile.TemporaryDirectory(prefix="zhlm-bench-") as scratch:
        busy = {"busy_before": machine.busy_share()}
        out, peak = machine.watched([sys.executable, "-m", "benchmarks.vocab", "--child", scratch], QUIET)
    result = json.loads(out.splitlines()[-1]) | busy
    peak_gb = sum(size for size, _ in peak) / 1e9
    largest = [f"{name} {size / 1e9:.2f}" for size, name in peak[:4]]
    met = {"time_met": result["learning_s"] <= GOALS["learning_s"], "memory_met": peak_gb <= GOALS["peak_gb"]}
    goals = {"goal_s": GOALS["learning_s"], "goal_gb": GOALS["peak_gb"]}
    return result | {"peak_gb": round(peak_gb, 3), "largest": largest, **goals, **met}


def stage(scratch: Path) -> dict[str, Any]:
    """In the child: a tiny model with the English tokenizer, and the vocab stage on it. Learning ends with the last row proposed."""
    import ray
    from transformers import LlamaConfig, LlamaForCausalLM

    from zhlm.config.schema import RunConfig
    from zhlm.vocab.job import run

    tokenizer = english_base()
    tokenizer.save_pretrained(scratch / "base")
    sizes = LlamaConfig(vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2)
    LlamaForCausalLM(sizes).save_pretrained(scratch / "base")
    data = {
        "name": "vocab",
        "storage": {"root": str(scratch / "runs")},
        "base": {"model": str(scratch / "base")},
        "streams": [{"name": "zh", "role": "new", "paths": [str(REAL / f"{name}.jsonl") for name in ("docs_zh", "poems_zh")]}],
        "vocab": {"add_rows": ROWS},
        "train": {"steps": 1},
    }
    config = RunConfig.model_validate(data)
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    ended: dict[str, float] = {}
    started = time.perf_counter()
    facts = run(config, lambda progress: ended.__setitem__(progress.unit, time.perf_counter() - started))
    took = {"counting_s": ended["files"], "learning_s": ended["rows"], "stage_s": time.perf_counter() - started}
    shown = ("added", "reachable", "tokens_per_character", "learned_from")
    return {name: round(seconds, 1) for name, seconds in took.items()} | {name: facts[name] for name in shown}


def speed(rounds: int) -> dict[str, Any]:
    """CPU seconds that one thread of each engine needs for the same text with the base's and with the extended tokenizer, in turns; and
    with one trained on this text from scratch, which has to merge as much."""
    from zhlm.tokenizer.encode import make_encoder
    from zhlm.tokenizer.load import tokenizer_json

    before = english_base()
    chinese, poems = documents("docs_zh"), documents("poems_zh")
    new, old = [*chinese, *poems[:: len(poems) // 20_000]], documents("docs_en")
    after, _, _ = extended(before, [*chinese, *poems], ROWS)
    scratch = train_bpe([*chinese, *poems], 256 + ROWS)
    specs = {"base": tokenizer_json(before), "extended": tokenizer_json(after), "scratch": scratch.to_str()}
    found: dict[str, Any] = {}
    for engine in ENGINES:
        for language, texts in (("new", new), ("old", old)):
            times: dict[str, list[float]] = {name: [] for name in specs}
            for number in range(rounds):
                for name in sorted(specs, reverse=bool(number % 2)):
                    encoder = make_encoder(engine, specs[name], parallel=False)  # anew: engines remember words
                    started = time.process_time()
                    for at in range(0, len(texts), 5000):
                        encoder.encode_batch(texts[at : at + 5000])
                    times[name].append(round(time.process_time() - started, 4))
            median_s = {name: statistics.median(cpu_s) for name, cpu_s in times.items()}
            share = median_s["base"] / median_s["extended"]
            megabytes = sum(len(text.encode()) for text in texts) / 1e6
            rates = {f"{name}_mb_per_s": round(megabytes / seconds, 2) for name, seconds in median_s.items()}
            met = {"goal": GOALS["speed_share"], "met": share >= GOALS["speed_share"]}
            found[f"{engine}_{language}"] = {"share": round(share, 3), **met, **rates, "cpu_s": times}
            print(f"{engine} {language} {share:.3f}", file=sys.stderr, flush=True)
    return found


def main() -> None:
    options = ArgumentParser(description=(__doc__ or "").split("\n")[0])
    options.add_argument("--parts", default=",".join(PARTS), help="some of them (default: %(default)s)")
    options.add_argument("--rounds", type=int, default=5, help="of the encoding speed (default: %(default)s)")
    options.add_argument("--docs", type=Path, help="folder that the picture of the curves is written to")
    options.add_argument("--child", type=Path, metavar="SCRATCH", help="run the vocab stage; what the benchmark itself starts")
    given = options.parse_args()
    if given.child:
        print(json.dumps(stage(given.child)))
        return
    if not REAL.is_dir():
        raise SystemExit(f"benchmarks: {REAL} does not exist, expected docs_zh, poems_zh and docs_en as .jsonl there; copy them there")
    ways = {
        "pieces": pieces,
        "learning": learning,
        "speed": lambda: speed(given.rounds),
        "appended": appended.run,
        "rows": lambda: new_rows.run(given.docs),
    }
    found: dict[str, Any] = {}
    for name in given.parts.split(","):
        found[name] = ways[name]()
        print(f"{name:9}{json.dumps(found[name])}", file=sys.stderr, flush=True)
    print(json.dumps({"bench": "vocab", **found, "machine": machine.facts()}))


if __name__ == "__main__":
    main()
