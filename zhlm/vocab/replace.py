"""Another tokenizer for a base: its rows from those of the old one, and what is known of it on the corpus.

Whether it suits a text is its owner's choice: what it loses is counted and said, not refused. Shape letters: I ids of all texts.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from zhlm.embeddings.initialise import deviation_of
from zhlm.embeddings.replace import rows_for
from zhlm.embeddings.special import name_special_tokens
from zhlm.errors import BaseModelError, ConfigError, VerificationError
from zhlm.model.load import local_folder
from zhlm.model.resize import replace_rows
from zhlm.pieces import worth
from zhlm.pieces.match import Match, match
from zhlm.records import Progress, Report
from zhlm.storage import storage_errors
from zhlm.tokenizer.encode import HARD_TEXTS, TokenizersEncoder, choose_encoder
from zhlm.tokenizer.engines import Agreement, Engines
from zhlm.tokenizer.load import digest_of, load_tokenizer, tokenizer_json, vocabulary_of
from zhlm.tokenizer.plain import as_plain
from zhlm.tokenizer.special import Special, add_special_tokens
from zhlm.vocab.order import Order, load_again, save, size_of
from zhlm.vocab.readings import batches

NOT_ASKED = "not asked: WordPiece forgets spaces, and mostly case"


def replace_tokenizer(order: Order, report: Report) -> dict[str, Any]:
    """Give the base of an order another tokenizer, and write both. Returns the facts.

    Raises: ConfigError where only new rows are to be trained but old ids moved; other UserErrors for a base, a tokenizer or a corpus that
        cannot be loaded; VerificationError when two engines read the tokenizer differently.
    """
    report(Progress("vocab", 0, 3, "steps", {"doing": "loading both tokenizers"}))
    folder = order.folder()
    before, after, special = load_tokenizer(folder), *_after(order)
    model = order.model(folder)
    size_before = size_of(model)
    found = match(before, after, size_before[0])
    if order.only_new_rows and not found.old_rows_stay:
        raise ConfigError(
            f"vocab: train.embeddings is new_rows, but the tokenizer {order.vocab.tokenizer} has other ids for {found.moved:,} tokens of "
            "the base, so that no row is old; set train.embeddings: all"
        )
    report(Progress("vocab", 1, 3, "steps", {"doing": "making the rows"}))
    _remake(order, model, found, min(vocabulary_of(before), size_before[0]), vocabulary_of(after))
    name_special_tokens(model, after)
    samples = order.samples()
    report(Progress("vocab", 2, 3, "steps", {"doing": "reading a sample of the corpus"}))
    with order.out.staged() as out:
        save(after, model, out)
        after = load_again(after, out)
        proof = _prove(after, [text for of_stream in samples.values() for text in of_stream], out)
        with storage_errors("writing", out):
            (out / "verify.json").write_text(json.dumps(proof, indent=1, ensure_ascii=False), encoding="utf-8")
    fertility = _fertility(before, after, samples)
    counts = {"copied": len(found.same), "made": len(found.spelled), "unspelled": sum(not ids for ids in found.spelled.values())}
    return {
        "summary": _summary(counts, size_before[0], size_of(model)[0], fertility, order.new[0]),
        "tokenizer": order.vocab.tokenizer,
        **counts,
        "added": len({*after.get_vocab().values()} - {*before.get_vocab().values()}),
        "moved": found.moved,
        "old_rows_stay": found.old_rows_stay,
        "init": order.vocab.init,
        "rows_before": size_before[0],
        "rows_after": size_of(model)[0],
        "parameters_before": size_before[1],
        "parameters_after": size_of(model)[1],
        "tokens_per_character": fertility,
        "proved": proof,
        "tokenizer_digest": digest_of(after),
        **special.facts(),
    }


def _after(order: Order) -> tuple[PreTrainedTokenizerFast, Special]:
    """The tokenizer that was asked for, with the special tokens that were."""
    assert order.vocab.tokenizer is not None, "the config names a tokenizer"
    try:
        after = load_tokenizer(str(local_folder(order.vocab.tokenizer, weights=False)))
    except BaseModelError as error:
        said = str(error).replace("base.model", "vocab.tokenizer")
        raise BaseModelError(f"vocab: the tokenizer {order.vocab.tokenizer} cannot be had: {said}") from error
    if order.vocab.special_tokens is None:
        return after, Special({}, [], {})
    after = as_plain(after)
    return after, add_special_tokens(after, order.vocab.special_tokens)


def _remake(order: Order, model: PreTrainedModel, found: Match, old_rows: int, entries: int) -> None:
    multiple = order.vocab.pad_to_multiple
    num_rows = -(-entries // multiple) * multiple
    remake = rows_for(num_rows, found.same, found.spelled, order.vocab.init, deviation_of(model.config))
    replace_rows(model, old_rows, num_rows, remake)


def _prove(tokenizer: PreTrainedTokenizerFast, corpus: Sequence[str], folder: Path) -> dict[str, Any]:
    """What reading a sample and the hard texts shows. Raises: VerificationError when transformers and `tokenizers` differ."""
    encoder, engines = TokenizersEncoder(tokenizer_json(tokenizer)), Engines(tokenizer, folder)
    agreements = {name: Agreement() for name in engines.by_name}
    counts = dict.fromkeys(("texts", "characters", "tokens", "unknown", "changed"), 0)
    example, backend = "", tokenizer.backend_tokenizer
    forgets = type(backend.model).__name__ == "WordPiece"
    for texts in batches([*HARD_TEXTS, *corpus]):
        ids_I, offsets = encoder.encode_batch(texts)
        for name, engine in engines.by_name.items():
            agreements[name].add(engine.compare(texts, ids_I, offsets))
        counts["texts"] += len(texts)
        counts["characters"] += sum(map(len, texts))
        counts["tokens"] += len(ids_I)
        counts["unknown"] += int((ids_I == tokenizer.unk_token_id).sum()) if tokenizer.unk_token_id is not None else 0
        rows = [row.tolist() for row in np.split(ids_I, offsets[1:-1])] if not forgets else []
        came_back = backend.decode_batch(rows, skip_special_tokens=False)
        changed = [(text, got) for text, got in zip(texts, came_back, strict=False) if got.strip(" ") != text.strip(" ")]
        counts["changed"] += len(changed)
        example = example or (f"{changed[0][0][:40]!r} became {changed[0][1][:40]!r}" if changed else "")
    if problem := agreements["transformers"].problem(counts["texts"]):
        raise VerificationError(f"vocab: transformers {problem}")
    back = NOT_ASKED if forgets else f"{counts['texts'] - counts['changed']:,} of {counts['texts']:,} texts come back"
    facts = {
        "round_trip": back + (f"; {example}" if example else ""),
        "engine": choose_encoder(tokenizer_json(tokenizer), "auto", corpus)[1],
    }
    return counts | facts | {"engines": {name: agreement.as_dict() for name, agreement in agreements.items()}}


def _fertility(
    before: PreTrainedTokenizerFast, after: PreTrainedTokenizerFast, samples: Mapping[str, Sequence[str]]
) -> dict[str, dict[str, float]]:
    """Tokens per character of each stream, with both tokenizers."""
    by = {when: worth.per_character(TokenizersEncoder(tokenizer_json(t)), samples) for when, t in (("before", before), ("after", after))}
    return {name: {when: of[name] for when, of in by.items()} for name in samples}


def _summary(counts: Mapping[str, int], before: int, after: int, fertility: Mapping[str, Mapping[str, float]], stream: str) -> str:
    share = fertility[stream]
    return (
        f"{before:,} -> {after:,} rows: {counts['copied']:,} copied, {counts['made']:,} made; tokens per character of {stream}: "
        f"{share['before']:.2f} -> {share['after']:.2f}"
    )
