"""Models that take packed documents although their class does not."""

from transformers import BloomForCausalLM, PreTrainedModel

from zhlm.model import t5
from zhlm.model.bloom import PackedBloom

PACKED = {BloomForCausalLM: PackedBloom, **t5.PACKED}


def take_documents(model: PreTrainedModel) -> PreTrainedModel:
    """The model, taught to keep packed documents apart if its class is one that has to be: BLOOM by `position_ids`, T5 and its kin by
    `document_ids`. Others stay as they are."""
    model.__class__ = PACKED.get(type(model), type(model))
    return model
