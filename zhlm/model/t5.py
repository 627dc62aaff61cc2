"""T5, mT5 and UMT5 on packed documents.

They know distances through biases of relative positions, which are the same wherever a document stands, and take one mask for the encoder
and the cross attention together. Here they take the number of each token's document, and a token sees its own alone.
Shape letters: B blocks, S encoder tokens, T decoder tokens, Q tokens that look, K tokens that are looked at.
"""

from typing import Any

import torch
from transformers import MT5ForConditionalGeneration, T5ForConditionalGeneration, UMT5ForConditionalGeneration


def _packed(plain: Any) -> Any:
    class Packed(plain):  # type: ignore[misc]
        """The same weights; without `document_ids` the same model."""

        def forward(
            self,
            input_ids: torch.Tensor | None = None,
            attention_mask: torch.Tensor | None = None,
            decoder_input_ids: torch.Tensor | None = None,
            decoder_attention_mask: torch.Tensor | None = None,
            document_ids: torch.Tensor | None = None,
            decoder_document_ids: torch.Tensor | None = None,
            **inputs: Any,
        ) -> Any:
            """Shapes: input_ids_BS, document_ids_BS, decoder_input_ids_BT, decoder_document_ids_BT. Document 0 is padding."""
            if document_ids is None:
                return super().forward(input_ids, attention_mask, decoder_input_ids, decoder_attention_mask, **inputs)
            assert attention_mask is None and decoder_attention_mask is None, "documents say what masks would say"
            assert decoder_document_ids is not None, "the decoder's tokens belong to documents too"
            read = self.encoder(input_ids=input_ids, attention_mask=_additive(_same(document_ids, document_ids), self.dtype))
            # Padding looks at everything, for the softmax of a row that sees nothing is not defined; nothing looks at it.
            crosses_BTS = _same(decoder_document_ids, document_ids) | (decoder_document_ids == 0)[:, :, None]
            return super().forward(
                encoder_outputs=read,
                attention_mask=_additive(crosses_BTS, self.dtype),
                decoder_input_ids=decoder_input_ids,
                decoder_attention_mask=_additive(_same(decoder_document_ids, decoder_document_ids).tril(), self.dtype),
                **inputs,
            )

    Packed.__name__ = Packed.__qualname__ = plain.__name__  # which save_pretrained writes, and messages name
    return Packed


PACKED = {plain: _packed(plain) for plain in (T5ForConditionalGeneration, MT5ForConditionalGeneration, UMT5ForConditionalGeneration)}
"""Plain class -> the one that keeps packed documents apart."""


def _same(documents_BQ: torch.Tensor, documents_BK: torch.Tensor) -> torch.Tensor:
    """Shapes: BQK."""
    return documents_BQ[:, :, None] == documents_BK[:, None]


def _additive(sees_BQK: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """0 where a token sees another, else the least number of the type: what every kind of attention adds to its scores. Shapes: B1QK."""
    return torch.zeros_like(sees_BQK, dtype=dtype).masked_fill(~sees_BQK, torch.finfo(dtype).min)[:, None]
