"""What names and patterns of a config mean in a model: the same rules for a plan, which has only names, and for training.

An ending names every layer whose name is it or ends with it behind a dot; a pattern is a regular expression that matches a whole name.
"""

import difflib
import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence

from zhlm.config.schema import TrainConfig
from zhlm.config.trained import FreezeConfig, LoraConfig
from zhlm.errors import ConfigError

MOST_NAMES, MOST_NEAR = 8, 3
"""In a message that lists what there is, or what is near."""


def choose_linears(linears: Sequence[str], of_blocks: Sequence[str], lora: LoraConfig, model: str) -> list[str]:
    """Whole names of the linear layers that LoRA adapts, out of all linear layers and of those inside the blocks.

    Raises: ConfigError for an ending or a pattern that matches none.
    """
    setting = "train.lora.targets"
    if lora.targets == "auto":
        return list(of_blocks)
    if isinstance(lora.targets, str):
        chosen = [name for name in linears if re.fullmatch(lora.targets, name)]
        if not chosen:
            raise ConfigError(_nothing(f"{setting} is the pattern", lora.targets, "a whole name of a linear layer", linears, model))
        return chosen
    for ending in lora.targets:
        if not any(ends_with(name, ending) for name in linears):
            raise ConfigError(_nothing(f"{setting} names", ending, "a linear layer", _endings(linears), model))
    return [name for name in linears if any(ends_with(name, ending) for ending in lora.targets)]


def check_head(chosen: Iterable[str], tables: Collection[str], train: TrainConfig, *, tied: bool) -> None:
    """Refuse the head as a target where it is trained whole, or tied: merged into it, LoRA would change the input embedding too.

    Raises: ConfigError.
    """
    if (tied or train.embeddings == "all") and (head := next((name for name in chosen if name in tables), None)):
        reason = "is the input embedding too" if tied else "is trained whole, by train.embeddings: all"
        raise ConfigError(f"train: train.lora.targets names {head}, which {reason}; remove it from the targets")


def choose_modules(modules: Sequence[str], linears: Collection[str], tables: Collection[str], lora: LoraConfig, model: str) -> list[str]:
    """Whole names of the modules that are trained beside LoRA; none may hold an adapted linear layer, an embedding or the head.

    Raises: ConfigError.
    """
    setting, chosen = "train.lora.modules_to_save", []
    for ending in lora.modules_to_save:
        found = [name for name in modules if ends_with(name, ending)]
        if not found:
            raise ConfigError(_nothing(f"{setting} names", ending, "a module", _endings(modules), model))
        for others, what, remedy in (
            (tables, "an embedding or the head", "set train.embeddings: all, which trains them"),
            (linears, "a layer with LoRA", "remove it here, or name other train.lora.targets"),
        ):
            if within := [other for other in others if any(other == name or other.startswith(f"{name}.") for name in found)]:
                raise ConfigError(f"train: {setting} names {ending!r}, but {within[0]} is {what}; {remedy}")
        chosen += [name for name in found if name not in chosen]
    return chosen


def frozen_parameters(
    names: Sequence[str], blocks: Mapping[str, int], tables: Collection[str], freeze: FreezeConfig, model: str
) -> set[str]:
    """Names of the parameters that stay as they are. `blocks` has the number of blocks by the name of their list, `tables` the parameters
    of embeddings and head.

    Raises: ConfigError for more blocks than there are, a pattern that matches nothing, or when nothing is left to train.
    """
    frozen = {*tables} if freeze.embeddings else set()
    for pattern in freeze.parameters:
        found = [name for name in names if re.fullmatch(pattern, name)]
        if not found:
            raise ConfigError(_nothing("train.freeze.parameters has the pattern", pattern, "a whole name of a parameter", names, model))
        frozen |= {*found}
    for prefix, count in blocks.items():
        for setting, asked in (("first_layers", freeze.first_layers), ("last_layers", freeze.last_layers)):
            if asked > count:
                raise ConfigError(f"train: freeze.{setting} is {asked}, but {model} has {count} layers; lower it")
        kept = range(freeze.first_layers, count - freeze.last_layers)
        left_out = tuple(f"{prefix}.{i}." for i in range(count) if i not in kept)
        frozen |= {name for name in names if name.startswith(left_out)}
    if frozen >= {*names}:
        raise ConfigError(f"train: freeze leaves none of the {len(names)} parameters of {model} to train; freeze less")
    return frozen


def factors_of(names: Iterable[str], factors: Mapping[str, float], model: str) -> dict[str, float]:
    """The factor of each parameter's rate: the product of those whose pattern matches its name, in whatever order they are given.

    Raises: ConfigError for a pattern that matches none.
    """
    names = list(names)
    for pattern in factors:
        if not any(re.fullmatch(pattern, name) for name in names):
            raise ConfigError(_nothing("train.rate_factors has the pattern", pattern, "a whole name of a trained parameter", names, model))
    return {name: math.prod(factor for pattern, factor in factors.items() if re.fullmatch(pattern, name)) for name in names}


def ends_with(name: str, ending: str) -> bool:
    return name == ending or name.endswith(f".{ending}")


def _endings(names: Iterable[str]) -> list[str]:
    return sorted({name.rsplit(".", 1)[-1] for name in names} - {str(i) for i in range(1000)})


def _nothing(setting: str, given: str, expected: str, names: Iterable[str], model: str) -> str:
    """The message for a name that matches nothing: the nearest names, the same of other blocks left out, else what there is."""
    different = list(dict.fromkeys(re.sub(r"\.\d+\.", ".0.", name) for name in names))
    try:  # as a pattern, it may match a part
        near = [name for name in different if re.search(given, name)]
    except re.error:
        near = []
    # Patterns have little in common with the names that they mean, but for letters.
    near = near or difflib.get_close_matches(re.sub(r"[^\w.]|\.(?=[*+?])", "", given), different, n=MOST_NEAR, cutoff=0.4)
    listed = f"near it are {', '.join(near[:MOST_NEAR])}" if near else f"there are {', '.join(different[:MOST_NAMES])}"
    return f"train: {setting} {given!r}, expected {expected} of {model}; {listed}"
