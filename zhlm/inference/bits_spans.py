"""Bits per byte of the text that spans hide, given the rest of the document.

Each document is corrupted once as in training, by the run's seed, so that models with the same tokenizer fill the same spans. All that the
decoder writes costs: the hidden tokens, and the sentinels and eos between and behind them, which say how long each span was and add no
byte. A document that is longer than a block is cut, as packing cuts it.
"""

import math
from typing import Any

import numpy as np
import torch

from zhlm.inference.bits import StreamScore, make_score
from zhlm.inference.bits_pieces import Reading, batches_of, key_of
from zhlm.objectives.batch import random_of, sum_nats
from zhlm.objectives.span_corruption import SpanCorruption


@torch.inference_mode()
def measure_targets(model: Any, reading: Reading, objective: SpanCorruption, block_tokens: int) -> StreamScore:
    """`model`: one that takes packed documents, as training has it. Raises: RunError when no document is long enough for a span."""
    pieces = reading.pieces(block_tokens)
    nats, tokens, utf8_bytes, characters = [], 0, 0.0, 0.0
    for numbers, batch in batches_of(objective, pieces, model):
        if batch.num_targets:
            nats.append(float(sum_nats(model, batch.to(model.device))))
        tokens += batch.num_targets
        for number in numbers:
            piece = pieces[number]
            hidden_T = objective.hide(piece.ids_T, np.array([len(piece.ids_T)]), random_of(objective.seed, key_of(number)))
            utf8_bytes += float(piece.bytes_T[hidden_T].sum())
            characters += float(piece.characters_T[hidden_T].sum())
    sums = (len(reading.documents), tokens, utf8_bytes, characters, reading.unknown_tokens)
    return make_score("targets", math.fsum(nats), *sums)
