"""Tokens of one tokenizer found in another, whatever their kinds."""

import pytest

from tiny_bases import bert_tokenizer, gpt2_tokenizer, t5_tokenizer
from trained_tokenizers import chinese_texts, learned_on, train, train_sentencepiece, train_wordpiece
from zhlm.pieces.extend import extend
from zhlm.pieces.match import match

EVERY = 10**9
"""Rows of an embedding that has all."""


def test_the_same_tokenizer_is_the_same_throughout() -> None:
    for tokenizer in (gpt2_tokenizer(), bert_tokenizer(), t5_tokenizer(), train_sentencepiece("llama")):
        found = match(tokenizer, tokenizer, EVERY)
        assert found.same == {row: row for row in tokenizer.get_vocab().values()}
        assert found.old_rows_stay and not found.spelled


def test_more_pieces_behind_leave_the_old_ones_in_place() -> None:
    before = train("gpt2")
    base, learned = learned_on(before, chinese_texts(), 20)
    after = extend(before, base, learned)
    found = match(before, after, EVERY)
    assert found.old_rows_stay and len(found.same) == len(before)
    assert [found.spelled[len(before) + n] for n in range(20)] == base.merge(learned.pieces)
    back = match(after, before, EVERY)
    assert (back.moved, back.old_rows_stay, back.spelled) == (20, False, {})


def test_bert_in_the_place_of_byte_level() -> None:
    before, after = gpt2_tokenizer(), bert_tokenizer()
    found, old, new = match(before, after, EVERY), before.get_vocab(), after.get_vocab()
    assert found.moved > 0 and not found.old_rows_stay
    assert found.same[new["teacher"]] == old["Ġteacher"], "a word begins behind a space"
    assert found.same[new["##e"]] == old["e"] and found.same[new[","]] == old[","]
    spelled = before("天", add_special_tokens=False)["input_ids"]
    assert len(spelled) == 3 and found.spelled[new["天"]] == found.spelled[new["##天"]] == spelled
    assert found.spelled[new["[CLS]"]] == found.spelled[new["[SEP]"]] == [before.eos_token_id], "both begin and end texts"
    assert found.spelled[new["[PAD]"]] == found.spelled[new["[unused1]"]] == []
    assert {*found.same} | {*found.spelled} == {*new.values()}


def test_byte_level_in_the_place_of_bert_and_of_sentencepiece() -> None:
    after = gpt2_tokenizer()
    new = after.get_vocab()
    before = bert_tokenizer()
    found, old = match(before, after, EVERY), before.get_vocab()
    assert found.same[new["Ġteacher"]] == old["teacher"] and found.same[new["e"]] == old["##e"]
    assert found.spelled[new["T"]] == [old["t"]], "read in lower case"
    assert found.spelled[new["ä"]] == [], "a byte that only a part of a character has"
    before = train_sentencepiece("llama")
    found, old = match(before, after, EVERY), before.get_vocab()
    assert (
        found.same[new["Ġteacher"]] == old["\u2581teacher"] and found.same[new["ä"]] == old["<0xE4>"] and found.same[new["e"]] == old["e"]
    )


def test_unigram_spells_too() -> None:
    before, after = t5_tokenizer(), train_wordpiece()
    found, old, new = match(before, after, EVERY), before.get_vocab(), after.get_vocab()
    assert found.same[new["teacher"]] == old["\u2581teacher"] and found.spelled[new["[SEP]"]] == [1]
    assert all(0 <= row < len(old) for ids in found.spelled.values() for row in ids)


@pytest.mark.parametrize("rows", [5, 60])
def test_ids_without_a_row_have_nothing_to_give(rows: int) -> None:
    before = bert_tokenizer()
    found = match(before, bert_tokenizer(), rows)
    assert found.same == {row: row for row in range(rows)}
    assert all(row < rows for ids in found.spelled.values() for row in ids)
