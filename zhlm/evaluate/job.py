"""The evaluate stage: base and merged model on the held-out texts -> results.json and report.html."""

import json
from typing import Any

import pyarrow.parquet as pq
import torch

from zhlm.config.schema import RunConfig
from zhlm.errors import RunError
from zhlm.evaluate.generate import best_device, both_models, generate, load
from zhlm.evaluate.report import render
from zhlm.objectives.bits import StreamScore, measure
from zhlm.records import Progress, Report
from zhlm.storage import Run, storage_errors

Scores = dict[str, StreamScore]


def run(config: RunConfig, report: Report) -> dict[str, Any]:
    """Measure both models on every stream, let both continue the prompts, and write results.json and report.html.

    Raises: RunError when the export is missing or a stream has no held-out text.
    """
    run = Run.of(config)
    texts = {s.name: held_out_texts(run, s.name, config.evaluate.documents) for s in config.streams}
    sources = both_models(config, run)
    scores: dict[str, Scores] = {}
    written: dict[str, list[str]] = {}
    steps, done = len(sources) * (len(texts) + len(config.evaluate.prompts)), 0
    for model_name, (source, revision, drawn) in sources.items():
        model, tokenizer = load(source, best_device(), revision, drawn)
        scores[model_name], written[model_name] = {}, []
        for stream, documents in texts.items():
            report(Progress("evaluate", done, steps, "measurements", {"model": model_name, "stream": stream}))
            scores[model_name][stream] = _measure(config, model, tokenizer, documents)
            done += 1
        for prompt in config.evaluate.prompts:
            report(Progress("evaluate", done, steps, "measurements", {"model": model_name, "prompt": prompt}))
            settings, start = config.evaluate.generate, config.pack.document_start
            written[model_name] += generate(model, tokenizer, prompt, settings, document_start=start)
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


def _measure(config: RunConfig, model: Any, tokenizer: Any, texts: list[str]) -> StreamScore:
    pack = config.pack
    return measure(
        model,
        tokenizer,
        texts,
        document_start=pack.document_start,
        document_end=pack.document_end,
        block_tokens=pack.block_tokens,
        device=model.device,
    )


def _results(config: RunConfig, run: Run, scores: dict[str, Scores], written: dict[str, list[str]]) -> dict[str, Any]:
    shown = ("bits_per_byte", "bits_per_character", "documents", "tokens")
    tables = {
        m: {stream: {key: getattr(score, key) for key in shown} for stream, score in streams.items()} for m, streams in scores.items()
    }
    return {
        **tables,
        "entropy_bits_per_byte": entropy_bits_per_byte(config, run),
        "vocabulary": _vocabulary(config, run),
        "change": {stream: scores["adapted"][stream].bits_per_byte / base.bits_per_byte - 1 for stream, base in scores["base"].items()},
        "generations": [
            {"prompt": prompt, "base": base, "adapted": adapted}
            for prompt, base, adapted in zip(config.evaluate.prompts, written["base"], written["adapted"], strict=True)
        ],
        "alerts": alerts(config, scores["base"], scores["adapted"]),
    }


def entropy_bits_per_byte(config: RunConfig, run: Run) -> dict[str, float] | None:
    """The entropy of the grammar for each stream that the sample stage wrote; None for real text."""
    if config.sample is None or config.sample.corpus is None:
        return None
    corpus = run.manifest("sample")["facts"]["corpus"]
    return {s.name: float(corpus[s.name]["entropy_bits_per_byte"]) for s in config.streams if s.name in corpus}


def _vocabulary(config: RunConfig, run: Run) -> dict[str, Any] | None:
    """The curve of the vocab stage; None where it did not run, or before it wrote one."""
    facts = run.manifest("vocab")["facts"] if config.vocab else {}
    return {key: facts[key] for key in ("curve", "chosen_rows", "stopped_by")} if "curve" in facts else None


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
    streams = [s.name for s in config.streams]
    numbers = {s: {model: results[model][s]["bits_per_byte"] for model in ("base", "adapted")} for s in streams}
    summary = "; ".join(f"{s} {n['base']:.3f} -> {n['adapted']:.3f} bits per byte" for s, n in numbers.items())
    return {
        "summary": summary,
        "bits_per_byte": numbers,
        "entropy_bits_per_byte": results["entropy_bits_per_byte"],
        "change": results["change"],
        "alerts": results["alerts"],
        "results": str(run.evaluate / "results.json"),
        "report": str(run.evaluate / "report.html"),
    }
