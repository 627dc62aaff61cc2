"""What all objectives share: randomness by keys, and batches on their way through wrapped models."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from conftest import VOCABULARY
from zhlm.objectives.batch import IGNORED, Batch, logits_of, random_of, sum_nats
from zhlm.objectives.causal import Causal
from zhlm.records import Blocks

BLOCKS = Blocks(np.arange(1, 13).reshape(2, 6), [np.array([4, 6], np.uint32), np.array([5], np.uint32)])


def test_randomness_is_a_function_of_seed_and_key() -> None:
    draws = {(seed, key): random_of(seed, key).random() for seed in (0, 7, -3, 1 << 40) for key in (0, 1, -1, -2, 1 << 62)}
    assert draws == {place: random_of(*place).random() for place in reversed(draws)}
    # Seeds count modulo 2**32, as everywhere: 0 and 1 << 40 are one.
    assert len({*draws.values()}) == 15
    assert draws[7, 1] == np.random.default_rng(np.random.SeedSequence([7, 1])).random(), "which no version may change"


def test_a_batch_moves_as_a_whole() -> None:
    batch = Causal().make_batch(BLOCKS, [0, 1])
    moved = batch.to(torch.device("meta"))
    assert {t.device.type for t in (*moved.inputs.values(), moved.targets_BT, moved.fills_B)} == {"meta"}
    assert moved.inputs.keys() == batch.inputs.keys() and batch.targets_BT.device.type == "cpu"


class Model(torch.nn.Module):
    """Notes what it was called with."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.dtype, self.seen = torch.nn.Parameter(torch.zeros(1)), torch.float32, dict[str, Any]()

    def _answer(self, input_ids: torch.Tensor, **seen: Any) -> Any:
        self.seen = seen
        return SimpleNamespace(logits=self.weight.expand(*input_ids.shape, VOCABULARY))


class Named(Model):
    def forward(self, input_ids: Any, position_ids: Any, use_cache: Any = None) -> Any:
        return self._answer(input_ids, position_ids=position_ids, use_cache=use_cache)


class Handing(Model):
    def forward(self, input_ids: Any, **rest: Any) -> Any:
        return self._answer(input_ids, **rest)


class Old(Model):
    def forward(self, input_ids: Any, position_ids: Any) -> Any:
        return self._answer(input_ids, position_ids=position_ids)


class Adapter(torch.nn.Module):
    """As PEFT and DeepSpeed wrap: takes anything, hands it on."""

    def __init__(self, inner: torch.nn.Module, *, engine: bool) -> None:
        super().__init__()
        self.inner = inner
        if engine:
            self.module = inner
        else:
            self.get_base_model = lambda: inner

    def forward(self, *args: Any, **inputs: Any) -> Any:
        return self.inner(*args, **inputs)


@pytest.mark.parametrize("wraps", [0, 1, 2])
@pytest.mark.parametrize(("kind", "takes"), [(Named, True), (Handing, True), (Old, False)])
def test_no_cache_is_asked_for_where_a_class_has_one(kind: type[Model], takes: bool, wraps: int) -> None:
    """With a cache, transformers would not tell documents apart by their positions."""
    model = kind()
    wrapped: torch.nn.Module = model
    for level in range(wraps):
        wrapped = Adapter(wrapped, engine=level == 1)
    batch = Causal().make_batch(BLOCKS, [0, 1])
    nats = sum_nats(wrapped, batch)
    assert float(nats.detach()) == pytest.approx(batch.num_targets * np.log(VOCABULARY))
    assert (model.seen.get("use_cache", "not asked") is False) is takes
    assert torch.equal(model.seen["position_ids"], batch.inputs["position_ids"])


def test_masks_reach_the_model_as_numbers_of_its_type() -> None:
    model = Handing()
    model.dtype = torch.bfloat16
    sees_B1TT = torch.tensor([[True, False], [True, True]])[None, None]
    ids_BT = torch.tensor([[3, 4]])
    batch = Batch({"input_ids": ids_BT, "attention_mask": sees_B1TT}, torch.full((1, 2), IGNORED), torch.tensor([2]))
    assert logits_of(model, batch).shape == (1, 2, VOCABULARY)
    mask = model.seen["attention_mask"]
    assert mask.dtype == torch.bfloat16 and mask.tolist() == [[[[0.0, torch.finfo(torch.bfloat16).min], [0.0, 0.0]]]]
