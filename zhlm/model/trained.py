"""What a run trains, counted from the model's shape alone: the names and sizes that `model.lora` gives the real model."""

from collections.abc import Mapping

from zhlm.config.schema import TrainConfig
from zhlm.config.trained import LoraConfig
from zhlm.model.choose import check_head, choose_linears, choose_modules, factors_of, frozen_parameters
from zhlm.model.shape import Linear, ModelShape, block_linears, linears, named_parameters


def trained_sizes(shape: ModelShape, train: TrainConfig, new_rows: int) -> dict[str, int]:
    """The size of each trained parameter by its name, `new_rows` being the rows that the vocab stage adds.

    Raises: ConfigError for a name or pattern of `train` that matches nothing, as training does.
    """
    kind, every = f"a {shape.model_type} model", named_parameters(shape)
    if train.lora is None:
        left_out = frozen_parameters(list(every), shape.blocks, shape.tables, train.freeze, kind) if train.freeze else set()
        found = {name: size for name, size in every.items() if name not in left_out}
    else:
        found = _beside(shape, train, train.lora, every)
        # What is trained is a copy of the head, its bias with it, whatever the base calls that.
        tables = {f"{shape.head}.bias" if name == shape.head_bias else name: every[name] for name in shape.tables}
        if train.embeddings == "all":
            found |= tables
        elif train.embeddings == "new_rows":
            new = {"weight": ("new_rows", shape.width), "bias": ("new_bias", 1)}
            found |= {f"{table}.{new[of][0]}": new_rows * new[of][1] for table, of in (name.rsplit(".", 1) for name in tables)}
    factors_of(found, train.rate_factors, kind)
    return found


def lora_sizes(layers: Mapping[str, Linear], lora: LoraConfig) -> dict[str, int]:
    """What LoRA adds to these linear layers, by name."""
    sizes = {f"{name}.lora_A.weight": lora.r * layer.inputs for name, layer in layers.items()}
    sizes |= {f"{name}.lora_B.weight": lora.r * layer.outputs for name, layer in layers.items()}
    return sizes | ({f"{name}.lora_magnitude_vector.weight": layer.outputs for name, layer in layers.items()} if lora.dora else {})


def _beside(shape: ModelShape, train: TrainConfig, lora: LoraConfig, every: Mapping[str, int]) -> dict[str, int]:
    """What LoRA trains, and the modules that are trained whole with it."""
    kind, layers, tables = f"a {shape.model_type} model", linears(shape), (shape.embedding, shape.head)
    chosen = choose_linears(list(layers), list(block_linears(shape)), lora, kind)
    check_head(chosen, tables, train, tied=shape.tied)
    prefixes = (name.split(".")[:-1] for name in every)
    modules = list(dict.fromkeys(".".join(parts[: i + 1]) for parts in prefixes for i in range(len(parts))))
    saved = choose_modules(modules, chosen, tables, lora, kind)
    whole = {name: size for name, size in every.items() if any(name.startswith(f"{module}.") for module in saved)}
    return lora_sizes({name: layers[name] for name in chosen}, lora) | whole
