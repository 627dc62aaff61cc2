"""A tokenizer and what was learned -> the same tokenizer with more pieces: old ids, special tokens and settings stay as they are."""

import json

from transformers import PreTrainedTokenizerFast

from zhlm.errors import VerificationError
from zhlm.pieces.base import Base
from zhlm.pieces.learn import Learned
from zhlm.tokenizer.load import vocabulary_of
from zhlm.tokenizer.plain import as_plain


def first_new_id(tokenizer: PreTrainedTokenizerFast) -> int:
    """The id that the first new piece gets: behind all others, special tokens included, whatever their order."""
    return vocabulary_of(tokenizer)


def extend(tokenizer: PreTrainedTokenizerFast, base: Base, learned: Learned) -> PreTrainedTokenizerFast:
    """A new tokenizer whose pieces from `first_new_id` on are the learned ones, in order.

    The result is of the plain class that reads its tokenizer.json as it stands: the classes of model families (Qwen2Tokenizer ...) would
    build their own text cutting around the vocabulary again when the folder is loaded.

    Raises: VerificationError when an old id would move.
    """
    spec = json.loads(json.dumps(base.spec))
    vocabulary = spec["model"]["vocab"]
    # Special tokens that stand outside of the model's vocabulary would leave holes in it, which `tokenizers` warns about at each save.
    for added in spec["added_tokens"]:
        vocabulary.setdefault(added["content"], added["id"])
    start = first_new_id(tokenizer)
    vocabulary.update({piece: start + order for order, piece in enumerate(learned.pieces)})
    if base.MERGES:
        merges = spec["model"]["merges"]
        spec["model"]["merges"] = [*merges, *(_written_like(merges, merge) for merge in learned.merges if merge)]
    extended = as_plain(tokenizer, spec)
    moved = [piece for piece, row in tokenizer.get_vocab().items() if extended.convert_tokens_to_ids(piece) != row]
    if moved or len(extended.get_vocab()) != len(tokenizer.get_vocab()) + len(learned.pieces):
        raise VerificationError(f"vocab: extending moved {len(moved)} old ids, {moved[:3]} among them", moved=moved[:100])
    return extended


def _written_like(merges: list[object], merge: tuple[str, str]) -> object:
    """Old tokenizer.json files write a merge as `a b`, new ones as a pair."""
    return " ".join(merge) if merges and isinstance(merges[0], str) else list(merge)
