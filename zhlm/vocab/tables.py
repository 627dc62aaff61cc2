"""What the person at the terminal reads about an extension or a proof: lines of text from facts."""

from collections.abc import Iterator, Mapping
from typing import Any

from zhlm.vocab.prove import Findings

CURVE_POINTS = 6
ENDS = {"gain": "the next piece saves less than vocab.min_gain", "limit": "the number of rows", "corpus": "the corpus: no more pairs twice"}
LISTED = 20
"""Unreachable pieces that are shown; verify.json has them all."""


def extension_lines(facts: Mapping[str, Any], out: str) -> Iterator[str]:
    """Of a base with an extended or another vocabulary that was written to `out`."""
    if "kind" not in facts:
        yield from _without_learning(facts)
        yield _row("written", out)
        return
    words = f", {facts['words']:,} words of the list among them" if facts["words"] else ""
    growth, pieces = facts["growth"], facts["added"] - facts.get("special_rows", 0)
    yield _row("kind", facts["kind"])
    yield _row("rows", f"{facts['rows_before']:,} -> {facts['rows_after']:,} ({facts['added']:,} added{words})")
    yield _row(
        "proved",
        f"{facts['reachable']:,} of {pieces:,} reachable, {facts['on_corpus']:,} met in the corpus, {facts['dropped']:,} dropped",
    )
    yield _row("", f"on {facts['proved']['texts']:,} texts, {facts['proved']['characters']:,} characters")
    yield _row("ended by", ENDS[facts["stopped_by"]])
    for number, (name, value) in enumerate(facts["tokens_per_character"].items()):
        yield _row("" if number else "tokens per character", f"{name} {value['before']:.3f} -> {value['after']:.3f}")
    points = facts["curve"][:: max(1, len(facts["curve"]) // CURVE_POINTS)]
    yield _row("rows: per character", "  ".join(f"{rows:,}: {value:.3f}" for rows, value in points))
    yield _row("old text", f"{facts['old_tokens_new_share']:.2%} of its tokens are new pieces")
    yield _row("parameters", f"{facts['parameters_before']:,} -> {facts['parameters_after']:,} (+{facts['parameter_growth_share']:.1%})")
    training, weights = (growth[name] / 2**20 for name in ("training_bytes", "weight_bytes"))
    yield _row("memory", f"+{weights:,.1f} MiB of weights, +{training:,.1f} MiB to train them with AdamW")
    yield _row(
        "step time",
        f"{growth['step_time_share']:+.1%} for as many tokens, {growth['text_time_share']:+.1%} for as much new text (estimated)",
    )
    yield _row("new rows", f"{facts['init']}" + (" (fewest bits per byte)" if facts["init_asked"] == "auto" else ""))
    if "inits" in facts:
        yield from _init_lines(facts["inits"])
    if "advice" in facts:
        yield _row("advice", facts["advice"])
    yield _row("written", out)


def _without_learning(facts: Mapping[str, Any]) -> Iterator[str]:
    """Of special tokens alone, or another tokenizer."""
    if "copied" in facts:
        yield _row("tokenizer", facts["tokenizer"])
        unspelled = f", {facts['unspelled']:,} of them as the mean of all" if facts["unspelled"] else ""
        yield _row("copied", f"{facts['copied']:,} rows of tokens that both have")
        yield _row("made", f"{facts['made']:,} rows by {facts['init']}{unspelled}")
        for number, (name, value) in enumerate(facts["tokens_per_character"].items()):
            yield _row("" if number else "tokens per character", f"{name} {value['before']:.3f} -> {value['after']:.3f}")
        yield _row("round trip", facts["proved"]["round_trip"])
    yield _row("rows", f"{facts['rows_before']:,} -> {facts['rows_after']:,}")
    for number, (text, row) in enumerate([*facts.get("special_tokens", {}).items()][:LISTED]):
        yield _row("" if number else "special tokens", f"{text} {row}")


def _init_lines(table: Mapping[str, Any]) -> Iterator[str]:
    yield ""
    yield f"{'bits per byte at step 0':24}{'new':>10}{'old':>10}"
    for name, scores in (("base", table["base"]), *table["inits"].items()):
        columns = (
            f"{value:10.3f}" if value is not None else f"{'-':>10}" for value in (scores["bits_per_byte_new"], scores["bits_per_byte_old"])
        )
        yield f"  {name:22}" + "".join(columns) + ("  best" if name == table["best"] else "")
    yield ""


def proof_lines(found: Findings) -> Iterator[str]:
    """Of a proof, whether it holds or not."""
    yield _row("kind", f"{found.kind}, {found.entries:,} entries" + (f", {found.embedding_rows:,} rows" if found.embedding_rows else ""))
    what = "new pieces" if found.base is not None else "pieces"
    yield _row(what, f"{found.pieces:,}" + (f", {found.words:,} of them added tokens" if found.words else ""))
    yield _row("  alone", f"{found.alone:,} encode to their own id")
    yield _row("  inside", f"{found.covered:,} others occur in some text")
    impossible = f", {found.impossible:,} that no text can" if found.impossible else ""
    yield _row("  unreachable", f"{len(found.unreachable):,} in no text that was found{impossible}")
    for at in range(0, min(LISTED, len(found.unreachable)), 5):
        yield _row("", "  ".join(found.unreachable[at : min(at + 5, LISTED)]))
    if found.unreachable[LISTED:]:
        yield _row("", f"and {len(found.unreachable) - LISTED:,} more in verify.json")
    yield _row("  on the corpus", f"{found.on_corpus:,} produced")
    if found.kind == "WordPiece":
        yield _row("round trip", "not asked: WordPiece forgets the spaces of a text")
    else:
        back = found.texts - found.normalised - found.lost
        yield _row("round trip", f"{back:,} of {found.texts:,} texts the same, {found.normalised:,} as normalised, {found.lost:,} lost")
    for number, (name, engine) in enumerate(found.engines.items()):
        yield _row("" if number else "engines", f"{name}: {_agreement(engine)}")
    if found.base is not None:
        same = f"{found.base['old_texts_same']:,} of {found.base['old_texts']:,} texts without new pieces have the same ids"
        yield _row("base", f"{found.base['moved_ids']:,} ids moved; {same}")
        yield _row("", f"the base with more pieces: {found.base['as_the_base']}")
    if "after" in found.tokens_per_character and found.texts:
        values = [f"{found.tokens_per_character[when]:.3f}" for when in ("before", "after") if when in found.tokens_per_character]
        unknown = " -> ".join(f"{share:.1%}" for share in found.unknown_share.values())
        yield _row(
            "tokens per character", " -> ".join(values) + (f", {unknown} of them unknown" if any(found.unknown_share.values()) else "")
        )


def _agreement(engine: Mapping[str, Any]) -> str:
    if "texts" not in engine:
        return str(engine["reason"])
    return f"{engine['texts'] - engine['different']:,} of {engine['texts']:,} texts have the ids of tokenizers"


def _row(name: str, value: str) -> str:
    return f"{name:22}{value}"
