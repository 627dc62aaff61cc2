"""Special tokens for a base that lacks them, where nothing else is added: no text is cut in other places, so a sample is proof enough."""

import json
from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from zhlm.config.vocabulary import SpecialTokensConfig
from zhlm.embeddings.initialise import mean
from zhlm.embeddings.special import name_special_tokens
from zhlm.errors import VerificationError
from zhlm.model.load import check_base
from zhlm.model.resize import add_rows
from zhlm.pieces.words import check_special, check_untouched
from zhlm.records import Progress, Report
from zhlm.storage import storage_errors
from zhlm.tokenizer.encode import HARD_TEXTS
from zhlm.tokenizer.load import digest_of, load_tokenizer, tokenizer_json, vocabulary_of
from zhlm.tokenizer.plain import as_plain
from zhlm.tokenizer.special import Special, add_special_tokens
from zhlm.vocab.order import Order, load_again, save, size_of

SHOWN = 4
"""Special tokens that are named to the person; the manifest has all of them."""


def add_special(order: Order, report: Report) -> dict[str, Any]:
    """Add the special tokens of an order to its base and write both. Returns the facts. Any kind of tokenizer will do.

    Raises: ConfigError for a text that is an ordinary piece, other UserErrors for a base that cannot be loaded or a corpus that cannot be
        read; VerificationError when the proof fails.
    """
    config = order.vocab.special_tokens
    assert config is not None, "the schema asks for something to add"
    report(Progress("vocab", 0, 2, "steps", {"doing": "loading the base"}))
    folder = order.folder()
    before = load_tokenizer(folder)
    check_base(folder, None, vocabulary_of(before))
    after = as_plain(before)
    special = add_special_tokens(after, config)
    texts = [text for of_stream in order.samples().values() for text in of_stream]
    model = order.model(folder)
    size_before = size_of(model)
    add_rows(model, vocabulary_of(before), len(special.new), mean(len(special.new)), pad_to_multiple=order.vocab.pad_to_multiple)
    name_special_tokens(model, after, config.roles)
    report(Progress("vocab", 1, 2, "steps", {"doing": "proving"}))
    with order.out.staged() as out:
        save(after, model, out)
        after = load_again(after, out)
        proof = _prove(before, after, special, [*HARD_TEXTS, *texts])
        with storage_errors("writing", out):
            (out / "verify.json").write_text(json.dumps(proof, indent=1, ensure_ascii=False), encoding="utf-8")
    return {
        "summary": _summary(config, special),
        **special.facts(),
        "added": len(special.new),
        "rows_before": size_before[0],
        "rows_after": size_of(model)[0],
        "parameters_before": size_before[1],
        "parameters_after": size_of(model)[1],
        "proved": proof,
        "tokenizer_digest": digest_of(after),
    }


def _prove(before: PreTrainedTokenizerFast, after: PreTrainedTokenizerFast, special: Special, texts: list[str]) -> dict[str, Any]:
    """Old ids stay, text without a special token keeps its ids, each special token is read as its own."""
    now = after.get_vocab()
    moved = [piece for piece, row in before.get_vocab().items() if now.get(piece) != row]
    if moved:
        raise VerificationError(f"vocab: special tokens moved {len(moved)} old ids, {moved[:3]} among them", moved=moved[:100])
    bare, full = Tokenizer.from_str(tokenizer_json(before)), Tokenizer.from_str(tokenizer_json(after))
    check_special(full, special.ids)
    check_untouched(bare, full, list(special.ids), texts)
    return {"texts": len(texts), "characters": sum(map(len, texts)), "special": special.ids}


def _summary(config: SpecialTokensConfig, special: Special) -> str:
    named = [f"{role} {text} ({special.ids[text]})" for role, text in config.roles.items()]
    named += [f"{config.sentinels} sentinels"] if config.sentinels else []
    more = f" and {len(named) - SHOWN} more" if len(named) > SHOWN else ""
    return f"special tokens: {', '.join(named[:SHOWN])}{more}; {len(special.new)} rows added, the mean of the others"
