"""What a model is made of, read from its config.json alone: names and sizes of its parameters, without torch.

Exact for the model types in KNOWN: names and counts equal those of the transformers classes, PEFT's LoRA included.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from zhlm.errors import BaseModelError

Part = Literal["attention", "mlp"]


@dataclass(frozen=True)
class Linear:
    """One linear layer; `name` is its path inside the block, or whole where it is in none."""

    name: str
    part: Part
    inputs: int
    outputs: int
    bias: bool

    @property
    def parameters(self) -> int:
        return self.inputs * self.outputs + (self.outputs if self.bias else 0)


@dataclass(frozen=True)
class Stack:
    """A list of transformer blocks that are alike."""

    name: str
    """Of the list, such as model.layers."""
    layers: int
    linears: tuple[Linear, ...]
    """Of one block."""
    norms: Mapping[str, int]
    """Norm parameters of one block, by their names inside it."""


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a language model: a decoder, an encoder, or both."""

    model_type: str
    width: int
    vocabulary: int
    """Rows of the embedding."""
    positions: int | None
    """Longest sequence in tokens; None where the model has no limit of its own (ALiBi, T5)."""
    tied: bool
    """The output head is the input embedding."""
    stacks: tuple[Stack, ...]
    """One, or those of encoder and decoder."""
    outer_norms: Mapping[str, int]
    """Norm parameters outside the blocks, by their names."""
    embedding: str = "model.embed_tokens"
    """Name of the input embedding."""
    head: str = "lm_head"
    """Name of the output head."""
    head_bias: str | None = None
    """Name of the head's bias, where it has one."""
    outer_linears: tuple[Linear, ...] = ()
    """Outside the blocks, but for the head."""
    lookups: Mapping[str, int] = field(default_factory=dict)
    """Parameters of embeddings of something else than tokens: positions, segments, distances."""

    @property
    def blocks(self) -> dict[str, int]:
        """The number of blocks, by the name of their list."""
        return {stack.name: stack.layers for stack in self.stacks}

    @property
    def tables(self) -> tuple[str, ...]:
        """Parameters with a row for each token, by their names."""
        own = () if self.tied else (f"{self.head}.weight",)
        bias = () if self.head_bias is None else (self.head_bias if self.tied else f"{self.head}.bias",)
        return (f"{self.embedding}.weight", *own, *bias)


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
    """Parameters by part; a head that is tied to the embeddings counts there."""
    of_part = {
        part: sum(stack.layers * m.parameters for stack in shape.stacks for m in stack.linears if m.part == part)
        for part in ("attention", "mlp")
    }
    table = shape.vocabulary * shape.width
    biases = 0 if shape.head_bias is None else shape.vocabulary * (1 if shape.tied else 2)
    return {
        "embeddings": table,
        "positions": sum(shape.lookups.values()),
        **of_part,
        "norms": sum(stack.layers * sum(stack.norms.values()) for stack in shape.stacks) + sum(shape.outer_norms.values()),
        "head": (0 if shape.tied else table) + biases + sum(m.parameters for m in shape.outer_linears),
    }


def block_linears(shape: ModelShape) -> dict[str, Linear]:
    """The linear layers of the blocks by their whole names."""
    return {f"{stack.name}.{i}.{m.name}": m for stack in shape.stacks for i in range(stack.layers) for m in stack.linears}


def linears(shape: ModelShape) -> dict[str, Linear]:
    """All linear layers by their whole names, the head last."""
    outer = {m.name: m for m in shape.outer_linears}
    head = Linear(shape.head, "mlp", shape.width, shape.vocabulary, shape.head_bias is not None)
    return block_linears(shape) | outer | {shape.head: head}


def named_parameters(shape: ModelShape) -> dict[str, int]:
    """The size of every parameter by its whole name, in no order; what is tied is none of its own."""
    found = {f"{shape.embedding}.weight": shape.vocabulary * shape.width, **shape.outer_norms, **shape.lookups}
    for stack in shape.stacks:
        for i in range(stack.layers):
            found |= {f"{stack.name}.{i}.{name}": size for name, size in stack.norms.items()}
    for name, linear in linears(shape).items():
        if name != shape.head or not shape.tied:
            found |= {f"{name}.weight": linear.inputs * linear.outputs} | ({f"{name}.bias": linear.outputs} if linear.bias else {})
    return found | ({shape.head_bias: shape.vocabulary} if shape.head_bias else {})


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
    norms |= {"self_attn.q_norm.weight": each, "self_attn.k_norm.weight": each} if head_norms else {}
    return ModelShape(
        model_type=c["model_type"],
        width=width,
        vocabulary=c["vocab_size"],
        positions=c["max_position_embeddings"],
        tied=bool(c.get("tie_word_embeddings", False)),
        stacks=(Stack("model.layers", c["num_hidden_layers"], linears, norms),),
        outer_norms={"model.norm.weight": width},
    )


def _llama(c: Mapping[str, Any]) -> ModelShape:
    bias = bool(c.get("attention_bias", False))
    return _llama_like(c, qkv_bias=bias, output_bias=bias, mlp_bias=bool(c.get("mlp_bias", False)))


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
        width=width,
        vocabulary=c["vocab_size"],
        positions=c["n_positions"],
        tied=bool(c.get("tie_word_embeddings", True)),
        stacks=(Stack("transformer.h", c["n_layer"], linears, _norm("ln_1", width) | _norm("ln_2", width)),),
        outer_norms=_norm("transformer.ln_f", width),
        embedding="transformer.wte",
        lookups={"transformer.wpe.weight": c["n_positions"] * width},
    )


def _bloom(c: Mapping[str, Any]) -> ModelShape:
    # The first BLOOM configs on the hub call the width n_embed.
    width = c["hidden_size"] if "hidden_size" in c else c["n_embed"]
    layers = c["n_layer"] if "n_layer" in c else c["num_hidden_layers"]
    linears = (
        Linear("self_attention.query_key_value", "attention", width, 3 * width, True),
        Linear("self_attention.dense", "attention", width, width, True),
        Linear("mlp.dense_h_to_4h", "mlp", width, 4 * width, True),
        Linear("mlp.dense_4h_to_h", "mlp", 4 * width, width, True),
    )
    return ModelShape(
        model_type="bloom",
        width=width,
        vocabulary=c["vocab_size"],
        positions=None,
        tied=bool(c.get("tie_word_embeddings", True)),
        stacks=(Stack("transformer.h", layers, linears, _norm("input_layernorm", width) | _norm("post_attention_layernorm", width)),),
        outer_norms=_norm("transformer.word_embeddings_layernorm", width) | _norm("transformer.ln_f", width),
        embedding="transformer.word_embeddings",
    )


def _bert(c: Mapping[str, Any]) -> ModelShape:
    """BertForMaskedLM and RobertaForMaskedLM: no pooler, and a head with a layer of its own and a bias beside the tied embedding."""
    width, inner, kind = c["hidden_size"], c["intermediate_size"], c["model_type"]
    embeddings, padding = f"{kind}.embeddings", c.get("pad_token_id")
    head, layer, norm = (
        ("cls.predictions", "transform.dense", "transform.LayerNorm") if kind == "bert" else ("lm_head", "dense", "layer_norm")
    )
    linears = (
        *(
            Linear(f"attention.{name}", "attention", width, width, True)
            for name in ("self.query", "self.key", "self.value", "output.dense")
        ),
        Linear("intermediate.dense", "mlp", width, inner, True),
        Linear("output.dense", "mlp", inner, width, True),
    )
    norms = _norm("attention.output.LayerNorm", width) | _norm("output.LayerNorm", width)
    positions = c["max_position_embeddings"]
    return ModelShape(
        model_type=kind,
        width=width,
        vocabulary=c["vocab_size"],
        # RoBERTa counts them from behind the id of padding.
        positions=positions if kind == "bert" else positions - (1 if padding is None else padding) - 1,
        tied=bool(c.get("tie_word_embeddings", True)),
        stacks=(Stack(f"{kind}.encoder.layer", c["num_hidden_layers"], linears, norms),),
        outer_norms=_norm(f"{embeddings}.LayerNorm", width) | _norm(f"{head}.{norm}", width),
        embedding=f"{embeddings}.word_embeddings",
        head=f"{head}.decoder",
        head_bias=f"{head}.bias",
        outer_linears=(Linear(f"{head}.{layer}", "mlp", width, width, True),),
        lookups={
            f"{embeddings}.position_embeddings.weight": positions * width,
            f"{embeddings}.token_type_embeddings.weight": c.get("type_vocab_size", 2) * width,
        },
    )


def _t5(c: Mapping[str, Any]) -> ModelShape:
    width, inner, heads = c["d_model"], c["d_ff"], c["num_heads"]
    gated = c.get("feed_forward_proj", "gated-gelu" if c["model_type"] == "mt5" else "relu").startswith("gated")

    def attention(name: str) -> list[Linear]:
        across = heads * c["d_kv"]
        return [
            *(Linear(f"{name}.{each}", "attention", width, across, False) for each in "qkv"),
            Linear(f"{name}.o", "attention", across, width, False),
        ]

    def feed_forward(name: str) -> list[Linear]:
        into = (Linear(f"{name}.{each}", "mlp", width, inner, False) for each in (("wi_0", "wi_1") if gated else ("wi",)))
        return [*into, Linear(f"{name}.wo", "mlp", inner, width, False)]

    own, across = attention("layer.0.SelfAttention"), attention("layer.1.EncDecAttention")
    reads, writes = (*own, *feed_forward("layer.1.DenseReluDense")), (*own, *across, *feed_forward("layer.2.DenseReluDense"))
    decoder_layers = c["num_layers"] if c.get("num_decoder_layers") is None else c["num_decoder_layers"]
    sides = {"encoder": (c["num_layers"], reads, 2), "decoder": (decoder_layers, writes, 3)}
    return ModelShape(
        model_type=c["model_type"],
        width=width,
        vocabulary=c["vocab_size"],
        positions=None,
        # transformers takes a false for true and then finds other weights for the head, as T5 1.1 and mT5 have them.
        tied=c.get("tie_word_embeddings") is not False,
        stacks=tuple(
            Stack(f"{side}.block", layers, linears, {f"layer.{i}.layer_norm.weight": width for i in range(norms)})
            for side, (layers, linears, norms) in sides.items()
        ),
        outer_norms={f"{side}.final_layer_norm.weight": width for side in sides},
        embedding="shared",
        lookups={
            f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight": c.get("relative_attention_num_buckets", 32) * heads
            for side in sides
        },
    )


KNOWN: dict[str, Callable[[Mapping[str, Any]], ModelShape]] = {
    "llama": _llama,
    "mistral": lambda c: _llama_like(c, key_value_heads=8),
    "qwen2": lambda c: _llama_like(c, key_value_heads=32, qkv_bias=True),
    "qwen3": _qwen3,
    "gpt2": _gpt2,
    "bloom": _bloom,
    "bert": _bert,
    "roberta": _bert,
    "t5": _t5,
    "mt5": _t5,
}
