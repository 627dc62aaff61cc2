"""T5 and its kin with documents: packed together they are as if alone, and without their numbers nothing changes."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForSeq2SeqLM,
    BloomConfig,
    BloomForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    MT5Config,
    MT5ForConditionalGeneration,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
    UMT5Config,
    UMT5ForConditionalGeneration,
)

from zhlm.errors import BaseModelError
from zhlm.model.packed import PACKED, take_documents
from zhlm.objectives.isolation import check_isolation
from zhlm.objectives.span_corruption import SpanCorruption

READ, WRITTEN = (11, 1, 40, 6), (4, 0, 23, 9)
"""Tokens of each document; the second is too short to write anything of."""
PADDING = 3
KINDS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "t5": (T5Config, T5ForConditionalGeneration, {"feed_forward_proj": "relu"}),
    "t5_v1_1": (T5Config, T5ForConditionalGeneration, {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}),
    "mt5": (MT5Config, MT5ForConditionalGeneration, {}),
    "umt5": (UMT5Config, UMT5ForConditionalGeneration, {}),
}


def tiny(kind: str = "t5", dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """Its distances end within a document, at 16."""
    torch.manual_seed(5)
    config, plain, own = KINDS[kind]
    size = {"vocab_size": 96, "d_model": 24, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 3, "dropout_rate": 0.0}
    distances = {"relative_attention_num_buckets": 8, "relative_attention_max_distance": 16}
    model: PreTrainedModel = plain(config(**size, **distances, decoder_start_token_id=0, **own)).to(dtype)
    return model.eval()


def packed(padding: int = PADDING) -> dict[str, torch.Tensor]:
    torch.manual_seed(6)
    inputs = {}
    for side, lengths in (("", READ), ("decoder_", WRITTEN)):
        inputs[f"{side}input_ids"] = torch.randint(96, (2, sum(lengths) + padding))
        numbers = [number for number, length in enumerate(lengths, 1) for _ in range(length)]
        inputs[f"{side}document_ids"] = torch.tensor([*numbers, *([0] * padding)]).expand(2, -1)
    return inputs


def logits_alone(model: PreTrainedModel) -> torch.Tensor:
    """Of the plain class, one document after another."""
    inputs = packed()
    read = inputs["input_ids"].split([*READ, PADDING], dim=1)
    written = inputs["decoder_input_ids"].split([*WRITTEN, PADDING], dim=1)
    pairs = list(zip(read, written, strict=True))[:-1]
    return torch.cat([model(input_ids=r, decoder_input_ids=w, use_cache=False).logits for r, w in pairs if w.shape[1]], 1)


def logits_together(model: PreTrainedModel) -> torch.Tensor:
    logits: torch.Tensor = take_documents(model)(**packed(), use_cache=False).logits
    assert logits.isfinite().all(), "padding too"
    return logits[:, : sum(WRITTEN)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packed_documents_are_as_if_alone(kind: str, attention: str) -> None:
    model = tiny(kind)
    model.set_attn_implementation(attention)
    with torch.no_grad():
        joined = model(**{name: ids for name, ids in packed().items() if "document" not in name}).logits[:, : sum(WRITTEN)]
        alone, together = logits_alone(model), logits_together(model)
    assert float((alone - together).abs().max()) < 1e-5
    assert float((alone - joined).abs().max()) > 0.1, "without documents the logits are others, so the test can fail"


@pytest.mark.parametrize("kind", KINDS)
def test_in_bfloat16_too(kind: str) -> None:
    with torch.no_grad():
        alone, together = logits_alone(tiny(kind, torch.bfloat16)), logits_together(tiny(kind, torch.bfloat16))
    assert together.dtype == torch.bfloat16
    assert float((alone - together).abs().max()) < 0.02 * float(alone.abs().max())


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_the_documents_alone_with_checkpointing_too(kind: str) -> None:
    gradients = []
    for checkpointing in (False, True):
        model = tiny(kind).train()
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        logits_together(model).square().sum().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    model = tiny(kind).train()
    logits_alone(model).square().sum().backward()
    alone = {name: p.grad for name, p in model.named_parameters()}
    for name in alone:
        scale = float(alone[name].abs().max())
        assert scale > 0, name
        for together in gradients:
            assert float((together[name] - alone[name]).abs().max()) < 1e-5 * scale, name
    biases = [name for name in alone if "relative_attention_bias" in name]
    assert {name.split(".")[0] for name in biases} == {"encoder", "decoder"}


def test_what_stands_in_other_documents_and_in_the_padding_changes_nothing() -> None:
    model, inputs = take_documents(tiny()), packed()
    with torch.no_grad():
        before = model(**inputs).logits
        for name in ("input_ids", "decoder_input_ids"):
            other = inputs[name.replace("input", "document")] != 3
            inputs[name] = torch.where(other, (inputs[name] + 7) % 96, inputs[name])
        after = model(**inputs).logits
    third = inputs["decoder_document_ids"] == 3
    assert torch.equal(before[third], after[third])
    assert not torch.equal(before, after)


def test_a_block_that_is_full_on_one_side_only() -> None:
    """Padding of the decoder then finds none to look at in the encoder."""
    inputs = packed(0)
    longer = {name: torch.nn.functional.pad(ids, (0, PADDING)) if "decoder" in name else ids for name, ids in inputs.items()}
    model = take_documents(tiny())
    with torch.no_grad():
        full, padded = model(**inputs).logits, model(**longer).logits
    assert padded.isfinite().all() and float((padded[:, : sum(WRITTEN)] - full).abs().max()) < 1e-5


def test_all_parts_of_the_model_run_in_its_forward() -> None:
    """ZeRO-3 gathers a part's weights when the part is called: by the same calls as in the plain class."""

    def called(model: PreTrainedModel, **inputs: torch.Tensor) -> set[str]:
        names: set[str] = set()
        for name, module in model.named_modules():
            module.register_forward_hook(lambda *_, name=name: names.add(name))
        model(**inputs)
        return names

    plain = called(tiny(), **{name: ids for name, ids in packed().items() if "document" not in name})
    assert called(take_documents(tiny()), **packed()) == plain and "encoder.block.1" in plain


def test_lora_around_it_hands_the_documents_on() -> None:
    model = tiny()
    with torch.no_grad():
        before = logits_together(model)
        adapted = get_peft_model(model, LoraConfig(task_type="SEQ_2_SEQ_LM", r=2, target_modules=["q", "v"]))
        assert torch.equal(adapted(**packed(), use_cache=False).logits[:, : sum(WRITTEN)], before)


@pytest.mark.parametrize("kind", KINDS)
def test_without_documents_it_is_the_model_that_it_was(kind: str) -> None:
    model, ids = tiny(kind), torch.arange(1, 13).view(2, 6)
    mask = torch.tensor([[1] * 6, [1] * 4 + [0] * 2])
    with torch.no_grad():
        before = model(input_ids=ids, attention_mask=mask, labels=ids)
        generated = model.generate(ids, attention_mask=mask, max_new_tokens=5, do_sample=False)
        after = take_documents(model)(input_ids=ids, attention_mask=mask, labels=ids)
        assert torch.equal(generated, model.generate(ids, attention_mask=mask, max_new_tokens=5, do_sample=False))
    assert torch.equal(before.logits, after.logits) and torch.equal(before.loss, after.loss)


@pytest.mark.parametrize("kind", [*KINDS, "bloom"])
def test_it_is_saved_under_the_name_of_the_plain_class(kind: str, tmp_path: Path) -> None:
    model = BloomForCausalLM(BloomConfig(vocab_size=96, hidden_size=16, n_layer=1, n_head=2)) if kind == "bloom" else tiny(kind)
    plain = type(model)
    take_documents(model).save_pretrained(tmp_path)
    assert type(model) is PACKED[plain] is not plain and take_documents(model) is model
    assert json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))["architectures"] == [plain.__name__]
    if kind != "bloom":
        assert type(AutoModelForSeq2SeqLM.from_pretrained(tmp_path)) is plain


def test_others_stay_what_they_are() -> None:
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=96, n_embd=16, n_layer=1, n_head=2))
    assert type(take_documents(gpt2)) is GPT2LMHeadModel


@pytest.mark.parametrize("kind", KINDS)
def test_it_passes_the_proof_of_isolation_with_its_objective(kind: str) -> None:
    objective = SpanCorruption(0.15, 3.0, (95, 94, 93), 1, 0, frozenset({1}), 7)
    with pytest.raises(BaseModelError, match="takes no document_ids"):
        check_isolation(tiny(kind), objective, "best_fit")
    for packing in ("best_fit", "none"):
        check_isolation(take_documents(tiny(kind)), objective, packing)
