"""BLOOM with positions: documents packed together are as if alone, and without positions nothing changes."""

import pytest
import torch
from transformers import BloomConfig, BloomForCausalLM, GPT2Config, GPT2LMHeadModel

from zhlm.adapt.lora import make_trainable
from zhlm.config.schema import TrainConfig
from zhlm.model.bloom import PackedBloom
from zhlm.model.packed import take_documents
from zhlm.objectives.causal import Causal
from zhlm.objectives.isolation import check_isolation

LENGTHS = (11, 1, 20)


def tiny(dtype: torch.dtype = torch.float32, num_heads: int = 4) -> BloomForCausalLM:
    torch.manual_seed(5)
    config = BloomConfig(vocab_size=96, hidden_size=12 * num_heads, n_layer=2, n_head=num_heads, hidden_dropout=0.0)
    return BloomForCausalLM(config).to(dtype).eval()


def packed() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(6)
    return torch.randint(96, (2, sum(LENGTHS))), torch.cat([torch.arange(n) for n in LENGTHS]).expand(2, -1)


@pytest.mark.parametrize("num_heads", [4, 3])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 0.02)])
def test_packed_documents_are_as_if_alone(dtype: torch.dtype, tolerance: float, num_heads: int) -> None:
    model, (ids_BT, positions_BT) = tiny(dtype, num_heads), packed()
    with torch.no_grad():
        alone = torch.cat([model(input_ids=part).logits for part in ids_BT.split(LENGTHS, dim=1)], 1)
        together = take_documents(model)(input_ids=ids_BT, position_ids=positions_BT, use_cache=False).logits
    assert float((alone - together).abs().max()) < tolerance


def test_gradients_are_those_of_the_documents_alone_with_checkpointing_too() -> None:
    ids_BT, positions_BT = packed()
    gradients = []
    for checkpointing in (False, True):
        model = take_documents(tiny()).train()
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model(input_ids=ids_BT, position_ids=positions_BT, use_cache=False).logits.square().sum().backward()
        gradients.append([p.grad for p in model.parameters()])
    model = tiny().train()
    sum(model(input_ids=part, use_cache=False).logits.square().sum() for part in ids_BT.split(LENGTHS, dim=1)).backward()
    gradients.append([p.grad for p in model.parameters()])
    for first, second, third in zip(*gradients, strict=True):
        torch.testing.assert_close(first, second)
        torch.testing.assert_close(first, third, rtol=1e-4, atol=1e-5)


def test_lora_around_it_hands_the_positions_on() -> None:
    ids_BT, positions_BT = packed()
    model = take_documents(tiny())
    with torch.no_grad():
        before = model(input_ids=ids_BT, position_ids=positions_BT, use_cache=False).logits
        adapted = make_trainable(model, TrainConfig(steps=1, embeddings="all"), 7)
        assert torch.equal(adapted(input_ids=ids_BT, position_ids=positions_BT, use_cache=False).logits, before)


def test_without_positions_it_is_the_model_that_it_was() -> None:
    ids_BT, _ = packed()
    model = tiny()
    with torch.no_grad():
        before, after = model(input_ids=ids_BT).logits, take_documents(model)(input_ids=ids_BT).logits
        generated = model.generate(ids_BT[:1, :5], max_new_tokens=4, do_sample=False)
    assert torch.equal(before, after) and torch.equal(generated, tiny().generate(ids_BT[:1, :5], max_new_tokens=4, do_sample=False))


def test_it_passes_the_proof_of_isolation_and_others_stay_what_they_are() -> None:
    model = take_documents(tiny())
    assert type(model) is PackedBloom
    check_isolation(model, Causal(), "best_fit")
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=96, n_embd=16, n_layer=1, n_head=2))
    assert type(take_documents(gpt2)) is GPT2LMHeadModel
