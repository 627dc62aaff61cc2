"""Some tokens of packed documents from all the others, on both sides, as BERT and RoBERTa learn them.

Most of the tokens to predict are seen as the mask token, some as a random one, some as they are. Documents never see each other: positions
restart at each, and a dense mask keeps them apart (what it takes: see attention.py), because these classes make none from positions.

Source: Devlin et al. 2019, with at least one token to predict in each block, as in their code; whole words as in Cui et al. 2021 (Chinese
BERT-wwm), where what is seen is drawn for each token of a word by itself.

Shape letters: B blocks, T block tokens, F tokens of a block, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from transformers import PretrainedConfig

from zhlm.config.objective import MaskedConfig
from zhlm.errors import BaseModelError
from zhlm.model.load import embedding_rows, first_position
from zhlm.objectives.attention import own_document
from zhlm.objectives.batch import IGNORED, Batch, BatchMaker, Ints, fills_of, ids_of, positions_of, random_of
from zhlm.objectives.words import Words
from zhlm.records import Blocks
from zhlm.tokenizer.load import vocabulary_of


@dataclass(frozen=True)
class Masked(BatchMaker):
    """What is masked how, by a tokenizer and a model."""

    mask_share: float
    mask_token_share: float
    random_share: float
    mask_id: int
    ordinary_V: npt.NDArray[np.bool_]
    """Whether an id is of a token that may be masked: of the tokenizer and not special."""
    drawn: Ints
    """The ids that random tokens are drawn from: the ordinary ones."""
    first_position: int
    """Of a document, in the model's numbers."""
    words: Words | None
    seed: int
    packed: bool = True
    """Blocks may hold more than one document. Where they hold one, a plain mask of the padding is enough, which every class takes."""

    @classmethod
    def of(cls, config: MaskedConfig, tokenizer: Any, model_config: PretrainedConfig, seed: int) -> Self:
        """Raises: BaseModelError for a tokenizer without a mask token; ConfigError where words are to be found and cannot be."""
        if tokenizer.mask_token_id is None:
            raise BaseModelError(
                f"objective: the tokenizer {tokenizer.name_or_path} has no mask token, which masked needs; "
                'add one with vocab.special_tokens: {mask_token: "[MASK]"}'
            )
        rows = max(vocabulary_of(tokenizer), embedding_rows(model_config))
        ordinary_V = np.zeros(rows, np.bool_)
        ordinary_V[list(tokenizer.get_vocab().values())] = True
        ordinary_V[tokenizer.all_special_ids] = False
        return cls(
            config.mask_share,
            config.mask_token_share,
            config.random_share,
            tokenizer.mask_token_id,
            ordinary_V,
            np.flatnonzero(ordinary_V),
            first_position(model_config),
            Words.of(tokenizer, rows) if config.whole_words else None,
            seed,
        )

    def make_batch(self, blocks: Blocks, keys: Sequence[int]) -> Batch:
        """Worked example: of a block [a b c | d e | pad] with b and e to predict, the model sees [a M c d M pad] at positions
        [0 1 2 0 1 0], and the targets are [- b - - e -]."""
        ids_BT = ids_of(blocks)
        seen_BT, targets_BT = ids_BT.copy(), np.full_like(ids_BT, IGNORED)
        for b, (ends, key) in enumerate(zip(blocks.ends, keys, strict=True)):
            ids_F = ids_BT[b, : ends[-1]]
            chosen_F, seen_F = self._mask(ids_F, ends, random_of(self.seed, key))
            targets_BT[b, : ends[-1]][chosen_F] = ids_F[chosen_F]
            seen_BT[b, : ends[-1]] = seen_F
        inputs = {"input_ids": torch.from_numpy(seen_BT), **self._apart(blocks, ids_BT.shape[1])}
        return Batch(inputs, torch.from_numpy(targets_BT), torch.from_numpy(fills_of(blocks)))

    def _apart(self, blocks: Blocks, width: int) -> dict[str, torch.Tensor]:
        """What keeps documents apart from each other and from padding."""
        if not self.packed:
            return {"attention_mask": torch.from_numpy((np.arange(width) < fills_of(blocks)[:, None]).astype(np.int64))}
        positions_BT = positions_of(blocks, width)
        return {"attention_mask": own_document(positions_BT), "position_ids": torch.from_numpy(positions_BT + self.first_position)}

    def _mask(self, ids_F: Ints, ends: npt.NDArray[np.uint32], random: np.random.Generator) -> tuple[npt.NDArray[np.bool_], Ints]:
        """Which tokens of a block are to be predicted, and what is seen of all. How much is drawn depends on the block alone, not on the
        batch that it is in."""
        ordinary_F = self.ordinary_V[ids_F]
        draws_F, fates_F = random.random((2, len(ids_F)))
        random_F = self.drawn[random.integers(len(self.drawn), size=len(ids_F))]
        if self.words is not None:
            draws_F = draws_F[np.cumsum(self.words.begins(ids_F, ends)) - 1]
        chosen_F = ordinary_F & (draws_F < self.mask_share)
        if ordinary_F.any() and not chosen_F.any():
            chosen_F = ordinary_F & (draws_F == draws_F[ordinary_F].min())
        seen_F = np.where(chosen_F & (fates_F < self.mask_token_share + self.random_share), random_F, ids_F)
        return chosen_F, np.where(chosen_F & (fates_F < self.mask_token_share), self.mask_id, seen_F)
