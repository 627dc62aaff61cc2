"""BLOOM on packed documents.

BLOOM knows distances through ALiBi alone, and takes an attention mask but no positions. Here it takes them as other models do: where they
restart a document begins, which sees itself alone. Shape letters: B blocks, T block tokens, H heads.
"""

from typing import Any

import torch
from transformers import BloomForCausalLM
from transformers.models.bloom.modeling_bloom import _get_alibi_slopes


class PackedBloom(BloomForCausalLM):  # type: ignore[misc]
    """The same weights; without `position_ids` the same model."""

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        **inputs: Any,
    ) -> Any:
        """Shapes: input_ids_BT, position_ids_BT. There is a mask or there are positions."""
        if position_ids is None:
            return super().forward(input_ids=input_ids, attention_mask=attention_mask, **inputs)
        assert attention_mask is None, "positions say what a mask would say"
        slopes_H = _get_alibi_slopes(self.config.n_head, device=position_ids.device)

        def alibi(mask: torch.Tensor, num_heads: int, dtype: torch.dtype) -> torch.Tensor:
            bias_BHT: torch.Tensor = slopes_H[:, None] * position_ids[:, None]
            return bias_BHT.flatten(0, 1)[:, None].to(dtype)

        self.transformer.build_alibi_tensor = alibi  # which counts on across documents in the class
        try:
            return super().forward(input_ids=input_ids, attention_mask=_own_document(position_ids, self.dtype), **inputs)
        finally:
            del self.transformer.build_alibi_tensor


PackedBloom.__name__ = BloomForCausalLM.__name__  # which save_pretrained writes, and messages name


def _own_document(position_ids_BT: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """0 where a position sees another, else the least number of the type. Shapes: B1TT."""
    documents_BT = (position_ids_BT == 0).cumsum(-1)
    sees_BTT = (documents_BT[:, :, None] == documents_BT[:, None]).tril()
    return torch.zeros_like(sees_BTT, dtype=dtype).masked_fill(~sees_BTT, torch.finfo(dtype).min)[:, None]
