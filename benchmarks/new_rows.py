"""Where new rows start, and what is left of that after 200 steps: a small Llama trained on English and some Chinese gets 2,000 rows more.

Base: docs_en and a tenth of docs_zh, with a byte-level BPE of 4,000 entries trained on docs_en. Another tenth is measured on; pieces are
learned on, and training goes on with, the remaining eight. Every initialisation sees the same batches. One process, no Ray.
"""

import copy
import math
import random
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.extension import SHARE, documents, english_base, extended

VOCABULARY = 4000
ROWS = 2000
BASE_STEPS = 1500
STEPS = 200
EVERY = 20
BATCH_ROWS = 8
ROW_TOKENS = 256
BASE_RATE, RATE = 3e-3, 1e-3
SEED = 5
GOAL = 1.10
COLOURS = {"subword_mean": "#1f77b4", "mean": "#2ca02c", "mean_noise": "#d62728", "similarity": "#9467bd", "random": "#8c564b"}

Curve = list[tuple[int, float]]


def run(docs: Path | None) -> dict[str, Any]:
    """Bits per byte of unseen Chinese through training, for each initialisation."""
    from zhlm.embeddings.compare import Texts, compare, first_texts
    from zhlm.pieces.extend import first_new_id
    from zhlm.pieces.kinds import take_apart
    from zhlm.sample.base import encode, pack_rows

    chinese, english = documents("docs_zh"), documents("docs_en")
    unseen, known = chinese[::SHARE], chinese[1::SHARE]
    rest = [text for n, text in enumerate(chinese) if n % SHARE > 1]
    before = english_base(VOCABULARY)
    base = small_model(before)
    train(base, pack_rows(encode(before, [*english, *known]), ROW_TOKENS), BASE_STEPS, BASE_RATE)

    after, learned, _ = extended(before, rest, ROWS)
    first_id = first_new_id(before)
    inits = ways(base, after, learned.pieces, first_id, take_apart(before.backend_tokenizer), rest)
    texts = Texts(first_texts(unseen), first_texts(english), "documents that nothing was learned from; English ones that the base saw")
    step_0 = compare(copy.deepcopy(base), before, after, first_id, inits, texts)
    rows = {"extended": pack_rows(encode(after, rest), ROW_TOKENS), "base": pack_rows(encode(before, rest), ROW_TOKENS)}
    curves = {"base": trained(base, before, None, rows["base"], texts.new)}
    for name, init in inits.items():
        curves[name] = trained(base, after, (first_id, len(learned.pieces), init), rows["extended"], texts.new)
        print(f"{name:13}{curves[name]}", file=sys.stderr, flush=True)
    if docs:
        (docs / "vocab_init.svg").write_text(picture(curves, step_0.base["bits_per_byte_new"] or 0.0), encoding="utf-8")
    return verdict(step_0, curves) | {"parameters": sum(p.numel() for p in base.parameters())}


def small_model(tokenizer: Any) -> Any:
    """An untrained Llama with tied embeddings."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(SEED)
    sizes = {"hidden_size": 128, "intermediate_size": 352, "num_hidden_layers": 4, "num_attention_heads": 4}
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    return LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=1024, tie_word_embeddings=True, **sizes, **ends))


def ways(model: Any, after: Any, pieces: list[str], first_id: int, base: Any, texts: Sequence[str]) -> dict[str, Any]:
    """Each initialisation, as the vocab stage makes it."""
    from zhlm.embeddings import initialise
    from zhlm.embeddings.similarity import similarity
    from zhlm.tokenizer.encode import TokenizersEncoder
    from zhlm.tokenizer.load import tokenizer_json

    ids_I, offsets = TokenizersEncoder(tokenizer_json(after)).encode_batch(texts)
    return {
        "subword_mean": initialise.subword_mean(pieces, base),
        "mean": initialise.mean(len(pieces)),
        "mean_noise": initialise.mean_noise(len(pieces)),
        "similarity": similarity(ids_I, offsets, first_id, base.merge(pieces))[0],
        "random": initialise.random(len(pieces), initialise.deviation_of(model.config)),
    }


def trained(base: Any, tokenizer: Any, new: tuple[int, int, Any] | None, rows: list[Any], texts: Sequence[str]) -> Curve:
    """Bits per byte of texts, before and while a copy of the base with new rows is trained."""
    from zhlm.inference.bits import measure
    from zhlm.model.resize import add_rows

    model = copy.deepcopy(base)
    if new:
        add_rows(model, *new)
    curve: Curve = []

    def look(step: int) -> None:
        model.eval()
        score = measure(model, tokenizer, texts, document_start="none", document_end="none", block_tokens=512, device="cpu")
        curve.append((step, round(score.bits_per_byte, 4)))
        model.train()

    look(0)
    train(model, rows, STEPS, RATE, look)
    return curve


def train(model: Any, rows: list[Any], steps: int, rate: float, look: Any = None) -> None:
    """All weights, with AdamW: a warm-up, then a constant rate with a linear end."""
    import torch
    from torch.nn.functional import cross_entropy

    from zhlm.sample.base import batch_of

    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.95), weight_decay=0.01)
    batches = endless(rows)
    model.train()
    for step in range(1, steps + 1):
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, step / 20, 1.1 - step / steps if step > 0.8 * steps else 1.0)
        batch = batch_of(next(batches), ROW_TOKENS)
        logits_RTV = model(input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False).logits
        loss = cross_entropy(logits_RTV[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten(), ignore_index=-100)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 100 == 0:
            print(f"step {step} loss {loss.item():.3f}", file=sys.stderr, flush=True)
        if look and step % EVERY == 0:
            look(step)


def endless(rows: list[Any]) -> Iterator[list[Any]]:
    """Batches, each epoch in an order of its own, the same for every caller."""
    rng = random.Random(SEED)
    while True:
        order = rng.sample(rows, len(rows))
        for at in range(0, len(order) - BATCH_ROWS + 1, BATCH_ROWS):
            yield order[at : at + BATCH_ROWS]


def verdict(step_0: Any, curves: dict[str, Curve]) -> dict[str, Any]:
    """The goals: at step 0 near the base, and after training better than what is drawn."""
    chosen, start = step_0.best, step_0.base["bits_per_byte_new"]
    ratio = step_0.inits[chosen]["bits_per_byte_new"] / start
    ends = {name: curve[-1][1] for name, curve in curves.items()}
    better = ends[chosen] < min(ends["random"], ends["mean_noise"])
    return {
        "base": step_0.base,
        "step_0": step_0.inits,
        "chosen": chosen,
        "chosen_against_base": {"ratio": round(ratio, 4), "goal": GOAL, "met": ratio <= GOAL},
        "after_training": {"bits_per_byte": ends, "steps": STEPS, "met": better},
        "curves": curves,
    }


def picture(curves: dict[str, Curve], base: float) -> str:
    """Bits per byte against steps, on a logarithmic scale, as SVG."""
    width, height, left, right, top, bottom = 760, 420, 60, 150, 30, 50
    values = [value for curve in curves.values() for _, value in curve] + [base]
    low, high = min(values) * 0.97, max(values) * 1.03

    def place(step: float, value: float) -> tuple[float, float]:
        x = left + (width - left - right) * step / STEPS
        return round(x, 1), round(top + (height - top - bottom) * math.log(high / value) / math.log(high / low), 1)

    def text(x: float, y: float, words: str, anchor: str = "start", colour: str = "#444") -> str:
        return f'<text x="{x}" y="{y}" text-anchor="{anchor}" fill="{colour}">{words}</text>'

    parts = [text(left, 18, "bits per byte of unseen Chinese (logarithmic) against steps of continued pretraining")]
    for value in (1.2, 1.5, 2, 2.5, 3, 4, 5, 7, 10):
        if low < value < high:
            x, y = place(0, value)
            parts += [f'<path d="M{x} {y}H{width - right}" stroke="#ddd"/>', text(x - 8, y + 4, f"{value:g}", "end")]
    parts += [text(place(step, low)[0], height - bottom + 20, str(step), "middle") for step in range(0, STEPS + 1, 50)]
    x, y = place(0, base)
    parts.append(f'<path d="M{x} {y}H{width - right}" stroke="#444" stroke-dasharray="5 4"/>')
    labels = sorted((place(*curve[-1])[1], name, curve[-1][1]) for name, curve in curves.items())
    at = 0.0
    for y, name, value in labels:
        at = max(at + 16, y + 4)
        colour = COLOURS.get(name, "#444")
        points = " ".join(f"{a},{b}" for a, b in (place(*point) for point in curves[name]))
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts.append(text(width - right + 8, at, f"{'not extended' if name == 'base' else name} {value:.3f}", colour=colour))
    body = "\n".join(parts)
    frame = f'xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="13"'
    return f'<svg {frame}>\n<rect width="100%" height="100%" fill="#fff"/>\n{body}\n</svg>\n'
