"""Who sees whom in a block, where positions cannot say it: as a dense mask, which transformers hands to each layer as it is.

A mask is made and moved to the device as booleans, B x T x T bytes: 2 MiB for 8 x 512, 128 MiB for 8 x 4096. A model gets it as numbers
that are added to the scores, in its own type, so twice that in bfloat16 and four times in float32, once for all layers and heads: eager
attention takes no other form, and SDPA would make such numbers of booleans in each layer anew, and keep them for the backward pass.

Shape letters: B blocks, T block tokens.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

Places = npt.NDArray[np.int64]


def own_document(positions_BT: Places) -> torch.Tensor:
    """Each position sees its document, in both directions. A document begins where positions are 0; the padding is one, so that no position
    sees nothing, which would make it NaN. Shapes: B1TT."""
    documents_BT = np.cumsum(positions_BT == 0, axis=1, dtype=_narrow(positions_BT))
    return torch.from_numpy(documents_BT[:, None, :, None] == documents_BT[:, None, None, :])


def up_to(last_BT: Places, positions_BT: Places) -> torch.Tensor:
    """Each position sees its document from the beginning to the place `last_BT`, counted in the block. Shapes: B1TT."""
    narrow, (num_rows, width) = _narrow(positions_BT), positions_BT.shape
    places_T = np.arange(width, dtype=narrow)
    firsts_BT, lasts_BT = (places_T - positions_BT).astype(narrow), last_BT.astype(narrow)
    sees_BTT, reached_TT = np.empty((num_rows, width, width), np.bool_), np.empty((width, width), np.bool_)
    for b in range(num_rows):  # row by row, what is compared stays in the cache
        np.greater_equal(places_T, firsts_BT[b, :, None], out=sees_BTT[b])
        sees_BTT[b] &= np.less_equal(places_T, lasts_BT[b, :, None], out=reached_TT)
    return torch.from_numpy(sees_BTT[:, None])


def narrowest_window(config: Any) -> int | None:
    """How many tokens those layers of a model see that do not see all, by its transformers config. A dense mask would let them see all."""
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"]  # where they are not named, they are alike
    names = {"sliding_attention": "sliding_window", "chunked_attention": "attention_chunk_size"}
    windows = [getattr(config, name, None) for kind, name in names.items() if kind in kinds]
    return min((w for w in windows if w is not None), default=None)


def as_numbers(inputs: Mapping[str, torch.Tensor], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The inputs of a model of this type, dense masks as what is added to the scores: 0 for what is seen, the least number for the rest."""
    return {name: _as_numbers(t, dtype) if t.dtype == torch.bool and t.ndim == 4 else t for name, t in inputs.items()}


def _narrow(positions_BT: Places) -> type[np.signedinteger[Any]]:
    """What holds every place: comparing T x T of them is what a mask costs."""
    return np.int16 if positions_BT.shape[1] < 1 << 15 else np.int32


def _as_numbers(sees_B1TT: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return torch.zeros_like(sees_B1TT, dtype=dtype).masked_fill_(~sees_B1TT, torch.finfo(dtype).min)
