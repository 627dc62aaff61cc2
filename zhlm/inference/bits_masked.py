"""How well a masked model knows texts: pseudo-likelihood as bits per byte, and how often its likeliest token is right.

Pseudo-likelihood (Salazar et al. 2020): each token is masked in turn and predicted from all others; the costs, over the bytes of the text.
Special tokens are not masked. At most MASKED_PER_DOCUMENT tokens of a document are, drawn by a fixed seed, and stand for all of them, so
that it ends. A document that is longer than a block is read in a window around the masked token.

This is no code for the text, because the tokens predict each other: it compares masked models, and across vocabularies with care, for the
pieces of a word give each other away, and a word of more pieces costs less.

Shape letters: R rows, T tokens of the longest row, V vocabulary.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from zhlm.inference.bits import StreamScore, groups_of, make_score
from zhlm.inference.bits_pieces import Reading, batches_of
from zhlm.inference.fill_mask import pad_rows
from zhlm.objectives.batch import Ints, logits_of
from zhlm.objectives.masked import Masked

MASKED_PER_DOCUMENT = 16
"""At 200 documents, the mean of 3,200 costs: a pass over sixteen times the text, where causal models take one."""
SEED = 20


@dataclass(frozen=True)
class _Row:
    """A text with one masked token."""

    ids_T: Ints
    place: int
    token: int
    weight: float
    """Tokens of the document that it stands for, itself included."""


def measure_masked(model: Any, reading: Reading, objective: Masked, block_tokens: int) -> StreamScore:
    """Raises: RunError when no document has a token that may be masked."""
    maskable = [np.flatnonzero(objective.ordinary_V[d.ids_T]) for d in reading.documents]
    rows = list(_rows(reading, maskable, objective.mask_id, block_tokens))
    right, num_targets = _guess(model, reading, objective, block_tokens)
    return make_score(
        "pseudo_likelihood",
        _cost(model, rows),
        len(reading.documents),
        sum(map(len, maskable)),
        reading.utf8_bytes if rows else 0,
        reading.characters,
        reading.unknown_tokens,
        sampled_tokens=len(rows),
        masked_accuracy=right / max(1, num_targets),
        masked_tokens=num_targets,
    )


def _rows(reading: Reading, maskable: Sequence[Ints], mask_id: int, block_tokens: int) -> Iterator[_Row]:
    for number, (document, places) in enumerate(zip(reading.documents, maskable, strict=True)):
        drawn = np.random.default_rng([SEED, number]).choice(places, min(MASKED_PER_DOCUMENT, len(places)), replace=False)
        for place in np.sort(drawn).tolist():
            start = max(0, min(place - block_tokens // 2, len(document.ids_T) - block_tokens))
            ids_T = document.ids_T[start : start + block_tokens].copy()
            ids_T[place - start] = mask_id
            yield _Row(ids_T, place - start, int(document.ids_T[place]), len(places) / len(drawn))


@torch.inference_mode()
def _cost(model: Any, rows: Sequence[_Row]) -> float:
    """Nats of all documents, by what was masked of them. Padding stands on the right and is not seen."""
    nats = [0.0] * len(rows)
    for group in groups_of([len(r.ids_T) for r in rows], model):
        ids_RT, seen_RT = pad_rows([rows[i].ids_T.tolist() for i in group], model.config.pad_token_id or 0)
        logits_RTV = model(input_ids=ids_RT.to(model.device), attention_mask=seen_RT.to(model.device)).logits
        logits_RV = logits_RTV[range(len(group)), [rows[i].place for i in group]].float()
        tokens_R = torch.tensor([rows[i].token for i in group], device=model.device)
        for i, cost in zip(group, cross_entropy(logits_RV, tokens_R, reduction="none").tolist(), strict=True):
            nats[i] = cost * rows[i].weight
    return math.fsum(nats)


@torch.inference_mode()
def _guess(model: Any, reading: Reading, objective: Masked, block_tokens: int) -> tuple[int, int]:
    """Right guesses, and all, where the objective masks the texts."""
    right = num_targets = 0
    for _, batch in batches_of(objective, reading.pieces(block_tokens), model):
        on_device = batch.to(model.device)
        guesses_RT = logits_of(model, on_device).argmax(-1)
        right += int((guesses_RT == on_device.targets_BT).sum())  # no guess is IGNORED
        num_targets += batch.num_targets
    return right, num_targets
