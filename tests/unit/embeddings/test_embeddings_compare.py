# ruff: noqa: F401, F811 - fixtures are imported by name
import copy
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertForMaskedLM,
    BertLMHeadModel,
    BloomConfig,
    GPT2Config,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from trained_tokenizers import chinese, english, gpt2_tokenizer, learned_on, train_wordpiece
from zhlm.config.schema import StreamConfig
from zhlm.config.vocabulary import VocabConfig
from zhlm.embeddings.compare import DOCUMENT_CHARS, Texts, check_causal, compare, first_texts
from zhlm.embeddings.grow import INITS, Extension, grow, held_out
from zhlm.embeddings.initialise import mean
from zhlm.errors import ConfigError, CorpusError
from zhlm.inference.bits import measure
from zhlm.model.inspect import is_tied
from zhlm.pieces.extend import extend, first_new_id

MODELS = {
    "llama": LlamaConfig(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2),
    "llama_tied": LlamaConfig(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, tie_word_embeddings=True),
    "gpt2": GPT2Config(n_positions=512, n_embd=16, n_layer=1, n_head=2),
    "bloom": BloomConfig(hidden_size=16, n_layer=1, n_head=2),
}


@pytest.fixture
def extension(gpt2_tokenizer: PreTrainedTokenizerFast, chinese: list[str]) -> Extension:
    base, learned = learned_on(gpt2_tokenizer, chinese, 60)
    return Extension(gpt2_tokenizer, extend(gpt2_tokenizer, base, learned), learned.pieces, first_new_id(gpt2_tokenizer), base)


def model_of(config: PretrainedConfig, rows: int) -> PreTrainedModel:
    config = copy.deepcopy(config)
    config.vocab_size, config.bos_token_id, config.eos_token_id = rows, 0, 0
    config.initializer_range = 0.2  # far from uniform, so that rows matter
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).eval()


@pytest.mark.parametrize("config", MODELS.values(), ids=MODELS.keys())
def test_every_way_is_measured_and_the_best_is_taken(
    config: PretrainedConfig, extension: Extension, chinese: list[str], english: list[str]
) -> None:
    model = model_of(config, len(extension.before))
    old_in, old_out = (m.weight.detach().clone() for m in (model.get_input_embeddings(), model.get_output_embeddings()))
    tied = is_tied(model)
    texts = Texts(chinese[:20], english[:20], "held-out files")

    def measured(tokenizer: PreTrainedTokenizerFast, documents: list[str]) -> float:
        settings = {"document_start": "none", "document_end": "none", "block_tokens": 512, "device": "cpu"}
        return measure(model, tokenizer, documents, **settings).bits_per_byte

    before = measured(extension.before, texts.new), measured(extension.before, texts.old)
    facts, comparison = grow(model, extension, VocabConfig(init="auto", pad_to_multiple=64), chinese[20:], texts)
    assert comparison is not None
    assert tuple(comparison.base.values()) == pytest.approx(before, abs=1e-4)
    assert set(comparison.inits) == set(INITS)
    assert len({score["bits_per_byte_new"] for score in comparison.inits.values()}) == len(INITS)
    best = min(INITS, key=lambda name: comparison.inits[name]["bits_per_byte_new"] or 0)
    assert facts["init"] == comparison.best == best and facts["init_asked"] == "auto"
    seen = {row for text in chinese[20:] for row in extension.after(text)["input_ids"]}
    assert facts["init_unseen_pieces"] == len(set(range(extension.first_id, len(extension.after))) - seen)
    assert is_tied(model) is tied
    # What stays is the best one, measured again; old rows are untouched and padding is the mean.
    assert measured(extension.after, texts.new) == pytest.approx(comparison.inits[best]["bits_per_byte_new"], abs=1e-4)
    assert measured(extension.after, texts.old) == pytest.approx(comparison.inits[best]["bits_per_byte_old"], abs=1e-4)
    for module, old in ((model.get_input_embeddings(), old_in), (model.get_output_embeddings(), old_out)):
        assert module.weight.shape[0] % 64 == 0
        assert torch.equal(module.weight[: len(old)], old)
        assert torch.allclose(module.weight[len(extension.after) :], old.mean(0), atol=1e-6)


@pytest.mark.parametrize("init", INITS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("config", [MODELS["llama"], MODELS["gpt2"]], ids=["untied", "tied"])
def test_each_init_fills_all_rows_the_same_way_with_and_without_a_comparison(
    config: PretrainedConfig, dtype: torch.dtype, init: str, extension: Extension, chinese: list[str]
) -> None:
    found = []
    for compare_init in (False, True):
        model = model_of(config, len(extension.before)).to(dtype)
        vocab = VocabConfig(init=init, compare_init=compare_init, pad_to_multiple=64)
        facts, comparison = grow(model, extension, vocab, chinese[5:], Texts(chinese[:5], [], "x"))
        assert facts["init"] == init and (comparison is not None) is compare_init
        found.append([model.get_input_embeddings().weight, model.get_output_embeddings().weight])
        assert all(weight.dtype == dtype and weight.isfinite().all() for weight in found[-1])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    new_ND = found[0][0][len(extension.before) : len(extension.after)]
    assert len(new_ND.unique(dim=0)) == (1 if init == "mean" else len(new_ND)) or init in ("similarity", "subword_mean")


def test_the_head_is_mixed_like_the_embedding_but_from_its_own_rows(extension: Extension, chinese: list[str]) -> None:
    model = model_of(MODELS["llama"], len(extension.before))
    with torch.no_grad():
        model.get_output_embeddings().weight.copy_(model.get_input_embeddings().weight * 3)
    for init in ("subword_mean", "similarity"):
        grow(model, extension, VocabConfig(init=init), chinese, Texts([], [], "x"))
        assert torch.allclose(model.get_output_embeddings().weight, model.get_input_embeddings().weight * 3, atol=1e-6)


def test_without_old_text_there_is_no_number_for_it(extension: Extension, chinese: list[str]) -> None:
    model = model_of(MODELS["llama"], len(extension.before))
    found = compare(model, extension.before, extension.after, extension.first_id, {"mean": mean(60)}, Texts(chinese[:3], [], "x"))
    assert found.base["bits_per_byte_old"] is None and found.inits["mean"]["bits_per_byte_old"] is None
    assert found.as_dict()["measured"] == {"texts": "x", "new_bytes": sum(len(t.encode()) for t in chinese[:3]), "old_bytes": 0}
    with pytest.raises(CorpusError, match="no document of the new streams"):
        compare(model, extension.before, extension.after, extension.first_id, {"mean": mean(60)}, Texts([], chinese, "x"))


def test_only_causal_models_are_compared() -> None:
    torch.manual_seed(0)
    small = dict(vocab_size=40, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    masked = BertLMHeadModel(BertConfig(**small, initializer_range=0.5)).eval()
    encoder_decoder = T5ForConditionalGeneration(T5Config(vocab_size=40, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2))
    for model in (masked, encoder_decoder):
        with pytest.raises(ConfigError, match=rf"{type(model).__name__} has not, expected a causal model .*; set vocab.init: subword_mean"):
            check_causal(model)
    for config in MODELS.values():
        check_causal(model_of(config, 50))


def test_a_masked_model_grows_with_its_wordpiece_tokenizer(chinese: list[str]) -> None:
    tokenizer = train_wordpiece()
    base, learned = learned_on(tokenizer, chinese, 30)
    extension = Extension(tokenizer, extend(tokenizer, base, learned), learned.pieces, first_new_id(tokenizer), base)
    small = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    model = BertForMaskedLM(BertConfig(vocab_size=len(tokenizer), **small)).eval()
    torch.nn.init.normal_(model.cls.predictions.bias)
    old_in, old_bias = model.get_input_embeddings().weight.detach().clone(), model.cls.predictions.bias.detach().clone()
    with pytest.raises(ConfigError, match="BertForMaskedLM has not, expected a causal model"):
        grow(model, extension, VocabConfig(init="auto"), chinese, Texts(chinese[:3], [], "x"))
    facts, comparison = grow(model, extension, VocabConfig(init="subword_mean"), chinese, Texts([], [], "x"))
    assert facts["init"] == "subword_mean" and comparison is None and is_tied(model)
    first, weight, bias = extension.first_id, model.get_output_embeddings().weight, model.cls.predictions.bias
    assert (
        weight.shape[0] == len(bias) == len(extension.after) == first + len(learned.pieces) and bias is model.get_output_embeddings().bias
    )
    assert torch.equal(weight[:first], old_in) and torch.equal(bias[:first], old_bias)
    for row, ids in enumerate(base.merge(learned.pieces), first):
        assert torch.allclose(weight[row], old_in[ids].mean(0) if ids else old_in.mean(0), atol=1e-6)
    assert torch.allclose(bias[first:], old_bias.mean().expand(len(learned.pieces)))


def test_first_texts_are_short_whole_characters_and_bounded() -> None:
    texts = first_texts(["好" * 5000, "a", "", "文" * 5000, "never reached"], 4000)
    assert texts == ["好" * DOCUMENT_CHARS, "文" * 333]
    assert first_texts([]) == []


def streams(folder: Path, **new: list[str]) -> list[StreamConfig]:
    return [
        StreamConfig(name="zh", paths=[str(folder / "zh.txt")], role="new", **new),
        StreamConfig(name="en", paths=[str(folder / "en.txt")], role="old"),
    ]


def test_held_out_files_are_measured_on(tmp_path: Path) -> None:
    (tmp_path / "held.txt").write_text("\n".join(f"第{n}行　文字" for n in range(9)), encoding="utf-8")
    samples = {"zh": ["一二三", "四五六"], "en": ["one two", "three four"]}
    learn_texts, texts = held_out(streams(tmp_path, held_out=[str(tmp_path / "held.txt")]), str, samples)
    assert learn_texts == samples["zh"]
    assert len(texts.new) == 9 and texts.new[0].startswith("第0行")
    assert texts.old == ["three four"]
    assert texts.origin == "held-out files"


def test_without_held_out_files_the_samples_last_documents_are_measured_on(tmp_path: Path) -> None:
    samples = {"zh": [f"文字{n}" for n in range(6)], "en": []}
    learn_texts, texts = held_out(streams(tmp_path), str, samples)
    assert learn_texts == samples["zh"][:3] and texts.new == samples["zh"][:2:-1]
    assert texts.old == [] and texts.origin == "documents that pieces were learned from too"
    learn_texts, texts = held_out(streams(tmp_path), str, {"zh": ["只有一篇"], "en": []})
    assert learn_texts == texts.new == ["只有一篇"]
