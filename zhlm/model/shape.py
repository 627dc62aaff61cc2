"""What a model is made of, read from its config.json alone: names and sizes of its parameters, without torch.

Exact for the model types in KNOWN: names and counts equal those of the transformers classes, PEFT's LoRA included.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from zhlm.errors import BaseModelError

Part = Literal["attention", "mlp"]
HEAD = "lm_head"


@dataclass(frozen=True)
class Linear:
    """One linear layer of a block; `name` is its path inside the block."""

    name: str
    part: Part
    inputs: int
    outputs: int
    bias: bool

    @property
    def parameters(self) -> int:
        return self.inputs * self.outputs + (self.outputs if self.bias else 0)


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a causal language model."""

    model_type: str
    layers: int
    width: int
    heads: int
    vocabulary: int
    """Rows of the embedding."""
    positions: int | None
    """Longest sequence in tokens; None where the model has no limit of its own (ALiBi)."""
    tied: bool
    """The output head is the input embedding."""
    linears: tuple[Linear, ...]
    """Of one block; all blocks are alike."""
    block_norms: Mapping[str, int]
    """Norm parameters of one block, by their names inside it."""
    outer_norms: Mapping[str, int]
    """Norm parameters outside the blocks, by their names."""
    embedding: str = "model.embed_tokens"
    """Name of the input embedding."""
    blocks: str = "model.layers"
    """Name of the list of blocks."""
    learned_positions: int = 0
    """Rows of a position embedding."""


def shape_of(model_config: Mapping[str, Any]) -> ModelShape:
    """The shape behind the content of a config.json.

    Raises: BaseModelError for a model type that is not known here, or a config without its sizes.
    """
    kind = model_config.get("model_type")
    build = KNOWN.get(str(kind))
    if build is None:
        raise BaseModelError(f"base: model type {kind!r} is not known; expected one of {', '.join(sorted(KNOWN))}; choose such a model")
    try:
        return build(model_config)
    except KeyError as error:
        raise BaseModelError(f"base: config.json of a {kind} model lacks {error.args[0]!r}; copy the model's folder again") from None


def parameters(shape: ModelShape) -> dict[str, int]:
    """Parameters by part; `head` is 0 where it is tied to the embeddings."""
    of_part = {part: shape.layers * sum(m.parameters for m in shape.linears if m.part == part) for part in ("attention", "mlp")}
    table = shape.vocabulary * shape.width
    return {
        "embeddings": table,
        "positions": shape.learned_positions * shape.width,
        **of_part,
        "norms": shape.layers * sum(shape.block_norms.values()) + sum(shape.outer_norms.values()),
        "head": 0 if shape.tied else table,
    }


def linears(shape: ModelShape) -> dict[str, Linear]:
    """All linear layers by their whole names, the head last."""
    of_blocks = {f"{shape.blocks}.{i}.{m.name}": m for i in range(shape.layers) for m in shape.linears}
    return of_blocks | {HEAD: Linear(HEAD, "mlp", shape.width, shape.vocabulary, False)}


def named_parameters(shape: ModelShape) -> dict[str, int]:
    """The size of every parameter by its whole name, in no order; a tied head is none of its own."""
    found = {f"{shape.embedding}.weight": shape.vocabulary * shape.width, **shape.outer_norms}
    for i in range(shape.layers):
        found |= {f"{shape.blocks}.{i}.{name}": size for name, size in shape.block_norms.items()}
    for name, linear in linears(shape).items():
        if name != HEAD or not shape.tied:
            found |= {f"{name}.weight": linear.inputs * linear.outputs} | ({f"{name}.bias": linear.outputs} if linear.bias else {})
    if shape.learned_positions:
        found["transformer.wpe.weight"] = shape.learned_positions * shape.width
    return found


def _norm(name: str, width: int) -> dict[str, int]:
    """A layer norm with weight and bias."""
    return {f"{name}.weight": width, f"{name}.bias": width}


def _llama_like(
    c: Mapping[str, Any],
    *,
    key_value_heads: int | None = None,
    head_width: int | None = None,
    qkv_bias: bool = False,
    output_bias: bool = False,
    mlp_bias: bool = False,
    head_norms: bool = False,
) -> ModelShape:
    width, heads, inner = c["hidden_size"], c["num_attention_heads"], c["intermediate_size"]
    key_value_heads = c.get("num_key_value_heads") or key_value_heads or heads
    each = c.get("head_dim") or head_width or width // heads
    linears = (
        Linear("self_attn.q_proj", "attention", width, heads * each, qkv_bias),
        Linear("self_attn.k_proj", "attention", width, key_value_heads * each, qkv_bias),
        Linear("self_attn.v_proj", "attention", width, key_value_heads * each, qkv_bias),
        Linear("self_attn.o_proj", "attention", heads * each, width, output_bias),
        Linear("mlp.gate_proj", "mlp", width, inner, mlp_bias),
        Linear("mlp.up_proj", "mlp", width, inner, mlp_bias),
        Linear("mlp.down_proj", "mlp", inner, width, mlp_bias),
    )
    norms = {"input_layernorm.weight": width, "post_attention_layernorm.weight": width}
    return ModelShape(
        model_type=c["model_type"],
        layers=c["num_hidden_layers"],
        width=width,
        heads=heads,
        vocabulary=c["vocab_size"],
        positions=c["max_position_embeddings"],
        tied=bool(c.get("tie_word_embeddings", False)),
        linears=linears,
        block_norms=norms | ({"self_attn.q_norm.weight": each, "self_attn.k_norm.weight": each} if head_norms else {}),
        outer_norms={"model.norm.weight": width},
    )


def _llama(c: Mapping[str, Any]) -> ModelShape:
    bias = bool(c.get("attention_bias", False))
    return _llama_like(c, qkv_bias=bias, output_bias=bias, mlp_bias=bool(c.get("mlp_bias", False)))


def _mistral(c: Mapping[str, Any]) -> ModelShape:
    return _llama_like(c, key_value_heads=8)


def _qwen2(c: Mapping[str, Any]) -> ModelShape:
    return _llama_like(c, key_value_heads=32, qkv_bias=True)


def _qwen3(c: Mapping[str, Any]) -> ModelShape:
    bias = bool(c.get("attention_bias", False))
    return _llama_like(c, key_value_heads=32, head_width=128, qkv_bias=bias, output_bias=bias, head_norms=True)


def _gpt2(c: Mapping[str, Any]) -> ModelShape:
    width = c["n_embd"]
    inner = c.get("n_inner") or 4 * width
    linears = (
        Linear("attn.c_attn", "attention", width, 3 * width, True),
        Linear("attn.c_proj", "attention", width, width, True),
        Linear("mlp.c_fc", "mlp", width, inner, True),
        Linear("mlp.c_proj", "mlp", inner, width, True),
    )
    return ModelShape(
        model_type="gpt2",
        layers=c["n_layer"],
        width=width,
        heads=c["n_head"],
        vocabulary=c["vocab_size"],
        positions=c["n_positions"],
        tied=bool(c.get("tie_word_embeddings", True)),
        linears=linears,
        block_norms=_norm("ln_1", width) | _norm("ln_2", width),
        outer_norms=_norm("transformer.ln_f", width),
        embedding="transformer.wte",
        blocks="transformer.h",
        learned_positions=c["n_positions"],
    )


def _bloom(c: Mapping[str, Any]) -> ModelShape:
    # The first BLOOM configs on the hub call the width n_embed.
    width = c["hidden_size"] if "hidden_size" in c else c["n_embed"]
    linears = (
        Linear("self_attention.query_key_value", "attention", width, 3 * width, True),
        Linear("self_attention.dense", "attention", width, width, True),
        Linear("mlp.dense_h_to_4h", "mlp", width, 4 * width, True),
        Linear("mlp.dense_4h_to_h", "mlp", 4 * width, width, True),
    )
    return ModelShape(
        model_type="bloom",
        layers=c["n_layer"] if "n_layer" in c else c["num_hidden_layers"],
        width=width,
        heads=c["n_head"] if "n_head" in c else c["num_attention_heads"],
        vocabulary=c["vocab_size"],
        positions=None,
        tied=bool(c.get("tie_word_embeddings", True)),
        linears=linears,
        block_norms=_norm("input_layernorm", width) | _norm("post_attention_layernorm", width),
        outer_norms=_norm("transformer.word_embeddings_layernorm", width) | _norm("transformer.ln_f", width),
        embedding="transformer.word_embeddings",
        blocks="transformer.h",
    )


KNOWN: dict[str, Callable[[Mapping[str, Any]], ModelShape]] = {
    "llama": _llama,
    "mistral": _mistral,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "gpt2": _gpt2,
    "bloom": _bloom,
}
