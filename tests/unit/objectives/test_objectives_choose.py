"""From a config to its objective, for real classes and tokenizers."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from conftest import run_data
from tiny_bases import bert_folder, bloom_folder, gpt2_folder, t5_folder
from zhlm.config.schema import RunConfig
from zhlm.errors import BaseModelError, ConfigError
from zhlm.model.load import load_model_config
from zhlm.objectives.batch import BatchMaker
from zhlm.objectives.causal import Causal
from zhlm.objectives.choose import objective_of
from zhlm.objectives.masked import Masked
from zhlm.objectives.prefix import Prefix
from zhlm.objectives.span_corruption import SpanCorruption
from zhlm.records import Blocks
from zhlm.tokenizer.load import load_tokenizer

MAKERS = {"gpt2": gpt2_folder, "bloom": bloom_folder, "bert": bert_folder, "t5": t5_folder}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("bases")
    return {name: str(make(folder / name)) for name, make in MAKERS.items()}


def made(base: str, objective: Any, *, model_config: Any = None, **pack: Any) -> BatchMaker:
    data = run_data(Path("/nowhere")) | {"base": {"model": base}, "objective": objective}
    config = RunConfig.model_validate_json(json.dumps(data | {"pack": {"block_tokens": 32, **pack}}))
    return objective_of(config, load_tokenizer(base), model_config or load_model_config(base))


@pytest.mark.parametrize(
    ("base", "objective", "kind"),
    [
        ("gpt2", "causal", Causal),
        ("bloom", "causal", Causal),
        ("gpt2", {"name": "prefix", "min_share": 0.3}, Prefix),
        ("bert", {"name": "masked", "mask_share": 0.3}, Masked),
        ("t5", "span_corruption", SpanCorruption),
    ],
)
def test_each_objective_makes_batches_for_its_classes(base: str, objective: Any, kind: type, bases: dict[str, str]) -> None:
    own = made(bases[base], objective)
    assert type(own) is kind
    ids = np.arange(64).reshape(2, 32) + 20
    blocks = Blocks(ids, [np.array([12, 32], np.uint32), np.array([30], np.uint32)])
    batch, again, other = (own.make_batch(blocks, keys) for keys in ([5, 9], [5, 9], [6, -1]))
    assert batch.fills_B.tolist() == [32, 30] and 0 < batch.num_targets < 62 and batch.num_tokens == 62
    assert all(torch.equal(batch.inputs[name], again.inputs[name]) for name in batch.inputs), "by its keys alone"
    same = all(torch.equal(batch.inputs[name], other.inputs[name]) for name in batch.inputs)
    assert same is (kind is Causal), "and another one by other keys, where there is something to draw"


@pytest.mark.parametrize(
    ("base", "packing", "left"), [("bloom", "none", True), ("bloom", "best_fit", False), ("gpt2", "none", False), ("gpt2", "concat", False)]
)
def test_rows_of_their_own_are_padded_where_the_tokenizer_says(base: str, packing: str, left: bool, bases: dict[str, str]) -> None:
    own = made(bases[base], "causal", packing=packing)
    assert isinstance(own, Causal) and own.left_padding is left


@pytest.mark.parametrize(
    ("base", "objective", "error", "said"),
    [
        ("bert", "causal", BaseModelError, "is BertForMaskedLM, which takes masked; objective is causal"),
        ("gpt2", "masked", BaseModelError, "is GPT2LMHeadModel, which takes causal or prefix; objective is masked"),
        ("bloom", "prefix", BaseModelError, "is a bloom model, which knows distances through ALiBi"),
        ("t5", {"name": "span_corruption", "mean_span": 1.0}, ConfigError, "of pack.block_tokens 1024 needs 155 sentinels"),
    ],
)
def test_what_does_not_fit_is_one_line(base: str, objective: Any, error: type[Exception], said: str, bases: dict[str, str]) -> None:
    with pytest.raises(error) as caught:
        made(bases[base], objective, block_tokens=1024)
    assert said in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("base", MAKERS)
def test_the_largest_batch_is_the_largest(base: str, bases: dict[str, str]) -> None:
    objective = {"bert": "masked", "t5": "span_corruption"}.get(base, "causal")
    own = made(bases[base], objective)
    largest, random = own.largest_batch(3, 96), np.random.default_rng(3)
    assert len(largest.fills_B) == 3 and largest.fills_B.tolist() == [96] * 3
    for shortest in (1, 2, 4, 5, 9, 40, 96):
        ends = [np.unique(np.append(random.integers(1, 97, 96 // shortest), 96)).astype(np.uint32) for _ in range(3)]
        batch = own.make_batch(Blocks(random.integers(20, 90, (3, 96)), ends), range(3))
        assert batch.targets_BT.shape[1] <= largest.targets_BT.shape[1]
        assert {n for n, t in batch.inputs.items() if t.numel() > largest.inputs[n].numel()} == set()


@pytest.mark.parametrize(
    ("base", "objective", "unpacked"), [("bert", "masked", r", or pack\.packing: none$"), ("gpt2", "prefix", r"or less$")]
)
def test_a_mask_for_all_layers_takes_no_window_from_one(base: str, objective: str, unpacked: str, bases: dict[str, str]) -> None:
    config = load_model_config(bases[base])
    config.sliding_window = 31
    with pytest.raises(
        ConfigError, match=rf"has layers that see 31 tokens.*pack\.block_tokens 32; set pack\.block_tokens to 31.*{unpacked}"
    ):
        made(bases[base], objective, model_config=config)
    made(bases[base], "masked" if base == "bert" else "causal", model_config=config, packing="none")
    config.layer_types = ["full_attention"]
    made(bases[base], objective, model_config=config)
