"""What a masked model puts in the place of each mask of a text.

Shape letters: R rows, T tokens of the longest row, V vocabulary, M masks of a row, K guesses.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from zhlm.inference.bits import groups_of


@dataclass(frozen=True)
class MaskedText:
    """A text as the model reads it: special tokens around it, and where its masks are."""

    text: str
    ids: list[int]
    spans: list[tuple[int, int]]
    """Characters of each mask token, its first and the one behind its last."""


@dataclass(frozen=True)
class Guess:
    """A token in the place of one mask."""

    token: str
    token_id: int
    score: float
    """Its probability, by the other tokens of the text and with the other masks as they are."""
    text: str
    """The text with it; the other masks stay."""


def read_masked(tokenizer: Any, text: str) -> MaskedText:
    """A text that has masks, or none: then `spans` is empty."""
    encoding = tokenizer(text, return_offsets_mapping=True, verbose=False)
    ids = list(encoding["input_ids"])
    spans = [(start, end) for i, (start, end) in zip(ids, encoding["offset_mapping"], strict=True) if i == tokenizer.mask_token_id]
    return MaskedText(text, ids, spans)


def guess_masked(model: Any, tokenizer: Any, texts: Sequence[MaskedText], top_k: int) -> list[list[list[Guess]]]:
    """For each text, for each of its masks: the `top_k` likeliest tokens, best first."""
    rows = [text.ids for text in texts]
    found: list[list[list[Guess]]] = [[] for _ in texts]
    for part in groups_of([len(row) for row in rows], model):
        for row, (scores_MK, ids_MK) in zip(part, _guess([rows[r] for r in part], model, tokenizer, top_k), strict=True):
            text = texts[row]
            found[row] = [
                [
                    Guess(str(tokenizer.decode([i])), i, score, fill(tokenizer, text.text, [span], [i]))
                    for i, score in zip(ids_K.tolist(), scores_K.tolist(), strict=True)
                ]
                for span, scores_K, ids_K in zip(text.spans, scores_MK, ids_MK, strict=True)
            ]
    return found


@torch.inference_mode()
def _guess(rows: Sequence[Sequence[int]], model: Any, tokenizer: Any, top_k: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Probabilities and ids of each row. Shapes: MK."""
    ids_RT, mask_RT = pad_rows(rows, tokenizer.pad_token_id or 0)
    ids_RT, mask_RT = ids_RT.to(model.device), mask_RT.to(model.device)
    logits_RTV = model(input_ids=ids_RT, attention_mask=mask_RT).logits
    found = []
    for ids_T, logits_TV in zip(ids_RT, logits_RTV, strict=True):
        scores_MV = logits_TV[ids_T == tokenizer.mask_token_id].float().softmax(-1)
        scores_MK, ids_MK = scores_MV[:, : len(tokenizer)].topk(min(top_k, len(tokenizer)))  # padded rows are no tokens
        found.append((scores_MK.cpu(), ids_MK.cpu()))
    return found


def pad_rows(rows: Sequence[Sequence[int]], pad_id: int, *, left: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of ids in one tensor, and a mask that is 1 where they are. Shapes: both RT."""
    longest = max(len(row) for row in rows)
    ids_RT, mask_RT = torch.full((len(rows), longest), pad_id), torch.zeros(len(rows), longest, dtype=torch.long)
    for r, row in enumerate(rows):
        where = slice(longest - len(row), None) if left else slice(len(row))
        ids_RT[r, where], mask_RT[r, where] = torch.tensor(row), 1
    return ids_RT, mask_RT


def fill(tokenizer: Any, text: str, spans: Sequence[tuple[int, int]], ids: Sequence[int]) -> str:
    """The text with tokens in the place of spans, written as the tokenizer would have cut them out of a text.

    `in the [MASK].` with `##s` is `in thes.`; `in<mask>park`, whose mask took the space before it, with ` the` is `in the park`.
    Unlike decoding the whole, this leaves the rest of the text as it was: Chinese without spaces, capitals, unknown characters.
    """
    written, last = "", 0
    for (start, end), i in zip(spans, ids, strict=True):
        written = _append(tokenizer, written + text[last:start], i)
        last = end
    return written + text[last:]


def _append(tokenizer: Any, head: str, token_id: int) -> str:
    model = tokenizer.backend_tokenizer.model
    if type(model).__name__ == "WordPiece":  # words have no mark, what goes on has one
        token = str(tokenizer.convert_ids_to_tokens(token_id))
        prefix = model.continuing_subword_prefix
        return head.rstrip() + token.removeprefix(prefix) if token.startswith(prefix) else head + token
    mark = tokenizer.mask_token  # decoders drop the space at the start of what they decode
    whole = str(tokenizer.decode([tokenizer.mask_token_id, token_id], clean_up_tokenization_spaces=False))
    piece = whole.removeprefix(mark)
    return head + (piece.lstrip(" ") if not head or head[-1].isspace() else piece)
