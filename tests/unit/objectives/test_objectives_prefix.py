"""Prefix language modelling: who sees whom, what is learned, and that packed documents are learned as if each stood alone."""

import json
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch.nn.functional import cross_entropy
from transformers import BloomConfig, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel, Qwen3NextConfig

from zhlm.config.objective import PrefixConfig
from zhlm.errors import BaseModelError
from zhlm.model.kind import check_fits
from zhlm.objectives.batch import IGNORED, logits_of, sum_nats
from zhlm.objectives.prefix import Prefix
from zhlm.records import Blocks

VOCABULARY = 64
HALF = Prefix(0.5, 0.5, 1)
"""Prefixes of half a document, which need not be drawn."""


def tiny(kind: str, attention: str = "sdpa") -> PreTrainedModel:
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
    model.set_attn_implementation(attention)
    return model.eval()


def blocks_of(*rows: list[int], padding: int = 0) -> Blocks:
    """Blocks of random documents of these lengths."""
    random = np.random.default_rng(1)
    ids = np.zeros((len(rows), max(map(sum, rows)) + padding), np.uint16)
    for own, lengths in zip(ids, rows, strict=True):
        own[: sum(lengths)] = random.integers(1, VOCABULARY, sum(lengths))
    return Blocks(ids, [np.cumsum(lengths).astype(np.uint32) for lengths in rows])


def alone(blocks: Blocks) -> list[list[int]]:
    return [part.tolist() for row, ends in zip(blocks.ids_BT, blocks.ends, strict=True) for part in np.split(row, ends)[:-1]]


def test_the_worked_example() -> None:
    batch = HALF.make_batch(Blocks(np.array([[11, 12, 13, 14, 15, 16, 0]]), [np.array([4, 6], np.uint32)]), [1])
    assert batch.inputs["input_ids"].tolist() == [[11, 12, 13, 14, 15, 16, 0]]
    assert batch.inputs["position_ids"].tolist() == [[0, 1, 2, 3, 0, 1, 0]]
    assert batch.targets_BT.tolist() == [[IGNORED, 13, 14, IGNORED, 16, IGNORED, IGNORED]]
    seen = ["1100000", "1100000", "1110000", "1111000", "0000100", "0000110", "0000001"]
    assert batch.inputs["attention_mask"].tolist() == [[[[s == "1" for s in row] for row in seen]]]
    assert batch.inputs["attention_mask"].dtype == torch.bool
    assert (batch.num_targets, batch.num_tokens) == (3, 6)


shares = st.tuples(st.floats(0, 1), st.floats(0, 1)).map(sorted)


@given(
    rows=st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=6), min_size=1, max_size=3), share=shares, key=st.integers(-9, 1 << 62)
)
def test_each_document_has_a_prefix_and_a_rest(rows: list[list[int]], share: list[float], key: int) -> None:
    blocks = blocks_of(*rows, padding=2)
    batch = Prefix(share[0], share[1], 3).make_batch(blocks, range(key, key + len(rows)))
    sees_BTT = batch.inputs["attention_mask"][:, 0].numpy()
    for b, lengths in enumerate(rows):
        start = 0
        for length in lengths:
            ids, targets = blocks.ids_BT[b, start : start + length].tolist(), batch.targets_BT[b, start : start + length].tolist()
            rest = sum(t != IGNORED for t in targets)
            prefix = length - rest
            assert targets == [IGNORED] * (prefix - 1) + ids[prefix:] + [IGNORED] and prefix >= 1
            assert rest >= 1 or length == 1
            assert 1 <= prefix <= max(1, round(share[1] * length + 0.5)) and prefix >= min(length - 1, int(share[0] * length))
            own = np.tril(np.ones((length, length), bool))
            own[:prefix, :prefix] = True
            expected = np.zeros((length, sees_BTT.shape[2]), bool)
            expected[:, start : start + length] = own
            assert np.array_equal(sees_BTT[b, start : start + length], expected)
            assert batch.inputs["position_ids"][b, start : start + length].tolist() == list(range(length))
            start += length
        assert sees_BTT[b].any(-1).all(), "nobody sees nothing"
    assert batch.num_tokens == sum(map(sum, rows))


def prefixes(objective: Prefix, draws: int, length: int = 100) -> np.ndarray:
    batch = objective.make_batch(blocks_of(*[[length, length]] * draws), range(draws))
    return length - (batch.targets_BT[:, : 2 * length].reshape(-1, length) != IGNORED).sum(1).numpy()


def test_prefixes_are_drawn_uniformly() -> None:
    drawn = prefixes(Prefix(0.2, 0.6, 1), 1000)
    assert (drawn.min(), drawn.max()) == (20, 60)
    counts, _ = np.histogram(drawn, bins=[19.5, 30.5, 40.5, 50.5, 60.5])
    # The outermost lengths are drawn half as often as the others, because shares are rounded.
    assert counts / len(drawn) == pytest.approx([10.5 / 40, 0.25, 0.25, 9.5 / 40], abs=0.03)
    assert prefixes(Prefix(0.0, 0.0, 1), 1).tolist() == [1, 1] and prefixes(Prefix(1.0, 1.0, 1), 1).tolist() == [99, 99]


def test_the_same_key_draws_the_same_prefixes_in_any_batch() -> None:
    objective, short = Prefix(0.1, 0.9, 5), blocks_of([30, 20, 9])
    first = objective.make_batch(short, [8]).targets_BT[0, :59]
    wide = Blocks(np.pad(np.vstack([short.ids_BT, short.ids_BT]), ((0, 0), (0, 90))), [np.array([140], np.uint32), *short.ends])
    assert torch.equal(objective.make_batch(wide, [1, 8]).targets_BT[1, :59], first)
    others = [objective.make_batch(short, [9]), Prefix(0.1, 0.9, 6).make_batch(short, [8])]
    assert not any(torch.equal(other.targets_BT[0, :59], first) for other in others)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_attention_is_as_drawn(kind: str, attention: str) -> None:
    """Documents of 8 and 10 tokens, with prefixes of 4 and 5."""
    model, blocks = tiny(kind, attention), blocks_of([8, 10], padding=3)

    def moved(place: int) -> list[bool]:
        changed = blocks.ids_BT.copy()
        changed[0, place] = changed[0, place] % (VOCABULARY - 1) + 1
        with torch.no_grad():
            before, after = (logits_of(model, HALF.make_batch(Blocks(ids, blocks.ends), [1])) for ids in (blocks.ids_BT, changed))
        assert bool(before.isfinite().all())
        return [bool(m) for m in (before - after).abs().amax(-1)[0] > 1e-4]

    none = [False] * 18
    assert moved(3)[:18] == [True] * 8 + none[:10], "the last of the prefix moves all of its document, backwards too, and no other"
    assert moved(5)[:18] == none[:5] + [True] * 3 + none[:10], "the rest moves nothing in front of it"
    assert moved(10)[:18] == none[:8] + [True] * 10
    assert moved(17)[:18] == [*none[:17], True]
    assert moved(19)[:18] == none, "nobody sees padding"


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_the_prefix_has_no_term_in_the_loss(kind: str) -> None:
    model, batch, kept = tiny(kind), HALF.make_batch(blocks_of([8, 2, 1]), [1]), []
    model.register_forward_hook(lambda module, inputs, output: (output.logits.retain_grad(), kept.append(output.logits))[0])
    sum_nats(model, batch).backward()
    (logits,) = kept
    is_target = logits.grad.abs().amax(-1)[0] > 0
    assert is_target.tolist() == [False] * 3 + [True] * 4 + [False] + [True, False] + [False]


def nats_alone(model: PreTrainedModel, documents: list[list[int]]) -> torch.Tensor:
    """Of each document after its first half, by hand."""
    sums = []
    for ids in documents:
        length, prefix = len(ids), max(1, round(len(ids) * 0.5))
        sees = torch.ones(length, length).tril()
        sees[:prefix, :prefix] = 1
        least = torch.finfo(model.dtype).min
        mask = torch.zeros(1, 1, length, length, dtype=model.dtype).masked_fill(sees == 0, least)
        logits = model(input_ids=torch.tensor([ids]), attention_mask=mask, use_cache=False).logits[0].float()
        sums.append(cross_entropy(logits[prefix - 1 : -1], torch.tensor(ids[prefix:]), reduction="sum"))
    return torch.stack(sums).sum()


def gradients(model: PreTrainedModel) -> torch.Tensor:
    flat = torch.cat([p.grad.flatten().float() for p in model.parameters() if p.grad is not None])
    model.zero_grad()
    return flat


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_packed_documents_are_learned_as_alone(kind: str, dtype: torch.dtype, checkpointing: bool) -> None:
    model, blocks = tiny(kind).to(dtype).train(), blocks_of([8, 2, 12], [4, 4, 10], padding=4)
    by_hand = nats_alone(model, alone(blocks))
    by_hand.backward()
    expected = gradients(model)
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    packed = sum_nats(model, HALF.make_batch(blocks, [1, 2]))
    packed.backward()
    got = gradients(model)
    tolerance = 1e-5 if dtype == torch.float32 else 0.03
    assert packed.dtype == torch.float32 and float(packed.detach()) == pytest.approx(float(by_hand.detach()), rel=tolerance)
    assert float((got - expected).norm()) <= (1e-5 if dtype == torch.float32 else 0.1) * float(expected.norm())


def test_a_block_of_single_tokens_teaches_nothing() -> None:
    batch = HALF.make_batch(blocks_of([1, 1, 1]), [1])
    assert batch.num_targets == 0 and float(sum_nats(tiny("llama"), batch).detach()) == 0.0


@pytest.mark.parametrize("wrong", [{"min_share": -0.1}, {"max_share": 1.1}, {"min_share": 0.8, "max_share": 0.3}])
def test_shares_that_make_no_sense_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        PrefixConfig(**wrong)


@pytest.mark.parametrize(("config", "why"), [(BloomConfig(), "through ALiBi"), (Qwen3NextConfig(), "has layers of linear_attention")])
def test_models_that_cannot_look_ahead_are_refused_in_one_line(config: Any, why: str) -> None:
    with pytest.raises(BaseModelError, match=rf"^base: some/model is a .* model, which .*{why}.*; set objective: causal, or") as caught:
        check_fits(PrefixConfig(), json.loads(config.to_json_string(use_diff=False)), "some/model")
    assert "\n" not in str(caught.value)
    for fits in (LlamaConfig(), GPT2Config()):
        check_fits(PrefixConfig(), fits.to_dict(), "some/model")
