"""A block as a model sees it under an objective, document by document. Imports torch: loaded only where a block is shown.

Shape letters: R tokens of a block, T tokens that a decoder writes, N tokens of one document or a part of it.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Any

import numpy as np

from zhlm.config.schema import RunConfig
from zhlm.model.load import load_model_config
from zhlm.objectives.batch import IGNORED, Ints
from zhlm.objectives.causal import Causal
from zhlm.objectives.choose import maker_of
from zhlm.objectives.words import spellings
from zhlm.records import Blocks
from zhlm.tokenizer.load import vocabulary_of

Line = list[tuple[str, bool]]
"""Texts one behind another, and whether each stands out."""
NAME = 8
"""Columns for what a line is."""


@dataclass(frozen=True)
class SeenDocument:
    note: str
    """What there is to say beside its length."""
    lines: list[Line]


@dataclass(frozen=True)
class SeenBlock:
    summary: str
    documents: list[SeenDocument]


@dataclass(frozen=True)
class _Made:
    """What an objective made of one block. The arrays have an entry for each token of the block, but for span corruption."""

    inputs: dict[str, Ints]
    targets: Ints
    ids_R: Ints
    spans: list[tuple[int, int]]
    """Where each document begins and ends in the block."""
    mask: int | None
    """Id of the mask token."""
    text: Callable[[Ints], str]


def see(config: RunConfig, tokenizer: Any, source: str, revision: str | None, blocks: Blocks, index: int) -> SeenBlock:
    """One block, the `index`-th of the training order, as training by the config's objective makes it. `source`: the base model, which
    need not be of a class that takes the objective.

    Raises: BaseModelError when the tokenizer lacks what the objective needs; ConfigError for more spans than it has sentinels.
    """
    model_config = load_model_config(source, revision=revision)
    if getattr(model_config, "decoder_start_token_id", None) is None:
        model_config.decoder_start_token_id = 0  # not shown, and not known of a model without a decoder of its own
    maker = maker_of(config, tokenizer, model_config)
    batch = maker.make_batch(blocks, [index])
    ends = [int(end) for end in blocks.ends[0]]
    first = batch.targets_BT.shape[1] - ends[-1] if isinstance(maker, Causal) and maker.left_padding else 0
    made = _Made(
        {name: (t[0, 0] if t.ndim == 4 else t[0]).numpy()[first:] for name, t in batch.inputs.items()},
        batch.targets_BT[0].numpy()[first:],
        blocks.ids_BT[0][: ends[-1]].astype(np.int64),
        list(pairwise([0, *ends])),
        tokenizer.mask_token_id,
        _speller(tokenizer),
    )
    what, documents = SEES[config.objective.name](made)
    return SeenBlock(f"objective {config.objective.name}: {batch.num_targets:,} {what}", documents)


def _causal(made: _Made) -> tuple[str, list[SeenDocument]]:
    def lines(start: int, end: int) -> list[Line]:
        labels = [_escaped(made.text(made.targets[n : n + 1])) if made.targets[n] != IGNORED else "-" for n in range(start, end)]
        pieces = [_escaped(made.text(made.inputs["input_ids"][n : n + 1])) for n in range(start, end)]
        return [_line("sees", "|".join(pieces)), _line("learns", "|".join(labels))]

    what = f"of {len(made.ids_R):,} tokens are learned, each from those before it in its document"
    return what, [SeenDocument(_positions(made, *span), lines(*span)) for span in made.spans]


def _masked(made: _Made) -> tuple[str, list[SeenDocument]]:
    seen_R, targets_R = made.inputs["input_ids"][: len(made.ids_R)], made.targets[: len(made.ids_R)]
    kinds = np.where(seen_R == made.mask, "mask", np.where(seen_R == targets_R, "kept", "random"))
    kinds[targets_R == IGNORED] = ""

    def pieces(start: int, end: int) -> Line:
        line: Line = []
        for kind, group in groupby(range(start, end), key=lambda n: str(kinds[n])):
            at = list(group)
            seen, learned = made.text(seen_R[at]), _escaped(made.text(targets_R[at])) if kind else ""
            shown = {
                "": seen,
                "mask": f"{{{seen}={learned}}}",
                "random": f"{{random {_escaped(seen)}={learned}}}",
                "kept": f"{{kept {learned}}}",
            }
            line.append((shown[kind], bool(kind)))
        return line

    counts = Counter(kinds.tolist())
    mask = made.text(np.array([made.mask]))
    what = (
        f"of {len(made.ids_R):,} tokens are learned, shown as {{seen=learned}}: {counts['mask']:,} seen as {mask}, "
        f"{counts['random']:,} as random tokens, {counts['kept']:,} kept as they are"
    )
    return what, [SeenDocument(_positions(made, *span), [pieces(*span)]) for span in made.spans]


def _prefix(made: _Made) -> tuple[str, list[SeenDocument]]:
    def document(start: int, end: int) -> SeenDocument:
        rest = made.targets[start:end]
        prefix = int(made.inputs["attention_mask"][start].sum())  # of the first token: what it sees
        lines = [
            _line("prefix", made.text(made.inputs["input_ids"][start : start + prefix])),
            _line("learns", made.text(rest[rest != IGNORED])),
        ]
        return SeenDocument(f"{_positions(made, start, end)}, a prefix of {prefix:,}", lines)

    what = f"of {len(made.ids_R):,} tokens are learned, from all before them; those of a prefix see each other in both directions"
    return what, [document(*span) for span in made.spans]


def _span_corruption(made: _Made) -> tuple[str, list[SeenDocument]]:
    reads, writes = made.inputs["document_ids"], made.inputs["decoder_document_ids"]

    def document(number: int) -> SeenDocument:
        read, written = made.inputs["input_ids"][reads == number], made.targets[writes == number]
        note = f", {len(read):,} to read and {len(written):,} to write"
        return SeenDocument(
            note, [_line("reads", made.text(read)), _line("writes", made.text(written) or "nothing: too short to hide some")]
        )

    what = f"tokens to write, from {int((reads > 0).sum()):,} to read, of {len(made.ids_R):,}; no document sees another"
    return what, [document(number) for number in range(1, len(made.spans) + 1)]


SEES: dict[str, Callable[[_Made], tuple[str, list[SeenDocument]]]] = {
    "causal": _causal,
    "masked": _masked,
    "prefix": _prefix,
    "span_corruption": _span_corruption,
}


def _positions(made: _Made, start: int, end: int) -> str:
    """As the model gets them; none where blocks are not packed and it counts by itself."""
    positions = made.inputs.get("position_ids")
    return "" if positions is None else f" at positions {positions[start]:,} to {positions[end - 1]:,}"


def _line(name: str, text: str) -> Line:
    return [(name.ljust(NAME), False), (text, False)]


def _speller(tokenizer: Any) -> Callable[[Ints], str]:
    """Ids -> text, whatever their number: bytes of a character that is cut are written as \\xe4, special tokens by their names."""
    pieces = spellings(tokenizer, vocabulary_of(tokenizer))
    for token in tokenizer.all_special_ids:
        pieces[token] = tokenizer.convert_ids_to_tokens(token).encode()
    return lambda ids: b"".join([pieces[n] for n in ids.tolist()]).decode("utf-8", "backslashreplace")


def _escaped(text: str) -> str:
    return text.replace("\n", "\\n")
