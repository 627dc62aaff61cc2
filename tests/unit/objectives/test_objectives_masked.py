"""Masked language modelling: what is hidden, how often, and that packed documents are learned as if each stood alone."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from transformers import (
    BertConfig,
    BertForMaskedLM,
    CamembertConfig,
    DataCollatorForLanguageModeling,
    DebertaV2Config,
    DebertaV2ForMaskedLM,
    ElectraConfig,
    MPNetConfig,
    PreTrainedModel,
    RobertaConfig,
    RobertaForMaskedLM,
    RoFormerConfig,
    RoFormerForMaskedLM,
    XLMRobertaConfig,
)

from tiny_bases import bert_tokenizer, gpt2_tokenizer
from zhlm.config.objective import MaskedConfig
from zhlm.errors import BaseModelError
from zhlm.model.load import first_position
from zhlm.objectives.batch import IGNORED, Batch, logits_of, sum_nats
from zhlm.objectives.isolation import check_isolation
from zhlm.objectives.masked import Masked
from zhlm.records import Blocks

TOKENIZER = bert_tokenizer()
SPECIAL = set(TOKENIZER.all_special_ids)
CLS, SEP, MASK = TOKENIZER.cls_token_id, TOKENIZER.sep_token_id, TOKENIZER.mask_token_id
ORDINARY = [i for i in range(len(TOKENIZER)) if i not in SPECIAL]
SIZE = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}


def config_of(kind: str) -> Any:
    size = {"vocab_size": len(TOKENIZER), "pad_token_id": TOKENIZER.pad_token_id, **SIZE}
    if kind == "bert":
        return BertConfig(max_position_embeddings=192, **size)
    return RobertaConfig(max_position_embeddings=193, type_vocab_size=1, **size)  # one row is of padding


def tiny(kind: str, attention: str = "sdpa") -> PreTrainedModel:
    torch.manual_seed(3)
    model: PreTrainedModel = (BertForMaskedLM if kind == "bert" else RobertaForMaskedLM)(config_of(kind))
    # Freshly initialised models barely attend, so a leak would hide in rounding.
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.mul_(8.0 if parameter.ndim > 1 and "embeddings" not in name else 1.0)
    model.set_attn_implementation(attention)
    return model.eval()


def masked(kind: str = "bert", seed: int = 7, **settings: Any) -> Masked:
    return Masked.of(MaskedConfig(**settings), TOKENIZER, config_of(kind), seed)


def blocks_of(*rows: list[list[int]], width: int | None = None) -> Blocks:
    """Each row a list of documents."""
    flat = [[token for document in row for token in document] for row in rows]
    ids = np.zeros((len(rows), width or max(map(len, flat))), np.uint16)
    for own, tokens in zip(ids, flat, strict=True):
        own[: len(tokens)] = tokens
    return Blocks(ids, [np.cumsum([len(d) for d in row]).astype(np.uint32) for row in rows])


def documents(*lengths: int, seed: int = 1) -> list[list[int]]:
    random = np.random.default_rng(seed)
    return [[CLS, *random.choice(ORDINARY, n).tolist(), SEP] for n in lengths]


def equal(one: Batch, other: Batch, row: int, of_other: int, width: int) -> bool:
    return torch.equal(one.targets_BT[row, :width], other.targets_BT[of_other, :width]) and torch.equal(
        one.inputs["input_ids"][row, :width], other.inputs["input_ids"][of_other, :width]
    )


def test_the_inputs_of_a_block() -> None:
    batch = masked(mask_share=0.5).make_batch(blocks_of(documents(1, 2), width=9), [3])
    assert batch.inputs["position_ids"].tolist() == [[0, 1, 2, 0, 1, 2, 3, 0, 1]]
    same = [[0, 0, 0, 1, 1, 1, 1, 2, 2]]
    assert batch.inputs["attention_mask"].tolist() == [[[[a == b for b in row] for a in row] for row in same]]
    assert set(batch.inputs) == {"input_ids", "attention_mask", "position_ids"}
    assert batch.inputs["attention_mask"].dtype == torch.bool
    assert batch.inputs["input_ids"].dtype == batch.targets_BT.dtype == torch.int64
    assert batch.num_tokens == 7 and 1 <= batch.num_targets <= 3
    positions = masked("roberta").make_batch(blocks_of(documents(1, 2), width=9), [3]).inputs["position_ids"]
    assert positions.tolist() == [[1, 2, 3, 1, 2, 3, 4, 1, 2]]


lengths_of_documents = st.lists(st.integers(0, 6), min_size=1, max_size=5)


@given(rows=st.lists(lengths_of_documents, min_size=1, max_size=3), key=st.integers(-5, 1 << 62), share=st.sampled_from([0.15, 0.5, 0.9]))
def test_only_ordinary_tokens_are_hidden_and_hidden_ones_are_targets(rows: list[list[int]], key: int, share: float) -> None:
    blocks = blocks_of(*(documents(*row) for row in rows))
    batch = masked(mask_share=share).make_batch(blocks, range(key, key + len(rows)))
    ids, seen, targets = torch.from_numpy(blocks.ids_BT.astype(np.int64)), batch.inputs["input_ids"], batch.targets_BT
    is_target = targets != IGNORED
    assert torch.equal(seen[~is_target], ids[~is_target])
    assert torch.equal(targets[is_target], ids[is_target])
    assert not SPECIAL & set(targets[is_target].tolist())
    assert SPECIAL & set(seen[is_target].tolist()) <= {MASK}
    for row, ends, own in zip(rows, blocks.ends, is_target, strict=True):
        assert not own[int(ends[-1]) :].any(), "padding is no target"
        assert own.any() == any(row), "a block with ordinary tokens has a target"
    assert batch.num_tokens == sum(int(ends[-1]) for ends in blocks.ends)


def test_the_same_key_draws_the_same_mask_in_any_batch() -> None:
    objective = masked()
    short, long = documents(40, 30), documents(150, seed=2)
    alone = objective.make_batch(blocks_of(short, width=192), [11])
    beside = objective.make_batch(blocks_of(long, short, width=192), [4, 11])
    assert alone.targets_BT.shape != beside.targets_BT[:1].shape
    assert equal(alone, beside, 0, 1, 74)
    assert equal(beside, masked().make_batch(blocks_of(long, short, width=192), [4, 11]), 0, 0, 192)


def test_another_pass_or_seed_draws_another_mask() -> None:
    blocks = blocks_of(documents(150))
    first = masked().make_batch(blocks, [1])
    others = [masked().make_batch(blocks, [2]), masked().make_batch(blocks, [-1]), masked(seed=8).make_batch(blocks, [1])]
    assert not any(equal(first, other, 0, 0, 152) for other in others)


def shares_of(ids: torch.Tensor, seen: torch.Tensor, is_target: torch.Tensor) -> list[float]:
    """Targets of the ordinary tokens; of the targets, those seen as the mask token, as another, as they are."""
    num = float(is_target.sum())
    ordinary = ~torch.isin(ids, torch.tensor(sorted(SPECIAL)))
    is_mask, is_kept = seen == MASK, seen == ids
    return [num / float(ordinary.sum()), *(float((is_target & kind).sum()) / num for kind in (is_mask, ~is_mask & ~is_kept, is_kept))]


@pytest.mark.parametrize("settings", [(0.15, 0.8, 0.1), (0.3, 0.5, 0.5), (0.4, 0.0, 0.6)])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_shares_are_those_of_transformers(settings: tuple[float, float, float]) -> None:
    share, as_mask, as_random = settings
    rows = [documents(200, 308, seed=s) for s in range(120)]
    batch = masked(mask_share=share, mask_token_share=as_mask, random_share=as_random).make_batch(blocks_of(*rows), range(120))
    ids = torch.tensor([[t for d in row for t in d] for row in rows])
    ours = shares_of(ids, batch.inputs["input_ids"], batch.targets_BT != IGNORED)
    collator = DataCollatorForLanguageModeling(
        TOKENIZER, mlm_probability=share, mask_replace_prob=as_mask, random_replace_prob=as_random, seed=5
    )
    seen, labels = collator.torch_mask_tokens(ids.clone())
    theirs = shares_of(ids, seen, labels != -100)
    # 61,000 tokens: three standard deviations of the first share are 0.005, of the others 0.013 at 15%.
    assert ours == pytest.approx(theirs, abs=0.015)
    assert ours == pytest.approx([share, as_mask, as_random, 1 - as_mask - as_random], abs=0.012)


def test_random_tokens_are_drawn_from_all_ordinary_ones() -> None:
    objective = masked(mask_share=0.9, mask_token_share=0.0, random_share=1.0)
    batch = objective.make_batch(blocks_of(*([documents(510)[0]],) * 40), range(40))
    assert set(batch.inputs["input_ids"][batch.targets_BT != IGNORED].tolist()) == set(ORDINARY)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_packed_documents_are_read_as_alone(kind: str, attention: str) -> None:
    model, rows = tiny(kind, attention), [documents(5, 9, 1), documents(12, 3, 4, 7, seed=2)]
    batch = masked(kind, mask_share=0.4).make_batch(blocks_of(*rows, width=128), [1, 2])
    with torch.no_grad():
        packed = logits_of(model, batch)
        for b, row in enumerate(rows):
            start = 0
            for length in map(len, row):
                alone = model(input_ids=batch.inputs["input_ids"][b : b + 1, start : start + length]).logits[0]
                assert torch.allclose(packed[b, start : start + length], alone, atol=1e-5, rtol=0)
                start += length
        without_mask = model(input_ids=batch.inputs["input_ids"], position_ids=batch.inputs["position_ids"]).logits
    assert float((without_mask - packed)[0, :7].abs().max()) > 0.1, "a leak is large, so the test above can fail"
    assert bool(packed.isfinite().all()), "padding sees itself"


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_a_document_in_a_block_of_its_own_needs_a_plain_mask_only(kind: str) -> None:
    model, blocks = tiny(kind), blocks_of([documents(30)[0]], [documents(9, seed=2)[0]], width=64)
    objective = masked(kind, mask_share=0.4)
    packed, plain = objective.make_batch(blocks, [1, 2]), replace(objective, packed=False).make_batch(blocks, [1, 2])
    assert plain.inputs["attention_mask"].sum(1).tolist() == [32, 11] and set(plain.inputs) == {"input_ids", "attention_mask"}
    assert torch.equal(packed.targets_BT, plain.targets_BT)
    with torch.no_grad():
        one, other = logits_of(model, packed), logits_of(model, plain)
    for b, fill in enumerate([32, 11]):
        assert torch.allclose(one[b, :fill], other[b, :fill], atol=1e-5, rtol=0)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_a_leak_is_none_in_bfloat16_either(kind: str, attention: str) -> None:
    """What stands in the first document does not move the second one by a bit."""
    model, (first, second) = tiny(kind, attention).to(torch.bfloat16), documents(9, 20)
    other = [first[0], *reversed(first[1:-1]), first[-1]]
    batch = masked(kind).make_batch(blocks_of([first, second], [other, second], width=64), [1, 1])
    batch.inputs["input_ids"][1, 11:] = batch.inputs["input_ids"][0, 11:]
    with torch.no_grad():
        packed = logits_of(model, batch)
    assert torch.equal(packed[0, 11:33], packed[1, 11:33]) and not torch.equal(packed[0, :11], packed[1, :11])
    assert bool(packed.isfinite().all())


def test_a_block_with_nothing_to_mask_teaches_nothing() -> None:
    batch = masked().make_batch(blocks_of([[CLS, SEP], [CLS, TOKENIZER.unk_token_id, SEP]], width=64), [1])
    model = tiny("bert").train()
    nats = sum_nats(model, batch)
    nats.backward()
    assert batch.num_targets == 0 and float(nats.detach()) == 0.0
    assert all(float(p.grad.abs().max()) == 0.0 for p in model.parameters() if p.grad is not None)


def test_the_loss_is_that_of_the_targets_alone() -> None:
    batch = masked().make_batch(blocks_of(documents(30, 20)), [1])
    model = tiny("bert")
    with torch.no_grad():
        log_probabilities = logits_of(model, batch)[0].log_softmax(-1)
        expected = -sum(float(log_probabilities[i, t]) for i, t in enumerate(batch.targets_BT[0].tolist()) if t != IGNORED)
        assert float(sum_nats(model, batch)) == pytest.approx(expected, rel=1e-5)


def test_positions_start_where_the_class_starts_them() -> None:
    assert first_position(config_of("bert")) == first_position(ElectraConfig(pad_token_id=0)) == 0
    for kind in (RobertaConfig, XLMRobertaConfig, CamembertConfig, MPNetConfig):
        assert first_position(kind(pad_token_id=1)) == 2


def test_a_tokenizer_without_mask_token_is_refused_in_one_line() -> None:
    with pytest.raises(BaseModelError, match=r"^objective: the tokenizer .* has no mask token, which masked needs; add one with") as caught:
        Masked.of(MaskedConfig(), gpt2_tokenizer(), config_of("bert"), 1)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("wrong", [{"mask_share": 1.5}, {"mask_share": 0.0}, {"random_share": -0.1}, {"mask_token_share": 0.95}])
def test_shares_that_make_no_sense_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        MaskedConfig(**wrong)


def test_ids_of_padded_embedding_rows_are_ordinary_to_nobody() -> None:
    config = config_of("bert")
    config.vocab_size = len(TOKENIZER) + 40
    objective = Masked.of(MaskedConfig(mask_share=0.9), TOKENIZER, config, 1)
    batch = objective.make_batch(blocks_of([[len(TOKENIZER) + 39, *ORDINARY[:20]]]), [1])
    assert batch.targets_BT[0, 0] == IGNORED and int(batch.inputs["input_ids"].max()) <= len(TOKENIZER) + 39


@pytest.mark.parametrize(
    ("kind", "config", "why"),
    [
        (RoFormerForMaskedLM, RoFormerConfig, r"takes no position_ids.*"),
        (DebertaV2ForMaskedLM, DebertaV2Config, r"cannot read what keeps documents apart .*"),
    ],
)
def test_a_class_that_cannot_be_packed_is_told_how_it_can_be_trained(kind: Any, config: Any, why: str) -> None:
    torch.manual_seed(3)
    model = kind(config(vocab_size=len(TOKENIZER), max_position_embeddings=64, embedding_size=32, pad_token_id=0, **SIZE)).eval()
    objective = masked()
    with pytest.raises(BaseModelError, match=rf"^train: {kind.__name__} {why}; choose another base, or set pack\.packing: none$") as caught:
        check_isolation(model, objective, "best_fit")
    assert "\n" not in str(caught.value)
    check_isolation(model, replace(objective, packed=False), "none")
