"""Long texts are cut for encoding only where that changes no id."""

import re

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from zhlm.tokenizer.encode import TokenizersEncoder
from zhlm.tokenizer.long import CUTS, in_pieces, safe_cuts

TEXTS = [
    "今天天气很好，我们去公园散步。明天下雨。\n后天呢？还不知道。\n\n  x = 1\n好的。" * 3,
    "One line.\nAnother line, here.\r\nAnd 今天。",
] * 5


def trained(pre_tokenizer: pre_tokenizers.PreTokenizer) -> TokenizersEncoder:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizer
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=["<unk>"], show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    return TokenizersEncoder(tokenizer.to_str(), parallel=False)


def test_byte_level_tokenizers_may_be_cut_at_lines_and_before_chinese_punctuation() -> None:
    assert safe_cuts(trained(pre_tokenizers.ByteLevel(add_prefix_space=False)), TEXTS) == "|".join(CUTS)


def test_a_tokenizer_that_marks_the_beginning_of_a_text_is_never_cut() -> None:
    assert safe_cuts(trained(pre_tokenizers.Metaspace()), TEXTS) is None


def test_what_the_sample_does_not_show_is_not_believed() -> None:
    assert safe_cuts(trained(pre_tokenizers.ByteLevel(add_prefix_space=False)), ["no place to cut"]) is None


@pytest.mark.parametrize("characters", [1, 7, 50, 10_000])
def test_pieces_give_the_ids_of_the_whole(characters: int) -> None:
    encoder = trained(pre_tokenizers.ByteLevel(add_prefix_space=False))
    text = "\n".join(TEXTS)
    pieces = list(in_pieces(text, "|".join(CUTS), characters))
    assert "".join(pieces) == text and all(len(p) >= characters for p in pieces[:-1])
    assert np.array_equal(encoder.encode_batch(pieces)[0], encoder.encode_batch([text])[0])


def test_without_a_safe_place_the_text_stays_whole() -> None:
    assert list(in_pieces("abc" * 100, None, 10)) == ["abc" * 100]
    assert list(in_pieces("abc" * 100, CUTS[0], 10)) == ["abc" * 100]
    assert re.split(CUTS[0], "a\nb") == ["a\n", "b"]
