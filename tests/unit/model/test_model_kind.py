"""What a base takes, by its config alone: as transformers' own lists of classes say."""

from typing import Any

import pytest
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
)

from zhlm.config.objective import CausalConfig, MaskedConfig, Objective, PrefixConfig, SpanCorruptionConfig
from zhlm.errors import BaseModelError
from zhlm.model.kind import ENCODER_DECODERS, ENCODERS, check_fits, kind_of


def test_masked_classes_are_encoders() -> None:
    masked = {*MODEL_FOR_MASKED_LM_MAPPING_NAMES.items()}
    both = {(t, c) for t, c in masked if t in ENCODER_DECODERS}
    assert {c for _, c in both} == {"BartForConditionalGeneration", "MBartForConditionalGeneration", "MvpForConditionalGeneration"}
    kinds = {(t, c): kind_of({"model_type": t, "architectures": [c]}) for t, c in masked - both}
    assert {place: kind for place, kind in kinds.items() if kind != "encoder"} == {}
    assert {t for t in ENCODERS if t not in MODEL_FOR_MASKED_LM_MAPPING_NAMES} == set()


def test_causal_classes_are_decoders_unless_they_see_what_they_predict() -> None:
    for model_type, name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.items():
        config = {"model_type": model_type, "architectures": [name]}
        assert kind_of(config | {"is_decoder": True}) == "decoder" or model_type in ENCODER_DECODERS
        assert kind_of(config) == ("encoder" if model_type in ENCODERS else "decoder") or model_type in ENCODER_DECODERS


def test_text_to_text_classes_are_encoder_decoders() -> None:
    assert {t for t in ENCODER_DECODERS if t not in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES} == set()
    for model_type in ENCODER_DECODERS:
        name = MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES[model_type]
        assert kind_of({"model_type": model_type, "architectures": [name]}) == "encoder_decoder"


@pytest.mark.parametrize(
    ("model_config", "kind"),
    [
        ({"model_type": "bert", "architectures": ["BertForPreTraining"]}, "encoder"),
        ({"model_type": "bert", "architectures": ["BertLMHeadModel"]}, "encoder"),
        ({"model_type": "bert", "architectures": ["BertLMHeadModel"], "is_decoder": True}, "decoder"),
        ({"model_type": "bert"}, "encoder"),
        ({"model_type": "bert", "architectures": None}, "encoder"),
        ({"model_type": "bert", "is_decoder": True}, "decoder"),
        ({"model_type": "roberta", "architectures": []}, "encoder"),
        ({"model_type": "t5"}, "encoder_decoder"),
        ({"model_type": "t5", "architectures": ["T5WithLMHeadModel"]}, "encoder_decoder"),
        ({"model_type": "bart", "architectures": ["BartForCausalLM"]}, "decoder"),
        ({"model_type": "gpt2", "architectures": ["GPT2Model"]}, "decoder"),
        ({"model_type": "llama"}, "decoder"),
        ({"model_type": "of_somebody", "architectures": ["MyForMaskedLM"]}, "encoder"),
        ({}, "decoder"),
    ],
    ids=str,
)
def test_what_a_config_says_of_itself(model_config: dict[str, Any], kind: str) -> None:
    assert kind_of(model_config) == kind


BERT = {"model_type": "bert", "architectures": ["BertForMaskedLM"]}
GPT2 = {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}
T5 = {"model_type": "t5", "architectures": ["T5ForConditionalGeneration"]}


@pytest.mark.parametrize(
    ("objective", "model_config", "said"),
    [
        (CausalConfig(), BERT, "base: it is BertForMaskedLM, which takes masked; objective is causal; set objective: masked"),
        (PrefixConfig(), {"model_type": "bert"}, "base: it is a bert model, which takes masked; objective is prefix"),
        (MaskedConfig(), GPT2, "base: it is GPT2LMHeadModel, which takes causal or prefix; objective is masked; set objective: causal"),
        (CausalConfig(), T5, "which takes span_corruption; objective is causal; set objective: span_corruption"),
        (SpanCorruptionConfig(), GPT2, "which takes causal or prefix; objective is span_corruption"),
        (
            SpanCorruptionConfig(),
            {"model_type": "bart", "architectures": ["BartForConditionalGeneration"]},
            "is a bart model, expected one of",
        ),
        (SpanCorruptionConfig(), {"model_type": "mbart"}, "is a mbart model, expected one of t5, mt5, umt5: of encoder-decoders, only"),
        (SpanCorruptionConfig(), {"model_type": "pegasus"}, "is a pegasus model, expected one of"),
        (SpanCorruptionConfig(), {"model_type": "longt5"}, "is a longt5 model, expected one of"),
    ],
)
def test_an_objective_that_does_not_fit_is_one_line(objective: Objective, model_config: dict[str, Any], said: str) -> None:
    with pytest.raises(BaseModelError) as caught:
        check_fits(objective, model_config, "it")
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_what_fits_passes() -> None:
    pairs: list[tuple[Objective, dict[str, Any]]] = [
        (CausalConfig(), GPT2), (PrefixConfig(), GPT2), (MaskedConfig(), BERT), (SpanCorruptionConfig(), T5),
        (SpanCorruptionConfig(), {"model_type": "mt5"}), (SpanCorruptionConfig(), {"model_type": "umt5"}),
    ]  # fmt: skip
    for objective, model_config in pairs:
        check_fits(objective, model_config, "it")
