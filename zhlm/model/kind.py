"""Which objectives a base takes, by its config.json alone, without torch.

The class that wrote the weights decides. Its name is not enough everywhere: transformers offers a causal class for BERT too, which reads in
both directions, and so sees what it should predict, unless its config says is_decoder.
"""

from collections.abc import Mapping
from typing import Any, Literal

from zhlm.config.objective import Objective
from zhlm.errors import BaseModelError

Kind = Literal["decoder", "encoder", "encoder_decoder"]

TAKES: dict[Kind, tuple[str, ...]] = {
    "decoder": ("causal", "prefix"),
    "encoder": ("masked",),
    "encoder_decoder": ("span_corruption",),
}
_ENCODERS = (
    "albert bert big_bird camembert convbert data2vec-text deberta deberta-v2 distilbert electra ernie eurobert flaubert fnet funnel gte "
    "ibert jina_embeddings_v3 longformer luke megatron-bert mobilebert modernbert mpnet mra nomic_bert nystromformer reformer rembert "
    "roberta roberta-prelayernorm roc_bert roformer squeezebert xlm xlm-roberta xlm-roberta-xl xmod yoso"
)
_ENCODER_DECODERS = (
    "bart bigbird_pegasus blenderbot blenderbot-small encoder-decoder fsmt led longt5 m2m_100 marian mbart mt5 mvp nllb-moe pegasus "
    "pegasus_x plbart prophetnet switch_transformers t5 t5gemma t5gemma2 umt5"
)
ENCODERS, ENCODER_DECODERS = frozenset(_ENCODERS.split()), frozenset(_ENCODER_DECODERS.split())
"""Model types of transformers that read text; what is in neither list is taken for a decoder."""
PACKABLE = ("t5", "mt5", "umt5")
"""Encoder-decoders whose documents are kept apart: see t5.py."""
MASKABLE_LAYERS = frozenset(("full_attention", "sliding_attention", "chunked_attention"))
"""Whose attention takes a mask in place of its own; others, such as linear_attention, read only forwards."""


def kind_of(model_config: Mapping[str, Any]) -> Kind:
    """`model_config`: the content of a config.json. Without `architectures`, as a base from scratch may be, the model type decides."""
    model_type, name = str(model_config.get("model_type")), _class_name(model_config)
    if model_type in ENCODER_DECODERS and not name.endswith("ForCausalLM"):
        return "encoder_decoder"
    if name.endswith("ForMaskedLM") or (model_type in ENCODERS and not model_config.get("is_decoder")):
        return "encoder"
    return "decoder"


def check_fits(objective: Objective, model_config: Mapping[str, Any], source: str) -> None:
    """Raises: BaseModelError when the base cannot learn by this objective; what it is, what it takes."""
    takes = TAKES[kind_of(model_config)]
    if objective.name not in takes:
        kind = _class_name(model_config) or f"a {model_config.get('model_type')} model"
        raise BaseModelError(
            f"base: {source} is {kind}, which takes {' or '.join(takes)}; objective is {objective.name}; set objective: {takes[0]}, or "
            "name another base.model"
        )
    if objective.name == "span_corruption" and model_config.get("model_type") not in PACKABLE:
        raise BaseModelError(
            f"base: {source} is a {model_config.get('model_type')} model, expected one of {', '.join(PACKABLE)}: of encoder-decoders, only "
            "theirs keep the documents of a block apart; name another base.model"
        )
    why_not = _why_no_prefix(model_config) if objective.name == "prefix" else ""
    if why_not:
        raise BaseModelError(
            f"base: {source} is a {model_config.get('model_type')} model, which {why_not}; objective is prefix, which is seen in both "
            "directions; set objective: causal, or name another base.model (Llama, Qwen, GPT-2, Mistral ...)"
        )


def _why_no_prefix(model_config: Mapping[str, Any]) -> str:
    """Why a decoder cannot look ahead, if it cannot."""
    config = model_config.get("text_config") or model_config
    if config.get("model_type") == "bloom" or config.get("alibi"):
        return "knows distances through ALiBi, which prefers what comes later to what is near"
    others = {*(config.get("layer_types") or ())} - MASKABLE_LAYERS
    return f"has layers of {min(others)}, which read only forwards" if others else ""


def _class_name(model_config: Mapping[str, Any]) -> str:
    return str((model_config.get("architectures") or [""])[0])
