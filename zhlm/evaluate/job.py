"""The evaluate stage: base and merged model on the held-out texts -> results.json and report.html."""

import json
from dataclasses import asdict
from typing import Any

import pyarrow.parquet as pq
import torch

from zhlm.config.prompts import check_masks
from zhlm.config.schema import RunConfig
from zhlm.errors import RunError
from zhlm.evaluate.generate import Answer, answer
from zhlm.evaluate.measure import in_words, measure_of, score
from zhlm.evaluate.models import best_device, both_models, load
from zhlm.evaluate.report import render
from zhlm.inference.bits import StreamScore
from zhlm.records import Progress, Report
from zhlm.storage import Run, storage_errors
from zhlm.tokenizer.load import load_tokenizer

Scores = dict[str, StreamScore]
SHOWN = ("bits_per_byte", "bits_per_character", "documents", "tokens")
SHOWN_OF_MASKED = ("sampled_tokens", "masked_accuracy", "masked_tokens")


def run(config: RunConfig, report: Report) -> dict[str, Any]:
    """Measure both models on every stream, let both answer the prompts, and write results.json and report.html.

    Raises: RunError when the export is missing, a stream has no held-out text, or a prompt for a masked model no mask.
    """
    run = Run.of(config)
    texts = {s.name: held_out_texts(run, s.name, config.evaluate.documents) for s in config.streams}
    sources = both_models(config, run)
    check_masks(config, config.evaluate.prompts, str(load_tokenizer(sources["adapted"][0]).mask_token))
    scores: dict[str, Scores] = {}
    written: dict[str, list[Answer]] = {}
    steps, done = len(sources) * (len(texts) + len(config.evaluate.prompts)), 0
    for model_name, (source, revision, drawn) in sources.items():
        model, tokenizer = load(source, best_device(), revision, drawn)
        scores[model_name], written[model_name] = {}, []
        for stream, documents in texts.items():
            report(Progress("evaluate", done, steps, "measurements", {"model": model_name, "stream": stream}))
            scores[model_name][stream] = score(config, model, tokenizer, documents)
            done += 1
        for prompt in config.evaluate.prompts:
            report(Progress("evaluate", done, steps, "measurements", {"model": model_name, "prompt": prompt}))
            written[model_name].append(answer(config, model, tokenizer, prompt, config.evaluate.generate))
            done += 1
        del model
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    results = _results(config, run, scores, written)
    (run.evaluate / "results.json").write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    metrics = run.metrics.read_text() if run.metrics.exists() else ""
    (run.evaluate / "report.html").write_text(render(config, results, metrics))
    report(Progress("evaluate", steps, steps, "measurements", {}))
    return _facts(config, run, results)


def held_out_texts(run: Run, stream: str, limit: int) -> list[str]:
    """The first held-out documents of a stream, in file order. Raises: RunError when there are none."""
    place = run.blocks / stream / "held_out.parquet"
    if not place.exists():
        raise RunError(f"evaluate: {place} does not exist; run the pack stage first")
    texts: list[str] = []
    with storage_errors("reading", place):
        for batch in pq.ParquetFile(place.on_disk()).iter_batches(batch_size=min(limit, 1000), columns=["text"]):
            texts += batch.column(0).to_pylist()
            if len(texts) >= limit:
                break
    if not texts:
        raise RunError(f"evaluate: {place} holds no documents; raise pack.validation_share or name held_out files for the stream {stream}")
    return texts[:limit]


def _results(config: RunConfig, run: Run, scores: dict[str, Scores], written: dict[str, list[Answer]]) -> dict[str, Any]:
    shown = SHOWN + (SHOWN_OF_MASKED if config.objective.name == "masked" else ())
    tables = {
        m: {stream: {key: getattr(score, key) for key in shown} for stream, score in streams.items()} for m, streams in scores.items()
    }
    return {
        "measure": measure_of(config),
        **tables,
        "entropy_bits_per_byte": entropy_bits_per_byte(config, run),
        "vocabulary": _vocabulary(config, run),
        "change": {stream: scores["adapted"][stream].bits_per_byte / base.bits_per_byte - 1 for stream, base in scores["base"].items()},
        "generations": [
            {"prompt": prompt, **_generation({"base": base, "adapted": adapted})}
            for prompt, base, adapted in zip(config.evaluate.prompts, written["base"], written["adapted"], strict=True)
        ],
        "alerts": alerts(config, scores["base"], scores["adapted"]),
    }


def _generation(answers: dict[str, Answer]) -> dict[str, Any]:
    """What each model wrote; of masked ones the guesses for each mask as well."""
    guesses = {model: [[asdict(guess) for guess in mask] for mask in a.guesses] for model, a in answers.items() if a.guesses}
    return {model: a.texts[0] for model, a in answers.items()} | ({"guesses": guesses} if guesses else {})


def entropy_bits_per_byte(config: RunConfig, run: Run) -> dict[str, float] | None:
    """The entropy of the grammar for each stream that the sample stage wrote: of whole texts, so only where these are measured. None for
    real text."""
    if config.sample is None or config.sample.corpus is None or measure_of(config) != "causal":
        return None
    corpus = run.manifest("sample")["facts"]["corpus"]
    return {s.name: float(corpus[s.name]["entropy_bits_per_byte"]) for s in config.streams if s.name in corpus}


def _vocabulary(config: RunConfig, run: Run) -> dict[str, Any] | None:
    """The curve of the vocab stage, or what it made of another tokenizer's rows; None where it did neither."""
    facts = run.manifest("vocab")["facts"] if config.vocab else {}
    return {key: facts[key] for key in ("curve", "chosen_rows", "stopped_by", "copied", "made") if key in facts} or None


def alerts(config: RunConfig, base: Scores, adapted: Scores) -> list[str]:
    """What the reader must not overlook: forgetting, and text that a tokenizer cannot spell."""
    found = []
    allowed = config.evaluate.forgetting_alert_share
    for stream in config.streams:
        before, after = base[stream.name].bits_per_byte, adapted[stream.name].bits_per_byte
        if stream.role == "old" and after > before * (1 + allowed):
            found.append(
                f"Forgetting: {stream.name} rose from {before:.3f} to {after:.3f} bits per byte ({after / before - 1:+.1%}), more than the "
                f"{allowed:.0%} allowed; give {stream.name} more weight, or lower train.learning_rate."
            )
        for model, scores in (("base", base), ("adapted", adapted)):
            if unknown := scores[stream.name].unknown_tokens:
                found.append(
                    f"The tokenizer of the {model} model cannot spell {unknown:,} pieces of {stream.name}: its bits per byte are too low "
                    "there, because what is lost costs nothing."
                )
    return found


def _facts(config: RunConfig, run: Run, results: dict[str, Any]) -> dict[str, Any]:
    streams, both = [s.name for s in config.streams], ("base", "adapted")
    numbers = {s: {model: results[model][s]["bits_per_byte"] for model in both} for s in streams}
    unit = f"bits per byte {in_words(config)}".rstrip()
    said = [f"{s} {n['base']:.3f} -> {n['adapted']:.3f} {unit}" for s, n in numbers.items()]
    accuracy = {s: {model: results[model][s].get("masked_accuracy") for model in both} for s in streams}
    if config.objective.name == "masked":
        said = [f"{line}, {accuracy[s]['base']:.1%} -> {accuracy[s]['adapted']:.1%} right" for s, line in zip(streams, said, strict=True)]
    return {
        "summary": "; ".join(said),
        "measure": results["measure"],
        "bits_per_byte": numbers,
        **({"masked_accuracy": accuracy} if config.objective.name == "masked" else {}),
        "entropy_bits_per_byte": results["entropy_bits_per_byte"],
        "change": results["change"],
        "alerts": results["alerts"],
        "results": str(run.evaluate / "results.json"),
        "report": str(run.evaluate / "report.html"),
    }
