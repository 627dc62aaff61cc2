"""A checkpoint becomes folders that load without zhlm, for every class of model and every way of training it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    BloomConfig,
    GPT2Config,
    LlamaConfig,
    T5ForConditionalGeneration,
    pipeline,
)

from conftest import VOCABULARY, run_data, save_tiny_llama
from tiny_bases import bert_folder, gpt2_folder, roberta_folder, t5_folder
from zhlm.adapt.lora import make_trainable, trained_parameters
from zhlm.checkpoint.state import TrainState, save
from zhlm.config.schema import RunConfig
from zhlm.export import job
from zhlm.model.inspect import is_tied
from zhlm.model.load import load_base
from zhlm.storage import Run
from zhlm.tokenizer.load import load_tokenizer
from zhlm.tokenizer.special import document_token

CONFIGS = {
    "gpt2": GPT2Config(vocab_size=VOCABULARY, n_positions=64, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=1),
    "llama": LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
        pad_token_id=2,
    ),
    "bloom": BloomConfig(vocab_size=VOCABULARY, hidden_size=16, n_layer=2, n_head=2),
}  # fmt: skip
TABLES = {
    "gpt2": {"transformer.wte.weight"},
    "llama": {"model.embed_tokens.weight", "lm_head.weight"},
    "bloom": {"transformer.word_embeddings.weight"},
}
LAST_NORM = {"gpt2": "ln_f", "llama": "norm", "bloom": "ln_f"}


def trained(folder: Path, kind: str, scratch: bool, train: dict[str, Any]) -> RunConfig:
    """A run with a checkpoint in which every trained weight moved."""
    save_tiny_llama(folder / "base")  # for its tokenizer
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(CONFIGS[kind]).save_pretrained(folder / "base")
    data = run_data(folder, **json.loads(json.dumps(train).replace("NORM", LAST_NORM[kind])))
    data["base"]["from_scratch"] = scratch
    config = RunConfig.model_validate_json(json.dumps(data))
    model = make_trainable(load_base(config, str(folder / "base")), config.train, config.seed)
    with torch.no_grad():
        values = {name: p + 0.1 * torch.randn_like(p) for name, p in trained_parameters(model).items()}
    moments = {f"{name}/{key}": torch.zeros_like(p) for name, p in values.items() for key in ("exp_avg", "exp_avg_sq")}
    save(Run.of(config).checkpoints, TrainState(step=8), values, moments)
    return config


WAYS: dict[str, tuple[bool, dict[str, Any]]] = {
    "dora": (False, {"lora": {"r": 4, "dora": True, "rslora": True, "dropout": 0.1, "modules_to_save": ["NORM"]}}),
    "pattern": (False, {"lora": {"r": 4, "targets": r".*\.1\..*", "plus_ratio": 16.0}, "embeddings": "none"}),
    "frozen": (False, {"lora": None, "freeze": {"first_layers": 1, "embeddings": True}}),
    "scratch": (True, {"lora": None, "freeze": {"last_layers": 1}}),
}


@pytest.mark.parametrize(
    ("kind", "way"),
    [(k, w) for k in CONFIGS for w in WAYS if (k, w) not in {("gpt2", "frozen"), ("bloom", "scratch"), ("llama", "pattern")}],
)
# PEFT knows tied tables by their names; those of GPT-2 and BLOOM are tied nevertheless.
@pytest.mark.filterwarnings("ignore:You have requested .ensure_weight_tying.")
def test_both_folders_have_the_logits_of_training(kind: str, way: str, tmp_path: Path) -> None:
    scratch, train = WAYS[way]
    config = trained(tmp_path, kind, scratch, train)
    facts = job.run(config, lambda _: None)
    assert {k for k in facts if k.endswith("difference")} == {"merged_difference", *(["adapter_difference"] if train["lora"] else [])}
    assert max(facts[k] for k in facts if k.endswith("difference")) < 1e-5, "logits are compared by the stage itself"
    merged = AutoModelForCausalLM.from_pretrained(Run.of(config).export.path / "merged")
    base = load_base(config, str(tmp_path / "base"))
    assert {n: p.shape for n, p in merged.named_parameters()} == {n: p.shape for n, p in base.named_parameters()}, "tied as before"
    before = dict(base.named_parameters())
    moved = {n for n, p in merged.named_parameters() if not torch.equal(p, before[n])}
    layers = [{n for n in before if f".{i}." in n} for i in (0, 1)]
    if way == "frozen":
        assert moved == {*before} - layers[0] - TABLES[kind]
    elif way == "scratch":
        assert moved == {*before} - layers[1], "the frozen layer is as drawn, though no checkpoint has it"
    else:
        assert way != "pattern" or moved < layers[1]
        loaded = PeftModel.from_pretrained(base, Run.of(config).export.path / "adapter")
        assert loaded.peft_config["default"].use_dora == (way == "dora")


def trained_class(
    folder: Path, kind: str, objective: str, train: dict[str, Any], pack: dict[str, Any]
) -> tuple[RunConfig, torch.nn.Module]:
    """A run on a base with the tokenizer of its class, with a checkpoint in which every trained weight moved; and the trained model."""
    FOLDERS[kind](folder / "base")
    data = run_data(folder, **train)
    data |= {"objective": objective, "pack": data["pack"] | pack}
    config = RunConfig.model_validate_json(json.dumps(data))
    model = make_trainable(load_base(config, str(folder / "base")), config.train, config.seed)
    with torch.no_grad():
        for parameter in trained_parameters(model).values():
            parameter.add_(0.1 * torch.randn_like(parameter))
    values = trained_parameters(model)
    moments = {f"{name}/{key}": torch.zeros_like(p) for name, p in values.items() for key in ("exp_avg", "exp_avg_sq")}
    save(Run.of(config).checkpoints, TrainState(step=8), values, moments)
    return config, model.eval()


def untied_t5_folder(path: Path) -> Path:
    """As the hub has T5 1.1; transformers draws it tied."""
    model = T5ForConditionalGeneration.from_pretrained(t5_folder(path, tied=False))
    model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm_head.weight))
    model.save_pretrained(path)
    return path


FOLDERS: dict[str, Any] = {
    "bert": bert_folder,
    "roberta": roberta_folder,
    "t5": t5_folder,
    "t5_untied": untied_t5_folder,
    "gpt2_wordpiece": lambda path: gpt2_folder(path, wordpiece=True),
}
LORA = {"lora": {"r": 4}}


@pytest.mark.parametrize(("kind", "train"), [("bert", LORA), ("roberta", LORA), ("bert", {"lora": None, "freeze": {"last_layers": 1}})])
def test_a_masked_model_fills_masks_as_it_was_trained(kind: str, train: dict[str, Any], tmp_path: Path) -> None:
    config, model = trained_class(tmp_path, kind, "masked", train, {"document_start": "bos"})
    facts = job.run(config, lambda _: None)
    assert max(facts[k] for k in facts if k.endswith("difference")) < 1e-5
    folder = Run.of(config).export.path
    assert not (folder / "merged" / "generation_config.json").exists()
    filled = pipeline("fill-mask", model=str(folder / "merged"), device="cpu")
    tokenizer = filled.tokenizer
    ids = tokenizer(f"the {tokenizer.mask_token} book", return_tensors="pt")
    start, end = (document_token(tokenizer, which) for which in ("bos", "eos"))
    assert start is not None and end is not None and (ids.input_ids[0, 0], ids.input_ids[0, -1]) == (start.id, end.id)
    place = int((ids.input_ids[0] == tokenizer.mask_token_id).nonzero())
    with torch.no_grad():
        expected = model(**ids).logits[0, place].softmax(-1).topk(5)
    found = filled(f"the {tokenizer.mask_token} book", top_k=5)
    assert [f["token"] for f in found] == expected.indices.tolist()
    assert [f["score"] for f in found] == pytest.approx(expected.values.tolist(), abs=1e-5)
    if train["lora"]:
        loaded = PeftModel.from_pretrained(AutoModelForMaskedLM.from_pretrained(tmp_path / "base"), folder / "adapter").eval()
        with torch.no_grad():
            assert torch.allclose(loaded(**ids).logits, model(**ids).logits, atol=1e-5)
    assert "pipeline_tag: fill-mask" in (folder / "merged" / "README.md").read_text()


@pytest.mark.parametrize("kind", ["t5", "t5_untied"])
def test_an_encoder_decoder_loads_and_generates(kind: str, tmp_path: Path) -> None:
    config, model = trained_class(tmp_path, kind, "span_corruption", LORA, {})
    job.run(config, lambda _: None)  # which compares the logits itself
    folder = Run.of(config).export.path
    merged, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(folder / "merged"), AutoTokenizer.from_pretrained(folder / "merged")
    assert is_tied(merged) == (kind == "t5") == is_tied(load_base(config, str(tmp_path / "base")))
    ids = tokenizer("the <extra_id_0> book", return_tensors="pt")
    assert ids.input_ids[0, -1] == tokenizer.eos_token_id
    settings = merged.generation_config
    assert (settings.decoder_start_token_id, settings.eos_token_id, settings.pad_token_id) == (0, 1, 0)
    written = merged.generate(**ids, max_new_tokens=5, do_sample=False)
    with torch.no_grad():
        first = model(input_ids=ids.input_ids, decoder_input_ids=written[:, :1]).logits[0, 0].argmax()
    assert written[0, 0] == 0 and written[0, 1] == first


@pytest.mark.parametrize(
    ("kind", "objective", "pack", "expected"),
    [
        ("bert", "masked", {"document_start": "bos"}, "[CLS] a [SEP]"),
        ("bert", "masked", {}, "a [SEP]"),
        ("bert", "masked", {"document_end": "none"}, "a"),
        ("roberta", "masked", {"document_start": "bos"}, "<s> a </s>"),
        ("t5", "span_corruption", {}, "a </s>"),
        ("t5", "span_corruption", {"document_end": "none"}, "a"),
        ("gpt2_wordpiece", "causal", {"document_start": "bos"}, "[CLS] a"),
        ("gpt2_wordpiece", "causal", {}, "a"),
        ("gpt2_wordpiece", "prefix", {"document_start": "bos"}, "[CLS] a"),
    ],
)
def test_the_tokenizer_puts_around_a_text_what_training_did(
    kind: str, objective: str, pack: dict[str, Any], expected: str, tmp_path: Path
) -> None:
    tokenizer = load_tokenizer(str(FOLDERS[kind](tmp_path / "base")))
    data = run_data(tmp_path)
    config = RunConfig.model_validate_json(json.dumps(data | {"objective": objective, "pack": data["pack"] | pack}))
    job._tokenizer_as_trained(tokenizer, config).save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert [t.removeprefix("\u2581") for t in loaded.convert_ids_to_tokens(loaded("a").input_ids)] == expected.split()
    bare = [t.removeprefix("\u2581") for t in loaded.convert_ids_to_tokens(loaded("a", add_special_tokens=False).input_ids)]
    assert bare == ["a"]
