"""Special tokens: what stands for bos and eos, and how a tokenizer gets those that it lacks."""

from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from tiny_bases import bert_tokenizer, gpt2_tokenizer, t5_tokenizer
from trained_tokenizers import train_sentencepiece
from zhlm.config.vocabulary import SpecialTokensConfig
from zhlm.errors import ConfigError
from zhlm.tokenizer.load import load_tokenizer, vocabulary_of
from zhlm.tokenizer.plain import as_plain
from zhlm.tokenizer.special import add_special_tokens, document_token, generation_ids


def test_bert_begins_with_cls_and_ends_with_sep_and_own_tokens_come_first() -> None:
    bert, own = bert_tokenizer(), bert_tokenizer(eos_token="[SEP]", bos_token="[unused1]")
    assert document_token(bert, "bos") == ("cls", "[CLS]", bert.cls_token_id)
    assert document_token(bert, "eos") == ("sep", "[SEP]", bert.sep_token_id)
    assert generation_ids(bert) == {"bos_token_id": bert.cls_token_id, "eos_token_id": bert.sep_token_id, "pad_token_id": 0}
    assert document_token(own, "bos") == ("bos", "[unused1]", 1) and document_token(own, "eos") == ("eos", "[SEP]", bert.sep_token_id)
    assert document_token(bert, "none") is None


def test_gpt2_pads_with_what_ends_a_text_and_t5_has_no_beginning() -> None:
    end = gpt2_tokenizer().eos_token_id
    assert generation_ids(gpt2_tokenizer()) == {"bos_token_id": end, "eos_token_id": end, "pad_token_id": end}
    assert generation_ids(t5_tokenizer()) == {"bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0}


@pytest.mark.parametrize("make", [gpt2_tokenizer, bert_tokenizer, t5_tokenizer, lambda: train_sentencepiece("llama")])
def test_new_ones_are_behind_all_others_and_stay_when_loaded_again(make: type[PreTrainedTokenizerFast], tmp_path: Path) -> None:
    before = make()
    after, first = as_plain(before), vocabulary_of(before)
    found = add_special_tokens(after, SpecialTokensConfig(pad_token="<|pad|>", mask_token="<|mask|>", sep_token="<|pad|>", sentinels=3))
    sentinels = ["<extra_id_0>", "<extra_id_1>", "<extra_id_2>"]
    new = ["<|pad|>", "<|mask|>", *([] if make is t5_tokenizer else sentinels)]
    assert found.new == new and [found.ids[text] for text in new] == list(range(first, first + len(new)))
    assert list(found.marked) == new
    after.save_pretrained(tmp_path)
    again = load_tokenizer(str(tmp_path))
    assert again.get_vocab() == before.get_vocab() | {text: found.ids[text] for text in new}
    assert (again.pad_token, again.mask_token_id, again.sep_token) == ("<|pad|>", first + 1, "<|pad|>")
    assert again.convert_tokens_to_ids(sentinels) == [found.ids[text] for text in sentinels]
    assert again("今天a<extra_id_1>b", add_special_tokens=False)["input_ids"].count(found.ids["<extra_id_1>"]) == 1
    assert "<|mask|>" not in again.decode([first + 1], skip_special_tokens=True)
    assert (again.model_input_names, again.padding_side) == (before.model_input_names, before.padding_side)


def test_a_reserved_place_is_taken_without_a_new_row_and_a_piece_of_text_is_refused() -> None:
    bert = as_plain(bert_tokenizer())
    found = add_special_tokens(bert, SpecialTokensConfig(bos_token="[unused1]", eos_token="[SEP]"))
    assert (found.new, found.marked) == ([], {"[unused1]": 1})
    assert document_token(bert, "bos") == ("bos", "[unused1]", 1)
    with pytest.raises(ConfigError, match=r"special_tokens names 'teacher', which is an ordinary piece .*; write <teacher>"):
        add_special_tokens(bert, SpecialTokensConfig(pad_token="teacher"))
