"""Where new embedding rows start. Shape letters: V old rows, N new rows, D width."""

import numpy as np
import torch

from zhlm.model.resize import InitRows
from zhlm.vocab.bytelevel import ByteLevel


def mean(num_pieces: int) -> InitRows:
    """Every new row is the mean of all old ones."""

    def init(old_VD: torch.Tensor) -> torch.Tensor:
        return old_VD.mean(dim=0).repeat(num_pieces, 1)

    return init


def subword_mean(pieces: list[str], base: ByteLevel) -> InitRows:
    """Each new row is the mean of the old rows that spelled its piece: the model has met that sum of bytes and merges before.

    The spelling is that of the base's merges on the piece's bytes, so parts of a character are spelled like any other piece.
    """
    spellings = base.merge(pieces)

    def init(old_VD: torch.Tensor) -> torch.Tensor:
        which_piece = torch.as_tensor(np.repeat(np.arange(len(spellings)), [len(s) for s in spellings]))
        old_ids = torch.as_tensor([row for spelling in spellings for row in spelling])
        sums_ND = torch.zeros(len(spellings), old_VD.shape[1]).index_add_(0, which_piece, old_VD[old_ids])
        return sums_ND / torch.as_tensor([len(s) for s in spellings])[:, None]

    return init
