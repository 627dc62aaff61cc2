"""What is trained, what is frozen, and at which rate."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BloomConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    MT5Config,
    PreTrainedModel,
    RobertaConfig,
    T5Config,
)

from conftest import save_tiny_llama
from zhlm.adapt.lora import count_parameters, make_trainable, merged, parameter_groups, plain_name, trained_parameters
from zhlm.adapt.new_rows import as_peft_saves
from zhlm.checkpoint.state import TrainState, newest, save
from zhlm.config.schema import TrainConfig
from zhlm.errors import ConfigError
from zhlm.model.inspect import is_tied
from zhlm.model.load import load_model, model_from_config
from zhlm.model.ties import unwarned
from zhlm.storage import Place

MOMENTS = ("exp_avg", "exp_avg_sq")


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
    with pytest.raises(
        ConfigError, match=r"targets names 'qproj', expected a linear layer of LlamaForCausalLM; near it are q_proj"
    ) as caught:
        make_trainable(load(folders), settings(lora={"r": 4, "targets": ["q_proj", "qproj"]}), 1)
    assert "\n" not in str(caught.value)


def test_a_pattern_chooses_among_whole_names(folders: dict[bool, Path]) -> None:
    lora = {"r": 4, "targets": r"model\.layers\.1\.(mlp.*|self_attn\.q_proj)"}
    found = {
        plain_name(n).split(".lora_")[0]
        for n in trained_parameters(make_trainable(load(folders), settings(lora=lora, embeddings="none"), 1))
    }
    assert found == {f"model.layers.1.{n}" for n in ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj", "self_attn.q_proj")}


@pytest.mark.parametrize(("tied", "embeddings", "reason"), [(True, "none", "input embedding too"), (False, "all", "trained whole")])
def test_a_head_that_lora_would_spoil_is_no_target(folders: dict[bool, Path], tied: bool, embeddings: str, reason: str) -> None:
    train = settings(lora={"r": 4, "targets": ["q_proj", "lm_head"]}, embeddings=embeddings)
    with pytest.raises(ConfigError, match=rf"names lm_head, which is .*{reason}.*; remove it from the targets"):
        make_trainable(load(folders, tied), train, 1)


BERT = dict(vocab_size=40, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=48)
T5 = dict(vocab_size=40, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2)
KINDS = {
    "gpt2": (GPT2Config(vocab_size=40, n_positions=32, n_embd=16, n_layer=2, n_head=2), ["ln_f", "0.ln_1"]),
    "llama": (
        LlamaConfig(
            vocab_size=40, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
            pad_token_id=0,
        ),
        ["norm", "0.input_layernorm"],
    ),
    "bloom": (BloomConfig(vocab_size=40, hidden_size=16, n_layer=2, n_head=2), ["ln_f", "0.input_layernorm"]),
    "bert": (BertConfig(**BERT), ["transform.LayerNorm", "0.output.LayerNorm"]),
    "roberta": (RobertaConfig(**BERT, pad_token_id=1), ["lm_head.layer_norm", "0.output.LayerNorm"]),
    "t5": (T5Config(**T5), ["decoder.final_layer_norm", "encoder.block.0.layer.0.layer_norm"]),
    "mt5": (MT5Config(**T5), ["decoder.final_layer_norm", "encoder.block.0.layer.0.layer_norm"]),
}  # fmt: skip


def build(kind: str) -> PreTrainedModel:
    torch.manual_seed(0)
    model = model_from_config(kind, copy.deepcopy(KINDS[kind][0]))
    if kind == "mt5":  # as the hub has it; transformers draws it tied
        model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm_head.weight))
    with torch.no_grad():
        if (bias := model.get_output_embeddings().bias) is not None:
            bias.normal_()
    return model


def logits_of(model: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    decoder = {"decoder_input_ids": ids.flip(1)} if model.config.is_encoder_decoder else {}
    logits: torch.Tensor = model(input_ids=ids, **decoder).logits
    return logits


@pytest.mark.parametrize("embeddings", ["none", "new_rows", "all"])
@pytest.mark.parametrize("kind", KINDS)
# PEFT knows tied tables by their names; those of GPT-2 and BLOOM are tied nevertheless.
@pytest.mark.filterwarnings("ignore:You have requested .ensure_weight_tying.")
def test_dora_and_saved_modules_are_saved_and_merged(kind: str, embeddings: str, tmp_path: Path) -> None:
    """As export does it: adapter/ loads on the base, merged/ is a plain model, both with the logits of training."""
    norms = KINDS[kind][1]
    lora = {"r": 4, "dora": True, "rslora": True, "modules_to_save": norms}
    model, ids = make_trainable(build(kind), settings(lora=lora, embeddings=embeddings), 1, range(30, 37)), torch.arange(40)[None, :32]
    names = [plain_name(n) for n in trained_parameters(model)]
    assert len(names) == len(set(names)) and any("lora_magnitude_vector" in n for n in names), "one copy of each"
    saved_whole = [n for n in names if any(n.rsplit(".", 1)[0].endswith(norm) for norm in norms)]
    assert len(saved_whole) == (2 if kind in ("llama", "t5", "mt5") else 4), "a norm has a weight, and but for Llama and T5 a bias"
    with torch.no_grad():
        torch.manual_seed(3)
        for parameter in trained_parameters(model).values():
            parameter.add_(torch.randn_like(parameter) * 0.1)
        expected = logits_of(model.eval(), ids)
        assert not torch.allclose(expected, logits_of(build(kind), ids), atol=0.01)
        saved = as_peft_saves(model, build(kind)) if embeddings == "new_rows" else model
        saved.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
        with unwarned():
            reloaded = PeftModel.from_pretrained(build(kind), tmp_path / "adapter").eval()
        assert torch.allclose(logits_of(reloaded, ids), expected, atol=1e-5)
        plain = merged(model)
        assert torch.allclose(logits_of(plain, ids), expected, atol=1e-5)
    before = build(kind)
    assert set(plain.state_dict()) == set(before.state_dict()) and is_tied(plain) == is_tied(before) == (kind not in ("llama", "mt5"))
    assert {n for n, _ in plain.named_parameters()} == {n for n, _ in before.named_parameters()}, "tied as before, biases too"
    plain.save_pretrained(tmp_path / "merged")
    with torch.no_grad():
        assert torch.allclose(logits_of(load_model(str(tmp_path / "merged")), ids), expected, atol=1e-5)


def test_a_checkpoint_holds_each_weight_once(folders: dict[bool, Path], tmp_path: Path) -> None:
    model = make_trainable(load(folders), settings(lora={"r": 4, "dora": True, "modules_to_save": ["norm"]}), 1)
    values = trained_parameters(model)
    save(Place(tmp_path), TrainState(step=1), values, {f"{n}/{key}": torch.ones_like(p) for n, p in values.items() for key in MOMENTS})
    found, _ = newest(Place(tmp_path))
    assert found is not None
    names = [plain_name(n) for n in found.trainable()]
    layers = 2 * (4 + 3)
    assert len(names) == len(set(names)) == 3 * layers + 2, "A, B and the magnitude of each layer, a norm, the tied embedding"
    assert sorted(n for n in names if "lora_" not in n) == ["model.embed_tokens.weight", "model.norm.weight"]


def test_frozen_parts_are_neither_trained_nor_saved(folders: dict[bool, Path]) -> None:
    train = settings(lora=None, freeze={"first_layers": 1, "embeddings": True, "parameters": [r".*norm\.weight"]})
    names = set(trained_parameters(make_trainable(load(folders), train, 1)))
    assert names and all(n.startswith("model.layers.1.") and "norm" not in n for n in names)
    last = set(trained_parameters(make_trainable(load(folders), settings(lora=None, freeze={"last_layers": 1}), 1)))
    assert {n.split(".")[2] for n in last if "layers" in n} == {"0"} and {"model.embed_tokens.weight", "model.norm.weight"} <= last


def test_rates_of_groups(folders: dict[bool, Path]) -> None:
    lora = {"r": 4, "plus_ratio": 16.0}
    train = settings(lora=lora, learning_rate=1e-3, rate_factors={r".*layers\.0\..*lora_A.*": 0.25, r".*layers\.0\..*": 2.0})
    model = make_trainable(load(folders), train, 1)
    names = {id(p): plain_name(n) for n, p in trained_parameters(model).items()}
    rates = {names[id(p)]: g["peak_rate"] / 1e-3 for g in parameter_groups(model, train) for p in g["params"]}
    assert len(rates) == len(names)
    expected = {"0.self_attn.q_proj.lora_A": 0.5, "0.self_attn.q_proj.lora_B": 32, "1.mlp.up_proj.lora_A": 1, "1.mlp.up_proj.lora_B": 16}
    assert {n: rates[f"model.layers.{n}.weight"] for n in expected} == pytest.approx(expected)
    assert rates["model.embed_tokens.weight"] == 1
    with pytest.raises(ConfigError, match=r"rate_factors has the pattern 'lora_C', expected a whole name of a trained parameter"):
        parameter_groups(model, settings(rate_factors={"lora_C": 2.0}))


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
