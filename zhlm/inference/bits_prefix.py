"""Bits per byte of what follows a prefix, given the prefix, which the model sees in both directions.

The prefix is a fixed share of each document, in tokens: the middle of those that training draws from. A document that is longer than a
block is cut, and each part has a prefix of its own, as in training. The cost of the eos counts; the prefix and its bytes do not.
"""

import math
from dataclasses import replace
from typing import Any

import torch

from zhlm.config.objective import PrefixConfig
from zhlm.inference.bits import StreamScore, make_score
from zhlm.inference.bits_pieces import Reading, batches_of
from zhlm.objectives.batch import IGNORED, sum_nats
from zhlm.objectives.prefix import Prefix


def prefix_share(drawn: PrefixConfig | Prefix) -> float:
    """How much of a document is given."""
    return (drawn.min_share + drawn.max_share) / 2


@torch.inference_mode()
def measure_continuation(model: Any, reading: Reading, objective: Prefix, block_tokens: int) -> StreamScore:
    """Raises: RunError when nothing follows any prefix."""
    share = prefix_share(objective)
    fixed = replace(objective, min_share=share, max_share=share)
    pieces = reading.pieces(block_tokens)
    nats, tokens, utf8_bytes, characters = [], 0, 0.0, 0.0
    for numbers, batch in batches_of(fixed, pieces, model):
        if batch.num_targets:
            nats.append(float(sum_nats(model, batch.to(model.device))))
        for number, predicted in zip(numbers, (batch.targets_BT != IGNORED).sum(-1).tolist(), strict=True):
            start = len(pieces[number].ids_T) - predicted  # the targets are the last tokens of a row
            tokens += predicted
            utf8_bytes += float(pieces[number].bytes_T[start:].sum())
            characters += float(pieces[number].characters_T[start:].sum())
    sums = (len(reading.documents), tokens, utf8_bytes, characters, reading.unknown_tokens)
    return make_score("continuation", math.fsum(nats), *sums)
