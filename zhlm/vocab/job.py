"""The vocab stage on Ray: count pre-tokens file by file, learn, extend, resize, prove, write."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray
from safetensors import SafetensorError
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from zhlm.config.schema import RunConfig, VocabConfig
from zhlm.corpus.streams import files_of
from zhlm.errors import CorpusError, DeadlineError, StorageError
from zhlm.model.load import check_base, load_model, local_folder
from zhlm.records import Progress, Report
from zhlm.storage import Run, storage_errors
from zhlm.tokenizer.encode import TokenizersEncoder
from zhlm.tokenizer.fertility import tokens_per_character
from zhlm.tokenizer.load import digest_of, load_tokenizer, tokenizer_json
from zhlm.vocab.compare import check_causal
from zhlm.vocab.count import LEARN_CHARS, FileCount, count_file, plan_counts
from zhlm.vocab.extend import first_new_id
from zhlm.vocab.kinds import take_apart
from zhlm.vocab.learn import Learned, learn
from zhlm.vocab.new_rows import Extension, grow, growth_of, held_out
from zhlm.vocab.reach import extend_reachable
from zhlm.vocab.verify import Proof, verify

FILE_TIMEOUT_S = 1800
"""Wait for the next file to be counted, the start of a node included."""
GOOD_TOKENS_PER_CHARACTER = 0.9
"""Below this a base reads the language well already. Source: Chinese-LLaMA-Alpaca-3, which kept Llama-3's vocabulary; an assumption."""
GOOD_UNKNOWN_SHARE = 0.01
"""Above this share of unknown words, few tokens mean that little was read. An assumption."""

Fertility = dict[str, dict[str, float]]
"""Stream -> before and after -> tokens per character."""


def run(config: RunConfig, report: Report) -> dict[str, Any]:
    """Extend the base's vocabulary on the streams of role `new`, and write tokenizer and resized model into the run's vocab folder."""
    vocab = config.vocab
    assert vocab is not None, "the vocab stage runs only where the config has a vocab section"
    run = Run.of(config)
    folder = str(local_folder(run.original_model(config), config.base.revision))
    tokenizer = load_tokenizer(folder)
    first_id = first_new_id(tokenizer)
    check_base(folder, None, first_id)
    base = take_apart(tokenizer.backend_tokenizer)
    model = load_model(folder, dtype="auto")
    if vocab.compare_init or vocab.init == "auto":
        check_causal(model)

    counts = _count(config, run, tokenizer_json(tokenizer), report)
    new = [stream.name for stream in config.streams if stream.role == "new"]
    pre_tokens = _merged(counts, new)
    proposed = learn(pre_tokens, base, vocab.add_rows, lambda done: report(Progress("vocab", done, vocab.add_rows, "rows")))
    samples = {name: [text for count in of_stream for text in count.sample] for name, of_stream in counts.items()}
    new_texts, old_texts = _texts(samples, new), _texts(samples, [name for name in samples if name not in new])
    extended, learned = extend_reachable(tokenizer, base, proposed, [*new_texts, *old_texts])

    size_before = _size(model)
    extension = Extension(tokenizer, extended, learned.pieces, first_id, base)
    started, comparison = grow(model, extension, vocab, *held_out(config.streams, run.resolve, samples))
    with run.vocab.staged() as out:
        _save(extended, model, out)
        extended = load_tokenizer(str(out))
        proof = verify(tokenizer, extended, learned, first_id, new_texts, old_texts)
        with storage_errors("writing", out):
            (out / "verify.json").write_text(json.dumps(proof.as_dict(), indent=1, ensure_ascii=False), encoding="utf-8")
            if comparison is not None:
                (out / "init.json").write_text(json.dumps(comparison.as_dict(), indent=1), encoding="utf-8")
    fertility = _fertility(tokenizer, extended, samples)
    facts = _facts(config, vocab, learned, proof, size_before, _size(model), fertility) | {"tokenizer_digest": digest_of(extended)}
    facts |= {"kind": base.KIND, "dropped": len(proposed.pieces) - len(learned.pieces)}
    facts |= {"learned_from": _learned_from([c for name in new for c in counts[name]], len(pre_tokens))}
    before, after = (sum(fertility[name][when] for name in new) for when in ("before", "after"))
    tokens_share = after / before if before else 1.0
    facts |= started | {"growth": growth_of(model, size_before[0], tokens_share).as_dict()}
    return facts | _advice(fertility, proof, new)


def _count(config: RunConfig, run: Run, tokenizer: str, report: Report) -> dict[str, list[FileCount]]:
    """Counts and samples of every file by stream, one Ray task per file, a few at a time."""
    tasks = plan_counts(config.streams, {stream.name: files_of(stream, run.resolve) for stream in config.streams})
    shared = ray.put(tokenizer)
    remote = ray.remote(num_cpus=1)(count_file)
    waiting = list(enumerate(tasks))
    running: dict[ray.ObjectRef, int] = {}
    done: dict[int, FileCount] = {}
    while waiting or running:
        while waiting and len(running) < config.resources.pack_tasks:
            order, task = waiting.pop(0)
            running[remote.remote(task, shared)] = order
        ready, _ = ray.wait(list(running), timeout=FILE_TIMEOUT_S)
        if not ready:
            raise DeadlineError(
                f"vocab: no corpus file was counted for {FILE_TIMEOUT_S} s; {len(running)} tasks wait for a free CPU or hang"
            )
        done[running.pop(ready[0])] = ray.get(ready[0], timeout=FILE_TIMEOUT_S)
        report(Progress("vocab", len(done), len(tasks), "files"))
    by_stream: dict[str, list[FileCount]] = {stream.name: [] for stream in config.streams}
    for order, task in enumerate(tasks):
        by_stream[task.stream].append(done[order])
    return by_stream


def _merged(counts: dict[str, list[FileCount]], names: Sequence[str]) -> Counter[str]:
    total: Counter[str] = Counter()
    for name in names:
        for count in counts[name]:
            total.update(count.pre_tokens)
            count.pre_tokens.clear()  # they may be gigabytes
    if not total:
        raise CorpusError(
            f"vocab: the streams of role new ({', '.join(names)}) hold no text to learn pieces from; check their paths and field"
        )
    return total


def _texts(samples: dict[str, list[str]], names: Sequence[str]) -> list[str]:
    return [text for name in names for text in samples[name]]


def _save(tokenizer: PreTrainedTokenizerFast, model: PreTrainedModel, folder: Path) -> None:
    with storage_errors("writing the extended model to", folder):
        try:
            tokenizer.save_pretrained(folder)
            model.save_pretrained(folder)
        except SafetensorError as error:  # what safetensors makes of a full disk
            raise StorageError(
                f"storage: writing the extended model to {folder} failed: {error}; free some space", path=str(folder)
            ) from error


def _size(model: PreTrainedModel) -> tuple[int, int]:
    """Rows of the embedding, and parameters of the whole model."""
    return int(model.get_input_embeddings().weight.shape[0]), sum(p.numel() for p in model.parameters())


def _fertility(before: PreTrainedTokenizerFast, after: PreTrainedTokenizerFast, samples: dict[str, list[str]]) -> Fertility:
    encoders = {"before": TokenizersEncoder(tokenizer_json(before)), "after": TokenizersEncoder(tokenizer_json(after))}
    return {name: {when: tokens_per_character(encoder, texts) for when, encoder in encoders.items()} for name, texts in samples.items()}


def _facts(
    config: RunConfig,
    vocab: VocabConfig,
    learned: Learned,
    proof: Proof,
    size_before: tuple[int, int],
    size_after: tuple[int, int],
    fertility: Fertility,
) -> dict[str, Any]:
    new = next(stream.name for stream in config.streams if stream.role == "new")
    return {
        "summary": f"{len(learned.pieces)} rows added, {proof.reachable} reachable; tokens per character of {new}: "
        f"{fertility[new]['before']:.2f} -> {fertility[new]['after']:.2f}",
        "base": config.base.model,
        "base_revision": config.base.revision,
        "rows_before": size_before[0],
        "rows_after": size_after[0],
        "asked": vocab.add_rows,
        "added": len(learned.pieces),
        "reachable": proof.reachable,
        "on_sample": proof.on_sample,
        "unknown_share": proof.unknown_share,
        "parameters_before": size_before[1],
        "parameters_after": size_after[1],
        "parameter_growth_share": size_after[1] / size_before[1] - 1,
        "tokens_per_character": fertility,
        "old_tokens_new_share": proof.old_tokens_new_share,
        "passed_over": {"doubled": learned.num_doubled, "crossing": learned.num_crossing},
    }


def _learned_from(counts: Sequence[FileCount], num_pre_tokens: int) -> dict[str, int]:
    return {
        "documents": sum(c.documents for c in counts),
        "characters": sum(c.characters for c in counts),
        "characters_limit": LEARN_CHARS,
        "different_pre_tokens": num_pre_tokens,
    }


def _advice(fertility: Fertility, proof: Proof, new: Sequence[str]) -> dict[str, str]:
    good = [name for name in new if fertility[name]["before"] < GOOD_TOKENS_PER_CHARACTER]
    if not good or proof.unknown_share["before"] > GOOD_UNKNOWN_SHARE:
        return {}
    value = fertility[good[0]]["before"]
    advice = f"the base needs only {value:.2f} tokens per character of {good[0]} (below {GOOD_TOKENS_PER_CHARACTER}); "
    return {"advice": advice + "vocab: null keeps it smaller and is likely as good"}
