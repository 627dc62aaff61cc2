"""Bits per byte of a causal model on whole documents: the one number that can be compared across vocabularies. What other objectives
have in its place is in bits_prefix, bits_spans and bits_masked.

A document stands alone: bos in front and eos behind it as the pack config says, nothing of its neighbours. The cost of the eos counts,
because where a text ends is information too; the eos adds no byte. Without a bos nothing predicts the first token, so it and its bytes
are left out of both sides. Where that token ends inside a character, the tokens up to the character's end are left out with it: part of
a character has no byte count that all tokenizers agree on.

Shape letters: R rows, T tokens of the longest row, V vocabulary.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch.nn.functional import cross_entropy

from zhlm.errors import BaseModelError, RunError
from zhlm.tokenizer.special import STAND_INS, document_token

LOGITS_PER_BATCH = 1 << 25
"""R x T x V of one forward pass, 128 MiB in float32."""

Measure = Literal["causal", "continuation", "targets", "pseudo_likelihood"]
"""What bits per byte are of. causal: a whole text. continuation: what follows a prefix, given the prefix. targets: what spans hide, given
the rest. pseudo_likelihood: every token, given all others, which is no code for the text and below what any causal model can reach."""


@dataclass(frozen=True)
class StreamScore:
    """What a model needs to write down the texts of one stream, or that part of them which its objective measures."""

    bits_per_byte: float
    bits_per_character: float
    documents: int
    tokens: int
    """Tokens predicted, each eos included."""
    nats: float
    utf8_bytes: int
    """Bytes predicted."""
    characters: int
    unknown_tokens: int
    """Pieces the tokenizer cannot spell. With any, bits per byte flatters: what they stood for is lost."""
    measure: Measure = "causal"
    sampled_tokens: int | None = None
    """With pseudo-likelihood: so many of `tokens` were masked in turn, and stand for the others of their documents."""
    masked_accuracy: float | None = None
    """With pseudo-likelihood: share of targets whose likeliest token is the right one, when texts are masked as in training."""
    masked_tokens: int | None = None
    """Targets of masked_accuracy."""


@dataclass(frozen=True)
class _Window:
    """A piece of a document that fits the model; only `tokens[scored_from:]` are scored, the ones before are context."""

    tokens: list[int]
    scored_from: int


def measure(
    model: Any,
    tokenizer: Any,
    texts: Sequence[str],
    *,
    document_start: str,
    document_end: str,
    block_tokens: int,
    device: str | torch.device,
) -> StreamScore:
    """Score each text on its own. Documents longer than block_tokens are read in windows that overlap by half, so that every token is
    predicted once, with at least half a window of context.

    Raises: BaseModelError when the tokenizer lacks the bos or eos asked for, RunError when the texts hold nothing to predict.
    """
    starts, ends = special_ids(tokenizer, document_start), special_ids(tokenizer, document_end)
    windows: list[_Window] = []
    utf8_bytes = characters = unknown_tokens = 0
    for text in texts:
        encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        ids, left_out_tokens, left_out_chars = list(encoding["input_ids"]), 1, 0
        if not starts and ids:
            left_out_tokens, left_out_chars = first_characters(encoding["offset_mapping"])
        utf8_bytes += len(text[left_out_chars:].encode())
        characters += len(text) - left_out_chars
        unknown_tokens += count_unknown(tokenizer, ids, [*starts, *ends])
        windows += _windows([*starts, *ids, *ends], left_out_tokens, block_tokens)
    nats = _score(model, windows, torch.device(device)) if utf8_bytes else 0.0
    tokens = sum(len(w.tokens) - w.scored_from for w in windows)
    return make_score("causal", nats, len(texts), tokens, utf8_bytes, characters, unknown_tokens)


def make_score(
    measure: Measure, nats: float, documents: int, tokens: int, utf8_bytes: float, characters: float, unknown_tokens: int, **more: Any
) -> StreamScore:
    """A score from the sums over documents. Raises: RunError when nothing was predicted."""
    if not utf8_bytes:
        raise RunError(
            f"evaluate: {documents} held-out documents hold nothing to predict, their first character aside; hold out longer ones"
        )
    bits = nats / math.log(2)
    sums = (documents, tokens, nats, round(utf8_bytes), round(characters), unknown_tokens)
    return StreamScore(bits / utf8_bytes, bits / characters, *sums, measure=measure, **more)


def special_ids(tokenizer: Any, wanted: str) -> list[int]:
    """The id of what stands before (`wanted` is bos) or behind (eos) a document, as a list of one; nothing for none.

    Raises: BaseModelError when the tokenizer has no such token.
    """
    if wanted == "none":
        return []
    found = document_token(tokenizer, wanted)
    if found is None:
        key = "document_start" if wanted == "bos" else "document_end"
        raise BaseModelError(
            f"evaluate: the tokenizer {tokenizer.name_or_path} has no {' or '.join(STAND_INS[wanted])} token and pack.{key} is {wanted}; "
            f"set pack.{key}: none, or add one with vocab.special_tokens.{wanted}_token"
        )
    return [found.id]


def count_unknown(tokenizer: Any, ids: Sequence[int], around: Sequence[int]) -> int:
    """Pieces that only say that there was something. Where the same id stands around documents, it says nothing."""
    return ids.count(tokenizer.unk_token_id) if tokenizer.unk_token_id not in (None, *around) else 0


def first_characters(offsets: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """How many tokens, and how many characters, the first token reaches into, whole characters only.

    Byte pieces of one character all carry that character's offsets: (0, 1), (0, 1), (0, 1), (1, 3) gives 3 tokens and 1 character.
    """
    reach = offsets[0][1]
    for tokens in range(1, len(offsets)):
        start, end = offsets[tokens]
        if start >= reach:
            return tokens, reach
        reach = max(reach, end)
    return len(offsets), reach


def _windows(tokens: list[int], first_scored: int, block_tokens: int) -> list[_Window]:
    """Cut a document into windows of at most block_tokens inputs; the last token of a window is only a label, hence the + 1.

    With block_tokens 4: [0 1 2 3 4] scores 1-4, [2 3 4 5 6] scores 5-6, [4 5 6 7 8] scores 7-8.
    """
    windows, scored, start = [], first_scored, 0
    while scored < len(tokens):
        end = min(start + block_tokens + 1, len(tokens))
        if end > scored:
            windows.append(_Window(tokens[start:end], scored - start))
            scored = end
        start += max(block_tokens // 2, 1)
    return windows


def _score(model: Any, windows: Sequence[_Window], device: torch.device) -> float:
    """Nats of all scored tokens. Windows of like length share a forward pass; the sum does not depend on how they were grouped."""
    nats = [0.0] * len(windows)
    for group in groups_of([len(w.tokens) for w in windows], model):
        for index, row in zip(group, _score_batch(model, [windows[i] for i in group], device), strict=True):
            nats[index] = row
    return math.fsum(nats)


def groups_of(lengths: Sequence[int], model: Any) -> Iterator[list[int]]:
    """The numbers of rows, of which these are the lengths in tokens: like lengths together, as many as one forward pass takes."""
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    vocabulary = model.config.get_text_config().vocab_size
    while order:
        num_rows = max(1, LOGITS_PER_BATCH // (vocabulary * lengths[order[0]]))
        yield order[:num_rows]
        order = order[num_rows:]


@torch.inference_mode()
def _score_batch(model: Any, windows: Sequence[_Window], device: torch.device) -> list[float]:
    """Nats per row.

    Padding stands on the right, where a causal model cannot look, and is never a label. So no mask is needed, and none is passed: the
    same numbers in half the time, because attention then takes its causal path.
    """
    longest = len(windows[0].tokens) - 1
    inputs_RT = torch.zeros(len(windows), longest, dtype=torch.long)
    for row, window in enumerate(windows):
        inputs_RT[row, : len(window.tokens) - 1] = torch.tensor(window.tokens[:-1])
    logits_RTV = model(input_ids=inputs_RT.to(device), use_cache=False).logits
    nats = []
    for logits_TV, window in zip(logits_RTV, windows, strict=True):
        labels = torch.tensor(window.tokens[window.scored_from :], device=device)
        scored = logits_TV[window.scored_from - 1 : len(window.tokens) - 1].float()
        nats.append(float(cross_entropy(scored, labels, reduction="none").double().sum()))
    return nats
