"""How much span corruption hides, by numbers alone and without torch: a plan counts with them too. Shapes: D documents, N lengths."""

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]


def counts(maskable_D: Ints, noise_share: float, mean_span: float) -> tuple[Ints, Ints]:
    """Noise tokens and spans of documents with so many tokens that may be hidden. 512 tokens at 15% in spans of 3: 77 and 26."""
    noise_D = np.minimum(np.rint(maskable_D * noise_share), maskable_D - 1).clip(0)
    spans_D = np.minimum(np.rint(noise_D / mean_span).clip(1), np.minimum(noise_D, maskable_D - noise_D + 1))
    return noise_D.astype(np.int64), spans_D.astype(np.int64)


def lengths(block_tokens: int, noise_share: float, mean_span: float) -> tuple[int, int]:
    """The most tokens that the encoder can read and the decoder write of a block, however it is split into documents.

    At 15% in spans of 3, a document that fills the block needs 0.9 and 0.2 of it, documents of 4 tokens as much as it holds on both sides.
    """
    maskable_N, written_N = written_of(block_tokens, noise_share, mean_span)
    return block_tokens, int((block_tokens * written_N // maskable_N).max())


def typical_lengths(block_tokens: int, noise_share: float, mean_span: float) -> tuple[int, int]:
    """What is read and written of a document that fills a block."""
    noise_N, spans_N = counts(np.array([block_tokens]), noise_share, mean_span)
    noise, spans = int(noise_N[0]), int(spans_N[0])
    return block_tokens - noise + spans, noise + spans + 2 if spans else 0


def written_of(block_tokens: int, noise_share: float, mean_span: float) -> tuple[Ints, Ints]:
    """Lengths of documents up to a block's, and what the decoder writes of each."""
    maskable_N = np.arange(1, block_tokens + 1)
    noise_N, spans_N = counts(maskable_N, noise_share, mean_span)
    return maskable_N, np.where(spans_N > 0, noise_N + spans_N + 2, 0)
