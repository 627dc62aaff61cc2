"""Names and patterns of a config against the names of a model."""

from typing import Any

import pytest

from zhlm.config.trained import FreezeConfig, LoraConfig
from zhlm.errors import ConfigError
from zhlm.model.choose import choose_linears, choose_modules, factors_of, frozen_parameters

OF_BLOCKS = [f"h.{i}.{name}" for i in range(12) for name in ("attn.c_proj", "mlp.c_fc", "mlp.c_proj")]
LINEARS = [*OF_BLOCKS, "lm_head"]
MODULES = [
    "h",
    *(f"h.{i}" for i in range(12)),
    *OF_BLOCKS,
    *(f"h.{i}.{n}" for i in range(12) for n in ("mlp", "q_norm")),
    "norm",
    "lm_head",
]
PARAMETERS = ["wte.weight", *(f"{name}.weight" for name in OF_BLOCKS), "norm.weight"]


def linears(targets: Any) -> list[str]:
    return choose_linears(LINEARS, OF_BLOCKS, LoraConfig(targets=targets), "a tiny model")


def modules(*names: str, adapted: list[str] = OF_BLOCKS) -> list[str]:
    return choose_modules(MODULES, adapted, ["wte", "lm_head"], LoraConfig(modules_to_save=list(names)), "a tiny model")


def frozen(**settings: Any) -> set[str]:
    return frozen_parameters(PARAMETERS, {"h": 12}, ["wte.weight"], FreezeConfig(**settings), "a tiny model")


def test_auto_endings_and_patterns() -> None:
    assert linears("auto") == OF_BLOCKS
    assert linears(["lm_head", "mlp.c_proj"]) == [*(f"h.{i}.mlp.c_proj" for i in range(12)), "lm_head"]
    assert linears(r"h\.1[01]\.mlp.*") == ["h.10.mlp.c_fc", "h.10.mlp.c_proj", "h.11.mlp.c_fc", "h.11.mlp.c_proj"]


@pytest.mark.parametrize(
    ("targets", "said"),
    [
        (["c_porj"], "targets names 'c_porj', expected a linear layer of a tiny model; near it are c_proj"),
        (["proj"], "targets names 'proj', expected a linear layer"),  # an ending of a name, not of a word
        (["mlp"], "targets names 'mlp', expected a linear layer of a tiny model; there are c_fc, c_proj, lm_head"),
        (
            "c_proj",
            "targets is the pattern 'c_proj', expected a whole name of a linear layer of a tiny model; near it are h.0.attn.c_proj, ",
        ),
        (r"h\.\d+\.mlp\.fc", r"near it are h.0.mlp.c_fc"),
    ],
)
def test_targets_that_match_nothing_are_refused_with_the_near_names(targets: Any, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        linears(targets)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_saved_modules_are_whole_names_ended() -> None:
    assert modules("norm") == ["norm"], "not q_norm, which PEFT would take too"
    assert modules("0.q_norm", "norm", "norm") == ["h.0.q_norm", "norm"]
    assert modules("0.mlp", adapted=["h.0.attn.c_proj"]) == ["h.0.mlp"]


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["nrom"], "modules_to_save names 'nrom', expected a module of a tiny model; near it are norm"),
        (["c_fc"], "modules_to_save names 'c_fc', but h.0.mlp.c_fc is a layer with LoRA; remove it here, or name other train.lora.targets"),
        (["mlp"], "but h.0.mlp.c_fc is a layer with LoRA"),
        (["lm_head"], "but lm_head is an embedding or the head; set train.embeddings: all"),
    ],
)
def test_modules_that_cannot_be_saved(names: list[str], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        modules(*names)
    assert said in str(caught.value)


def test_what_is_frozen() -> None:
    layer = {i: {n for n in PARAMETERS if n.startswith(f"h.{i}.")} for i in range(12)}
    assert frozen(first_layers=2) == layer[0] | layer[1]
    assert frozen(last_layers=2, embeddings=True) == layer[10] | layer[11] | {"wte.weight"}
    assert frozen(first_layers=12, last_layers=12, parameters=["norm.*"]) == {*PARAMETERS} - {"wte.weight"}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"first_layers": 13}, "freeze.first_layers is 13, but a tiny model has 12 layers; lower it"),
        (
            {"parameters": ["norm"]},
            "freeze.parameters has the pattern 'norm', expected a whole name of a parameter of a tiny model; near it",
        ),
        ({"parameters": [".*"]}, "freeze leaves none of the 38 parameters of a tiny model to train; freeze less"),
        ({"last_layers": 12, "embeddings": True, "parameters": ["norm.*"]}, "leaves none"),
    ],
)
def test_what_cannot_be_frozen(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        frozen(**settings)
    assert said in str(caught.value)


def test_factors_of_patterns_that_match_are_multiplied() -> None:
    found = factors_of(PARAMETERS, {r"h\.0\..*": 0.5, r"h\..*fc.*": 2.0}, "a tiny model")
    names = ("h.0.mlp.c_proj.weight", "h.0.mlp.c_fc.weight", "h.1.mlp.c_fc.weight", "wte.weight")
    assert [found[name] for name in names] == [0.5, 1.0, 2.0, 1.0]
    with pytest.raises(ConfigError, match=r"rate_factors has the pattern 'wte', expected a whole name .*; near it are wte\.weight"):
        factors_of(PARAMETERS, {"wte": 2.0}, "a tiny model")
