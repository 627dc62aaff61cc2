"""Span corruption (T5, mT5): spans of a document are hidden from the encoder, and the decoder writes them.

Worked example, the one of the paper, with X, Y, Z for the tokenizer's first sentinels and | for eos:

    document        Thank you for inviting me to your party last week |
    encoder reads   Thank you X me to your party Y week |
    decoder writes  X for inviting Y last Z |

Noise tokens and spans are counted per document, of the tokens between its bos and eos; no span crosses a border, and the sentinels begin
again in each document. Where so few tokens round to no noise (up to 3 of them, at 15%) the document is read and nothing of it written.

Source: Raffel et al. 2020, section 3.1.4, and `random_spans_noise_mask` of its code, with two changes. The code hides one token of a text
that rounds to none, which is half of a short one. And its texts begin with a kept span and end with a hidden one, so that of a short text
only the end would ever be learned; here every placement of the spans, apart from each other, is equally likely.

Shape letters: B blocks, R tokens of a block, D documents of a block, S encoder tokens, T decoder tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count, takewhile
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt
import torch

from zhlm.config.objective import SpanCorruptionConfig
from zhlm.errors import BaseModelError, ConfigError
from zhlm.objectives.batch import IGNORED, WIDTH_STEP, Batch, BatchMaker, Ints, fills_of, random_of
from zhlm.objectives.spans import counts, written_of
from zhlm.records import Blocks
from zhlm.tokenizer.special import document_token

Flags = npt.NDArray[np.bool_]

SENTINEL_NAMES = ("\u2581<extra_id_{}>", "<extra_id_{}>")
"""As mT5's tokenizers spell them, and as T5's do."""


class Corrupted(NamedTuple):
    """What becomes of one block. `documents` count from 1, so that 0 is left for padding."""

    input_ids_S: Ints
    documents_S: Ints
    decoder_input_ids_T: Ints
    decoder_documents_T: Ints
    targets_T: Ints


@dataclass(frozen=True)
class SpanCorruption(BatchMaker):
    noise_share: float
    mean_span: float
    sentinels: tuple[int, ...]
    """Ids, in order."""
    eos: int
    decoder_start: int
    """What the decoder reads in front of a document's first target."""
    edges: frozenset[int]
    """Special tokens that begin or end a document; they are never hidden."""
    seed: int

    @classmethod
    def of(cls, config: SpanCorruptionConfig, tokenizer: Any, model_config: Any, seed: int) -> Self:
        """Raises: BaseModelError when the tokenizer has no sentinels or no eos, or the model no token that its decoder starts with."""
        sentinels = sentinel_ids(tokenizer)
        if not sentinels:
            raise BaseModelError(
                f"objective: span_corruption puts sentinels in place of spans, and the tokenizer {tokenizer.name_or_path} has no "
                f"{SENTINEL_NAMES[1].format(0)}; add them with vocab: {{add_rows: 0, special_tokens: {{sentinels: 100}}}}"
            )
        start, end = document_token(tokenizer, "bos"), document_token(tokenizer, "eos")
        if end is None:
            raise BaseModelError(
                f"objective: span_corruption ends what the decoder writes with eos, and the tokenizer {tokenizer.name_or_path} has no eos "
                "token; add one with vocab.special_tokens.eos_token"
            )
        starts = (getattr(model_config, name, None) for name in ("decoder_start_token_id", "pad_token_id"))
        decoder_start = next((token for token in starts if token is not None), None)
        if decoder_start is None:
            raise BaseModelError(
                f"objective: the config of the {model_config.model_type} model has no decoder_start_token_id, expected the token that its "
                "decoder reads first; set it in the model's config.json"
            )
        edges = frozenset(token.id for token in (start, end) if token)
        return cls(config.noise_share, config.mean_span, sentinels, end.id, int(decoder_start), edges, seed)

    def check_block(self, block_tokens: int) -> None:
        """Raises: ConfigError when a document that fills a block could have more spans than the tokenizer has sentinels."""
        _, spans_N = counts(np.arange(block_tokens + 1), self.noise_share, self.mean_span)
        needed_N = spans_N + 1  # the last one ends the targets
        if needed_N[-1] > len(self.sentinels):
            fits = int(np.searchsorted(needed_N, len(self.sentinels), "right")) - 1
            raise ConfigError(
                f"objective: a document of pack.block_tokens {block_tokens} needs {needed_N[-1]} sentinels and the tokenizer has "
                f"{len(self.sentinels)}; set pack.block_tokens to {fits} or less, a larger objective.mean_span, or "
                f"vocab.special_tokens: {{sentinels: {needed_N[-1]}}}"
            )

    def make_batch(self, blocks: Blocks, keys: Sequence[int]) -> Batch:
        rows = []
        for padded_R, ends, key in zip(blocks.ids_BT, blocks.ends, keys, strict=True):
            ids_R, ends_D = padded_R[: int(ends[-1])].astype(np.int64), ends.astype(np.int64)
            rows.append(self.corrupt(ids_R, ends_D, self.hide(ids_R, ends_D, random_of(self.seed, key))))
        names = ("input_ids", "document_ids", "decoder_input_ids", "decoder_document_ids")
        *inputs, targets_BT = (_padded(column, IGNORED if n == len(names) else 0) for n, column in enumerate(zip(*rows, strict=True)))
        return Batch(dict(zip(names, inputs, strict=True)), targets_BT, torch.from_numpy(fills_of(blocks)))

    def largest_batch(self, rows: int, block_tokens: int) -> Batch:
        """Of documents so short that as much is written of a block as can be: see `lengths`."""
        maskable_N, written_N = written_of(block_tokens, self.noise_share, self.mean_span)
        shortest = int(np.argmax(written_N / maskable_N)) + 1
        ends = np.array([*range(shortest, block_tokens, shortest), block_tokens], np.uint32)
        ids_BR = np.full((rows, block_tokens), self.sentinels[0])  # which neither begins nor ends a document
        return self.make_batch(Blocks(ids_BR, [ends] * rows), [0] * rows)

    def hide(self, ids_R: Ints, ends_D: Ints, random: np.random.Generator) -> Flags:
        """Which tokens of a block are noise. Shapes: R."""
        starts_D = np.concatenate([[0], ends_D[:-1]])
        edges = list(self.edges)
        first_D = starts_D + np.isin(ids_R[starts_D], edges)
        maskable_D = np.maximum(ends_D - np.isin(ids_R[ends_D - 1], edges) - first_D, 0)
        noise_D, spans_D = counts(maskable_D, self.noise_share, self.mean_span)
        has = spans_D > 0
        hidden_R = np.zeros(len(ids_R), np.bool_)
        hidden_R[_ranges(first_D[has], maskable_D[has])] = _placed(maskable_D[has], noise_D[has], spans_D[has], random)
        return hidden_R

    def corrupt(self, ids_R: Ints, ends_D: Ints, hidden_R: Flags) -> Corrupted:
        """Write a block as inputs and targets. A span is a run of hidden tokens in one document."""
        starts_D = np.concatenate([[0], ends_D[:-1]])
        document_R = np.repeat(np.arange(len(ends_D)), ends_D - starts_D)
        begins_R = hidden_R.copy()
        begins_R[1:] &= ~hidden_R[:-1] | (document_R[1:] != document_R[:-1])
        noise_D, spans_D = (np.bincount(document_R[flags_R], minlength=len(ends_D)) for flags_R in (hidden_R, begins_R))
        assert spans_D.max() < len(self.sentinels), "check_block says what a tokenizer has sentinels for"
        sentinels = np.array(self.sentinels)
        own_N = sentinels[(np.cumsum(begins_R) - 1 - (np.cumsum(spans_D) - spans_D)[document_R])[begins_R]]

        read_R = ~hidden_R | begins_R
        input_ids_R = ids_R.copy()
        input_ids_R[begins_R] = own_N

        written = np.flatnonzero(spans_D)
        lengths_W, ends_W = (noise_D + spans_D + 2)[written], np.cumsum(noise_D[written])
        # Where two go in at the same place, what ends a document comes before what begins the next.
        places = np.concatenate([ends_W, ends_W, np.flatnonzero(begins_R[hidden_R])])
        targets_T = np.insert(ids_R[hidden_R], places, np.concatenate([sentinels[spans_D[written]], np.full_like(ends_W, self.eos), own_N]))
        decoder_input_ids_T = np.roll(targets_T, 1)
        decoder_input_ids_T[np.cumsum(lengths_W) - lengths_W] = self.decoder_start
        documents_T = np.repeat(written + 1, lengths_W)
        return Corrupted(input_ids_R[read_R], document_R[read_R] + 1, decoder_input_ids_T, documents_T, targets_T)


def sentinel_ids(tokenizer: Any) -> tuple[int, ...]:
    """Ids of a tokenizer's sentinels from the first on, in order; none if it has none."""
    vocab = tokenizer.get_vocab()
    for name in SENTINEL_NAMES:
        if name.format(0) in vocab:
            return tuple(vocab[text] for text in takewhile(vocab.__contains__, map(name.format, count())))
    return ()


def _placed(maskable_D: Ints, noise_D: Ints, spans_D: Ints, random: np.random.Generator) -> Flags:
    """Where the noise is, for documents one after another: kept and hidden runs in turn, kept ones first and last, which may be empty."""
    kept_sizes = _cut(maskable_D - noise_D + 2, spans_D + 1, random)
    last = np.cumsum(spans_D + 1) - 1
    kept_sizes[last] -= 1
    kept_sizes[last - spans_D] -= 1
    is_hidden = _ranges(np.zeros_like(spans_D), 2 * spans_D + 1) % 2 == 1
    sizes = np.empty(len(is_hidden), np.int64)
    sizes[is_hidden], sizes[~is_hidden] = _cut(noise_D, spans_D, random), kept_sizes
    return np.repeat(is_hidden, sizes)


def _cut(totals_N: Ints, parts_N: Ints, random: np.random.Generator) -> Ints:
    """Each total cut into so many parts of at least 1, all ways equally likely; the sizes of all parts, one after another.

    A part begins at the first item, and at those others that draw the least numbers.
    """
    begins_N = np.cumsum(totals_N) - totals_N
    drawn = random.random(int(totals_N.sum()))
    drawn[begins_N] = -1.0
    order = np.lexsort((drawn, np.repeat(np.arange(len(totals_N)), totals_N)))
    rank = _ranges(np.zeros_like(totals_N), totals_N)
    sizes: Ints = np.diff(np.sort(order[rank < np.repeat(parts_N, totals_N)]), append=len(drawn))
    return sizes


def _ranges(first_N: Ints, size_N: Ints) -> Ints:
    """[first, first + 1, ...] of each size, one after another."""
    ranges: Ints = np.arange(int(size_N.sum())) + np.repeat(first_N - (np.cumsum(size_N) - size_N), size_N)
    return ranges


def _padded(rows: Sequence[Ints], padding: int) -> torch.Tensor:
    """Rows as wide as the longest, rounded up; at least one step, where no document has a target."""
    longest = max(1, *map(len, rows))
    padded = np.full((len(rows), -(-longest // WIDTH_STEP) * WIDTH_STEP), padding, np.int64)
    for row, held in zip(padded, rows, strict=True):
        row[: len(held)] = held
    return torch.from_numpy(padded)
