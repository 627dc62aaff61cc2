# ruff: noqa: F401, F811 - fixtures are imported by name
import pytest
from transformers import PreTrainedTokenizerFast

from trained_tokenizers import chinese, english, gpt2_tokenizer, other_tokenizer, train_wordpiece
from zhlm.errors import CorpusError
from zhlm.pieces.kinds import take_apart
from zhlm.pieces.worth import advice, check_script, per_character, unknown_share
from zhlm.tokenizer.encode import TokenizersEncoder
from zhlm.tokenizer.load import tokenizer_json


def test_text_of_a_known_script_is_refused(other_tokenizer: PreTrainedTokenizerFast, chinese: list[str], english: list[str]) -> None:
    base = take_apart(other_tokenizer.backend_tokenizer)
    check_script(base, chinese, ["zh"])
    check_script(base, [*english, "中文"], ["zh"])
    with pytest.raises(CorpusError, match=r"a token for each letter of zh, en \(eto.* are the commonest\).* set vocab\.force: true"):
        check_script(base, english, ["zh", "en"])
    with pytest.raises(CorpusError, match="none at all are the commonest"):
        check_script(base, ["123 ..."], ["zh"])


def test_advice(gpt2_tokenizer: PreTrainedTokenizerFast, chinese: list[str], english: list[str]) -> None:
    encoder = TokenizersEncoder(tokenizer_json(gpt2_tokenizer))
    values = per_character(encoder, {"zh": chinese, "en": english, "none": []})
    assert values["zh"] > 2 and 0 < values["en"] < 0.5 and values["none"] == 0
    assert advice({"zh": values["zh"], "en": values["en"]}, 0.0) is None
    assert "tokens per character of en (below 0.9); keeping" in str(advice({"en": values["en"]}, 0.0))
    assert advice({"en": values["en"]}, 0.02) is None


def test_unknown_words_are_not_read_well(chinese: list[str], english: list[str]) -> None:
    tokenizer = train_wordpiece()
    base, encoder = take_apart(tokenizer.backend_tokenizer), TokenizersEncoder(tokenizer_json(tokenizer))
    assert unknown_share(base, encoder.encode_batch(chinese)[0]) > 0.3
    assert unknown_share(base, encoder.encode_batch([])[0]) == 0
