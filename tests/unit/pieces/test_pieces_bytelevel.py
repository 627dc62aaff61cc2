# ruff: noqa: F401, F811 - fixtures are imported by name
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from trained_tokenizers import chinese, tokenizer
from zhlm.errors import BaseModelError
from zhlm.pieces.bytelevel import ALPHABET, ByteLevel, is_fragment, is_text, to_bytes, to_symbols


def test_the_alphabet_is_that_of_the_tokenizers_library() -> None:
    assert sorted(ALPHABET) == sorted(pre_tokenizers.ByteLevel.alphabet())
    text = "中文 é\x00\xad\n𠮷"
    assert pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(text)[0][0] == to_symbols(text.encode())
    assert to_bytes(to_symbols(bytes(range(256)))) == bytes(range(256))


def test_every_cut_of_a_character_is_a_fragment_and_nothing_else_is() -> None:
    for char in "é中𠮷\u07ff\uffff\U0010ffff":
        data = char.encode()
        cuts = {data[i:j] for i in range(len(data)) for j in range(i + 1, len(data) + 1)} - {data}
        assert all(is_fragment(cut) and not is_text(cut) for cut in cuts)
        assert is_text(data) and not is_fragment(data)
    one = "中".encode()
    assert not any(is_fragment(data) for data in (one[1:] + one[:1], b"a" + one[:2], one[2:] + b"a", b"a", b"", b"\xff", one + one[:1]))


def test_merging_pre_tokens_gives_the_ids_of_the_whole_tokenizer(tokenizer: PreTrainedTokenizerFast, chinese: list[str]) -> None:
    base = ByteLevel.of(tokenizer.backend_tokenizer)
    for text in [*chinese[:20], "It's 3 o'clock;  e\u0301 \n\n  end "]:
        ids = [row for rows in base.merge(base.pre_tokens(text)) for row in rows]
        assert ids == tokenizer.encode(text, add_special_tokens=False)


def test_an_alphabet_with_holes_is_refused() -> None:
    backend = Tokenizer(models.BPE({"a": 0}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel()
    with pytest.raises(BaseModelError, match="lacks 242 of the 256 byte symbols"):
        ByteLevel.of(backend)
