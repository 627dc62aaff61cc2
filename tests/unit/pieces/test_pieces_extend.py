# ruff: noqa: F401, F811 - fixtures are imported by name
from pathlib import Path

import gigatoken
import numpy as np
import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer, GPT2Config, PreTrainedTokenizerFast

from trained_tokenizers import chinese, english, learned_on, tokenizer
from zhlm.pieces.extend import extend, first_new_id

PROBES = ["今天早上，老师在公园里看书。", "It's  3 o'clock<|endoftext|>小王 \n\n 龘𠮷👍🏽", "張先生e\u0301\x00", ""]


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
