"""What is trained, what is frozen, and at which rate."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, PreTrainedModel

from conftest import save_tiny_llama
from zhlm.config.schema import TrainConfig
from zhlm.errors import ConfigError
from zhlm.model.lora import count_parameters, make_trainable, parameter_groups, trained_parameters


def settings(**train: Any) -> TrainConfig:
    return TrainConfig.model_validate_json(json.dumps({"steps": 1, "lora": {"r": 4}, **train}))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    return {tied: save_tiny_llama(tmp_path_factory.mktemp("base") / str(tied), tied=tied) for tied in (True, False)}


def load(folders: dict[bool, Path], tied: bool = True) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folders[tied])
    return model


@pytest.mark.parametrize("tied", [True, False])
def test_lora_trains_every_linear_layer_and_the_embeddings(folders: dict[bool, Path], tied: bool) -> None:
    model = make_trainable(load(folders, tied), settings(), 1)
    names = set(trained_parameters(model))
    layers = {n.split("layers.")[1].rsplit(".lora_", 1)[0] for n in names if "layers." in n}
    linear = [
        "self_attn.q_proj",
        "self_attn.k_proj",
        "self_attn.v_proj",
        "self_attn.o_proj",
        "mlp.gate_proj",
        "mlp.up_proj",
        "mlp.down_proj",
    ]
    assert layers == {f"{i}.{name}" for i in (0, 1) for name in linear}
    assert len([n for n in names if ".lora_" not in n]) == (1 if tied else 2), "a tied head is the embedding, not a second tensor"


@pytest.mark.parametrize("tied", [True, False])
def test_training_and_saving_keep_tied_models_tied(folders: dict[bool, Path], tied: bool, tmp_path: Path) -> None:
    model = make_trainable(load(folders, tied), settings(learning_rate=0.1), 1)
    optimizer = torch.optim.AdamW(parameter_groups(model, settings()), lr=0.1)
    model(input_ids=torch.arange(12)[None], labels=torch.arange(12)[None]).loss.backward()
    optimizer.step()
    inner = model.get_base_model()
    embedding, head = inner.get_input_embeddings().weight, inner.get_output_embeddings().weight
    assert torch.equal(embedding, head) == tied
    merged = model.merge_and_unload()
    assert torch.equal(merged.get_input_embeddings().weight, merged.get_output_embeddings().weight) == tied


def test_nothing_changes_before_the_first_step(folders: dict[bool, Path]) -> None:
    ids = torch.arange(3, 30)[None]
    with torch.no_grad():
        before = load(folders)(ids).logits
        after = make_trainable(load(folders), settings(), 1).eval()(ids).logits
    assert torch.equal(before, after)


def test_without_lora_everything_is_trained(folders: dict[bool, Path]) -> None:
    model = make_trainable(load(folders), settings(lora=None), 1)
    assert not isinstance(model, PeftModel)
    assert count_parameters(model) == {"trained": sum(p.numel() for p in model.parameters()), "frozen": 0}


def test_embeddings_none_leaves_them_frozen(folders: dict[bool, Path]) -> None:
    model = make_trainable(load(folders), settings(embeddings="none"), 1)
    assert all(".lora_" in name for name in trained_parameters(model))
    whole = sum(p.numel() for p in load(folders).parameters())
    assert count_parameters(model)["frozen"] == whole


def test_the_seed_decides_the_start(folders: dict[bool, Path]) -> None:
    def start(seed: int) -> dict[str, torch.Tensor]:
        return {n: p.detach().clone() for n, p in trained_parameters(make_trainable(load(folders), settings(), seed)).items()}

    one, same, other = start(1), start(1), start(2)
    assert all(torch.equal(one[n], same[n]) for n in one)
    assert any(not torch.equal(one[n], other[n]) for n in one)


def test_named_targets_are_taken_and_unknown_ones_named(folders: dict[bool, Path]) -> None:
    model = make_trainable(load(folders), settings(lora={"r": 4, "targets": ["q_proj"]}, embeddings="none"), 1)
    assert all(".q_proj.lora_" in name for name in trained_parameters(model))
    with pytest.raises(ConfigError, match=r"targets names 'c_attn', which LlamaForCausalLM lacks; it has .*q_proj") as caught:
        make_trainable(load(folders), settings(lora={"r": 4, "targets": ["q_proj", "c_attn"]}), 1)
    assert "\n" not in str(caught.value)


def test_gpt2_with_its_turned_matrices_is_adapted() -> None:
    model = make_trainable(GPT2LMHeadModel(GPT2Config(vocab_size=40, n_positions=16, n_embd=16, n_layer=1, n_head=2)), settings(), 1)
    names = set(trained_parameters(model))
    assert any("c_attn.lora_A" in n for n in names) and any("wte" in n for n in names)
    ids = torch.arange(8)[None]
    with torch.no_grad():
        before = model.eval()(ids).logits
        for name, p in trained_parameters(model).items():
            if "lora_B" in name:
                p.add_(0.1)
        adapted = model(ids).logits
        merged = model.merge_and_unload()(ids).logits
    assert torch.allclose(adapted, merged, atol=1e-4) and not torch.allclose(before, merged, atol=1e-3)


def test_each_parameter_is_in_one_group_with_its_rate_and_decay(folders: dict[bool, Path]) -> None:
    train = settings(lora=None, learning_rate=1e-3, embedding_learning_rate=1e-4, weight_decay=0.1)
    model = make_trainable(load(folders, tied=False), train, 1)
    groups = parameter_groups(model, train)
    assert [(g["peak_rate"], g["weight_decay"]) for g in groups] == [(1e-3, 0.1), (1e-4, 0.0), (1e-3, 0.0)]
    grouped = [id(p) for g in groups for p in g["params"]]
    assert sorted(grouped) == sorted(id(p) for p in trained_parameters(model).values())
    names = {id(p): n for n, p in model.named_parameters()}
    assert {names[id(p)] for p in groups[1]["params"]} == {"model.embed_tokens.weight", "lm_head.weight"}
    assert all("norm" in names[id(p)] for p in groups[2]["params"])


def test_embeddings_trained_beside_lora_get_their_own_rate(folders: dict[bool, Path]) -> None:
    train = settings(embedding_learning_rate=1e-4)
    model = make_trainable(load(folders, tied=False), train, 1)
    matrices, embeddings = parameter_groups(model, train)
    names = {id(p): n for n, p in model.named_parameters()}
    assert all("lora_" in names[id(p)] for p in matrices["params"])
    assert len(embeddings["params"]) == 2 and embeddings["peak_rate"] == 1e-4
    assert all("modules_to_save" in names[id(p)] for p in embeddings["params"])
