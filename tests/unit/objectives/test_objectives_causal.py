"""Packed documents are learned as if each stood alone."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import BloomConfig, BloomForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from zhlm.errors import BaseModelError
from zhlm.objectives.batch import IGNORED, Batch, sum_nats
from zhlm.objectives.causal import Causal
from zhlm.objectives.isolation import check_isolation
from zhlm.records import Blocks

VOCABULARY = 64


def blocks(*rows: tuple[list[int], list[int]]) -> Blocks:
    return Blocks(np.array([ids for ids, _ in rows]), [np.array(ends, np.uint32) for _, ends in rows])


def make_batch(of: Blocks, *, left_padding: bool = False) -> Batch:
    return Causal(left_padding).make_batch(of, range(len(of.ends)))


def tiny(kind: str) -> PreTrainedModel:
    torch.manual_seed(3)
    if kind == "llama":
        size = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
        model: PreTrainedModel = LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, max_position_embeddings=64, **size))
    else:
        plain = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "bos_token_id": 0, "eos_token_id": 0}
        model = GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_positions=64, n_embd=32, n_layer=2, n_head=2, **plain))
    # Freshly initialised models barely attend, so a leak would hide in rounding.
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4.0 if parameter.ndim > 1 else 1.0)
    return model.eval()


def test_the_worked_example() -> None:
    batch = make_batch(blocks(([11, 12, 13, 14, 15, 0], [3, 5])))
    assert batch.inputs["input_ids"].tolist() == [[11, 12, 13, 14, 15, 0]]
    assert batch.inputs["position_ids"].tolist() == [[0, 1, 2, 0, 1, 0]]
    assert batch.targets_BT.tolist() == [[12, 13, IGNORED, 15, IGNORED, IGNORED]]
    assert batch.fills_B.tolist() == [5]
    assert (batch.num_targets, batch.num_tokens) == (3, 5)
    assert batch.inputs["input_ids"].dtype == batch.inputs["position_ids"].dtype == batch.targets_BT.dtype == torch.int64


def test_a_full_block_and_documents_of_one_token() -> None:
    batch = make_batch(blocks(([1, 2, 3, 4], [4]), ([1, 2, 3, 4], [1, 2, 4]), ([7, 0, 0, 0], [1])))
    assert batch.targets_BT.tolist() == [[2, 3, 4, IGNORED], [IGNORED, IGNORED, 4, IGNORED], [IGNORED] * 4]
    assert batch.inputs["position_ids"].tolist() == [[0, 1, 2, 3], [0, 0, 0, 1], [0, 0, 1, 2]]
    assert batch.num_tokens == 9


def test_ids_beyond_int16_and_unsigned_storage_survive() -> None:
    for kind, largest in ((np.uint16, 65_535), (np.uint32, 200_000)):
        batch = make_batch(Blocks(np.array([[1, largest]], kind), [np.array([2], np.uint32)]))
        assert batch.targets_BT.tolist() == [[largest, IGNORED]]


lengths_of_documents = st.lists(st.integers(1, 7), min_size=1, max_size=6)


@given(lengths=st.lists(lengths_of_documents, min_size=1, max_size=4), padding=st.integers(0, 5))
def test_each_document_is_its_own(lengths: list[list[int]], padding: int) -> None:
    block_tokens = max(sum(row) for row in lengths) + padding
    ids = np.arange(len(lengths) * block_tokens).reshape(len(lengths), block_tokens) + 1
    batch = make_batch(Blocks(ids, [np.cumsum(row).astype(np.uint32) for row in lengths]))
    for b, row in enumerate(lengths):
        start = 0
        for length in row:
            document = ids[b, start : start + length].tolist()
            assert batch.targets_BT[b, start : start + length].tolist() == [*document[1:], IGNORED]
            assert batch.inputs["position_ids"][b, start : start + length].tolist() == list(range(length))
            start += length
        assert set(batch.targets_BT[b, start:].tolist()) <= {IGNORED}
        assert batch.inputs["position_ids"][b, start:].tolist() == list(range(block_tokens - start))
    assert batch.num_tokens == sum(map(sum, lengths))
    assert batch.num_targets == sum(length - 1 for row in lengths for length in row)


def test_muted_rows_teach_nothing_and_keep_the_shape() -> None:
    batch = make_batch(blocks(([1, 2, 3], [3]), ([4, 5, 6], [2]), ([7, 8, 9], [3])))
    muted = batch.mute_after(1)
    assert muted.targets_BT.tolist() == [[2, 3, IGNORED], [IGNORED] * 3, [IGNORED] * 3]
    assert (muted.num_targets, muted.num_tokens) == (2, 3)
    assert muted.inputs["input_ids"].shape == batch.inputs["input_ids"].shape
    assert (batch.num_targets, batch.num_tokens) == (5, 8), "the batch itself is unchanged"
    assert batch.mute_after(0).num_targets == 0 and batch.mute_after(3).num_targets == 5


def test_a_batch_without_targets_gives_zero_and_a_gradient() -> None:
    model = tiny("llama")
    nats = sum_nats(model, make_batch(blocks(([1, 2, 3], [3]))).mute_after(0))
    nats.backward()
    assert float(nats.detach()) == 0.0
    assert all(float(p.grad.abs().max()) == 0.0 for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize(("longest", "width"), [(1, 64), (64, 64), (65, 128), (129, 192), (200, 200)])
def test_a_batch_is_as_wide_as_its_longest_block(longest: int, width: int) -> None:
    ids = np.arange(400).reshape(2, 200)
    batch = make_batch(Blocks(ids, [np.array([longest], np.uint32), np.array([1], np.uint32)]))
    assert {t.shape for t in (batch.inputs["input_ids"], batch.inputs["position_ids"], batch.targets_BT)} == {(2, width)}
    assert batch.num_targets == longest - 1 and batch.targets_BT[0, : longest - 1].tolist() == list(range(1, longest))


def documents_and_blocks() -> tuple[list[list[int]], Blocks]:
    random = np.random.default_rng(1)
    documents = [random.integers(1, VOCABULARY, n).tolist() for n in (5, 9, 2, 1, 7, 8)]
    rows = [documents[:3], documents[3:]]
    ids = np.zeros((2, 18), np.int64)
    for row, held in zip(ids, rows, strict=True):
        flat = [t for d in held for t in d]
        row[: len(flat)] = flat
    return documents, Blocks(ids, [np.cumsum([len(d) for d in held]).astype(np.uint32) for held in rows])


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packed_documents_cost_what_they_cost_alone(kind: str, attention: str) -> None:
    model = tiny(kind)
    model.set_attn_implementation(attention)
    documents, packed = documents_and_blocks()
    with torch.no_grad():
        alone = sum(
            float(model(input_ids=torch.tensor([d]), labels=torch.tensor([d])).loss) * (len(d) - 1) for d in documents if len(d) > 1
        )
        together = float(sum_nats(model, make_batch(packed)))
        joined = float(sum_nats(model, make_batch(Blocks(packed.ids_BT, [np.array([18], np.uint32)] * 2))))
    assert together == pytest.approx(alone, abs=1e-4)
    assert abs(joined - alone) > 1.0, "without boundaries the number is another, so the test above can fail"


def test_the_loss_is_summed_in_float32() -> None:
    _, packed = documents_and_blocks()
    model = tiny("llama")
    with torch.no_grad():
        exact = float(sum_nats(model, make_batch(packed)))
        rough = sum_nats(model.to(torch.bfloat16), make_batch(packed))
    assert rough.dtype == torch.float32 and float(rough) == pytest.approx(exact, rel=0.05)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_models_with_positions_are_let_through(kind: str) -> None:
    check_isolation(tiny(kind), Causal(), "best_fit")


def test_a_model_without_positions_is_refused() -> None:
    model = BloomForCausalLM(BloomConfig(vocab_size=VOCABULARY, hidden_size=16, n_layer=1, n_head=2))
    with pytest.raises(BaseModelError, match=r"BloomForCausalLM takes no position_ids.*choose a base with positions") as caught:
        check_isolation(model, Causal(), "best_fit")
    assert "\n" not in str(caught.value)


class LooksAtEverything(LlamaForCausalLM):
    """Takes position_ids and does not use them for its mask, as a careless model of a hub would."""

    def forward(self, input_ids: torch.Tensor, position_ids: torch.Tensor, **rest: object) -> object:  # type: ignore[override]
        return super().forward(input_ids=input_ids, **rest)


def test_a_model_that_ignores_positions_is_found_out() -> None:
    leaky = LooksAtEverything(tiny("llama").config)
    leaky.load_state_dict(tiny("llama").state_dict())
    with pytest.raises(BaseModelError, match=r"changes the next one's log-probabilities by \d+\.\d+, expected 0"):
        check_isolation(leaky, Causal(), "best_fit")


def test_a_saved_and_loaded_model_stays_isolated(tmp_path: Path) -> None:
    """The mask rule of transformers depends on the attention that a config asks for."""
    tiny("llama").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert "attn_implementation" not in config
    check_isolation(LlamaForCausalLM.from_pretrained(tmp_path), Causal(), "best_fit")


def test_padding_on_the_left_moves_rows_to_the_right() -> None:
    batch = make_batch(blocks(([11, 12, 13, 0, 0], [3]), ([1, 2, 3, 4, 5], [5]), ([7, 0, 0, 0, 0], [1])), left_padding=True)
    assert batch.inputs["input_ids"].tolist() == [[0, 0, 11, 12, 13], [1, 2, 3, 4, 5], [0, 0, 0, 0, 7]]
    assert batch.inputs["position_ids"].tolist() == [[0, 1, 0, 1, 2], [0, 1, 2, 3, 4], [0, 1, 2, 3, 0]]
    assert batch.targets_BT.tolist() == [[IGNORED, IGNORED, 12, 13, IGNORED], [2, 3, 4, 5, IGNORED], [IGNORED] * 5]
    assert (batch.num_targets, batch.num_tokens) == (6, 9)
    assert batch.mute_after(1).num_targets == 2


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_padding_costs_nothing_on_either_side(kind: str, attention: str) -> None:
    model = tiny(kind)
    model.set_attn_implementation(attention)
    random = np.random.default_rng(1)
    lengths = (5, 18, 1, 7)
    ids = np.zeros((4, 18), np.int64)
    for row, length in zip(ids, lengths, strict=True):
        row[:length] = random.integers(1, VOCABULARY, length)
    rows = Blocks(ids, [np.array([n], np.uint32) for n in lengths])
    with torch.no_grad():
        alone = sum(float(sum_nats(model, make_batch(Blocks(ids[b : b + 1, :n], rows.ends[b : b + 1])))) for b, n in enumerate(lengths))
        right, left = (float(sum_nats(model, make_batch(rows, left_padding=on_left))) for on_left in (False, True))
    assert right == pytest.approx(alone, abs=1e-4) and left == pytest.approx(alone, abs=1e-4)
