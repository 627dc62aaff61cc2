# ruff: noqa: F401, F811 - fixtures are imported by name
import json
from collections import Counter
from pathlib import Path

import gigatoken
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BloomConfig,
    GPT2Config,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedTokenizerFast,
)
from vocab_tokenizers import chinese, english, gpt2_tokenizer, tokenizer

from zhlm.errors import VerificationError
from zhlm.model.resize import add_rows
from zhlm.vocab.bytelevel import ByteLevel, is_text, to_bytes
from zhlm.vocab.extend import extend, first_new_id
from zhlm.vocab.initialise import mean, subword_mean
from zhlm.vocab.learn import Learned, learn
from zhlm.vocab.verify import verify

PROBES = ["今天早上，老师在公园里看书。", "It's  3 o'clock<|endoftext|>小王 \n\n 龘𠮷👍🏽", "張先生e\u0301\x00", ""]


def learned_on(tokenizer: PreTrainedTokenizerFast, texts: list[str], num: int = 200) -> tuple[ByteLevel, Learned]:
    base = ByteLevel.of(tokenizer.backend_tokenizer)
    return base, learn(Counter(p for text in texts for p in base.pre_tokens(text)), base, num)


def test_old_ids_stay_and_new_ones_follow(
    tokenizer: PreTrainedTokenizerFast, chinese: list[str], english: list[str], tmp_path: Path
) -> None:
    base, learned = learned_on(tokenizer, chinese)
    extended = extend(tokenizer, base, learned)
    start = first_new_id(tokenizer)
    assert start == len(tokenizer)
    assert len(extended) == len(tokenizer) + 200
    assert {p: i for p, i in extended.get_vocab().items() if i < start} == tokenizer.get_vocab()
    assert extended.convert_ids_to_tokens(list(range(start, start + 200))) == learned.pieces
    assert extended.special_tokens_map == tokenizer.special_tokens_map
    assert extended.added_tokens_encoder == tokenizer.added_tokens_encoder
    assert (extended.model_max_length, extended.padding_side) == (77, tokenizer.padding_side)
    for text in english:
        assert extended.encode(text) == tokenizer.encode(text)
    assert sum(len(extended.encode(t)) for t in chinese) < 0.5 * sum(len(tokenizer.encode(t)) for t in chinese)


def test_a_saved_folder_gives_the_same_ids_everywhere(tokenizer: PreTrainedTokenizerFast, chinese: list[str], tmp_path: Path) -> None:
    base, learned = learned_on(tokenizer, chinese)
    extended = extend(tokenizer, base, learned)
    extended.save_pretrained(tmp_path)
    GPT2Config().save_pretrained(tmp_path)  # a model type with a tokenizer class of its own must not take over
    again = AutoTokenizer.from_pretrained(tmp_path)
    raw = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for text in [*chinese, *PROBES]:
        ids = extended.encode(text)
        assert again.encode(text) == ids
        assert raw.encode(text).ids == ids
    assert "zhlm-tokenizer-" not in (tmp_path / "tokenizer_config.json").read_text()


@pytest.mark.parametrize("tokenizer", ["gpt2", "qwen", "llama3"], indirect=True)
def test_gigatoken_agrees(tokenizer: PreTrainedTokenizerFast, chinese: list[str]) -> None:
    base, learned = learned_on(tokenizer, chinese)
    text = extend(tokenizer, base, learned).backend_tokenizer.to_str()
    expected = [e.ids for e in Tokenizer.from_str(text).encode_batch([*chinese, *PROBES], add_special_tokens=False)]
    layout = gigatoken.Tokenizer.from_json(text).encode_batch([*chinese, *PROBES], parallel=False).layout
    assert np.asarray(layout.content.data).tolist() == [row for rows in expected for row in rows]


def test_saving_writes_nothing_to_the_terminal(
    tokenizer: PreTrainedTokenizerFast, chinese: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    extend(tokenizer, *learned_on(tokenizer, chinese)).save_pretrained(tmp_path)
    assert "hole" not in "".join(capfd.readouterr())


def test_the_proof(tokenizer: PreTrainedTokenizerFast, chinese: list[str], english: list[str]) -> None:
    base, learned = learned_on(tokenizer, chinese)
    proof = verify(tokenizer, extend(tokenizer, base, learned), learned, first_new_id(tokenizer), chinese, english)
    assert proof.new_pieces == 200
    assert proof.unreachable == []
    assert proof.reachable == 200
    prefix_space = tokenizer.backend_tokenizer.encode("q").tokens == ["Ġ", "q"]
    assert (proof.alone < 20) if prefix_space else (proof.alone > 120)
    assert proof.old_texts == proof.old_texts_same == len(english)
    assert proof.old_tokens_new_share == 0
    assert 0 < proof.on_sample <= 200
    json.dumps(proof.as_dict())


def test_no_pieces_is_an_extension_too(gpt2_tokenizer: PreTrainedTokenizerFast, english: list[str]) -> None:
    base = ByteLevel.of(gpt2_tokenizer.backend_tokenizer)
    nothing = Learned([], [], [], 0, 0)
    extended = extend(gpt2_tokenizer, base, nothing)
    proof = verify(gpt2_tokenizer, extended, nothing, first_new_id(gpt2_tokenizer), english, [])
    assert (proof.new_pieces, proof.reachable, proof.old_texts_same) == (0, 0, 0)
    assert extended.get_vocab() == gpt2_tokenizer.get_vocab()


def test_a_piece_that_nothing_produces_is_found(gpt2_tokenizer: PreTrainedTokenizerFast, chinese: list[str]) -> None:
    base, learned = learned_on(gpt2_tokenizer, chinese, 20)
    # A merge across the tokenizer's own cut between letters and digits can never happen.
    broken = Learned([*learned.pieces, "q7"], [*learned.merges, ("q", "7")], [*learned.counts, 2], 0, 0)
    proof = verify(gpt2_tokenizer, extend(gpt2_tokenizer, base, broken), broken, first_new_id(gpt2_tokenizer), chinese, [])
    assert proof.unreachable == ["b'q7'"]
    assert proof.reachable == 20


def test_an_extension_that_changes_the_cutting_is_refused(gpt2_tokenizer: PreTrainedTokenizerFast, chinese: list[str]) -> None:
    base, learned = learned_on(gpt2_tokenizer, chinese, 20)
    extended = extend(gpt2_tokenizer, base, learned)
    spec = json.loads(extended.backend_tokenizer.to_str())
    spec["model"]["merges"] = [merge for merge in spec["model"]["merges"] if "".join(merge) != "Ġreads"]
    wrong = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(spec)))
    with pytest.raises(VerificationError, match="cuts text in other places"):
        verify(gpt2_tokenizer, wrong, learned, first_new_id(gpt2_tokenizer), chinese, ["The teacher reads."])


def test_subword_mean_is_the_mean_of_the_spelling(gpt2_tokenizer: PreTrainedTokenizerFast, chinese: list[str]) -> None:
    base, learned = learned_on(gpt2_tokenizer, chinese)
    old_VD = torch.randn(len(gpt2_tokenizer), 8)
    rows_ND = subword_mean(learned.pieces, base)(old_VD)
    for piece, row_D in zip(learned.pieces, rows_ND, strict=True):
        if is_text(to_bytes(piece)):
            spelling = gpt2_tokenizer.encode(to_bytes(piece).decode(), add_special_tokens=False)
        else:
            spelling = [gpt2_tokenizer.get_vocab()[symbol] for symbol in piece]
        assert torch.allclose(row_D, old_VD[spelling].mean(0), atol=1e-6)
    assert torch.equal(mean(3)(old_VD), old_VD.mean(0).expand(3, -1))


MODELS = {
    "llama": LlamaConfig(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2),
    "llama_tied": LlamaConfig(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, tie_word_embeddings=True),
    "gpt2": GPT2Config(n_positions=128, n_embd=16, n_layer=1, n_head=2),
    "bloom": BloomConfig(hidden_size=16, n_layer=1, n_head=2),
}


@pytest.mark.parametrize("config", MODELS.values(), ids=MODELS.keys())
def test_the_whole_folder_works_in_plain_transformers(
    config: PretrainedConfig, gpt2_tokenizer: PreTrainedTokenizerFast, chinese: list[str], tmp_path: Path
) -> None:
    config.vocab_size = len(gpt2_tokenizer)
    config.bos_token_id = config.eos_token_id = gpt2_tokenizer.eos_token_id
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    base, learned = learned_on(gpt2_tokenizer, chinese, 50)
    ids = gpt2_tokenizer("The teacher reads.", return_tensors="pt")
    with torch.no_grad():
        before = model(**ids).logits
    add_rows(model, len(gpt2_tokenizer), 50, subword_mean(learned.pieces, base), pad_to_multiple=64)
    model.save_pretrained(tmp_path)
    extend(gpt2_tokenizer, base, learned).save_pretrained(tmp_path)

    again, tokenizer = AutoModelForCausalLM.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    assert again.config.vocab_size == again.get_input_embeddings().weight.shape[0] >= len(tokenizer)
    with torch.no_grad():
        assert torch.equal(again(**tokenizer("The teacher reads.", return_tensors="pt")).logits[..., : len(gpt2_tokenizer)], before)
        said = again.generate(**tokenizer(chinese[0][:20], return_tensors="pt"), max_new_tokens=3, do_sample=False, pad_token_id=0)
    assert len(tokenizer.decode(said[0])) > len(chinese[0][:20])
