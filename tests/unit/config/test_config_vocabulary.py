"""What a vocab section may ask for together."""

from pathlib import Path

import pytest

from zhlm.config.load import dump_config, load_config
from zhlm.config.vocabulary import SpecialTokensConfig
from zhlm.errors import ConfigError

RUN = """
name: a
base: {model: gpt2}
streams: [{name: zh, role: new, paths: [zh.txt]}]
train: {steps: 1}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "a.yaml").write_text(RUN)
    return tmp_path / "a.yaml"


def test_beside_a_tokenizer_nothing_is_learned_and_the_dump_says_so(file: Path) -> None:
    config = load_config(file, ["vocab.tokenizer=folder/own"])
    assert config.vocab is not None and (config.vocab.add_rows, config.vocab.learns) == (0, False)
    file.write_text(dump_config(config), encoding="utf-8")
    assert load_config(file) == config


def test_special_tokens_are_texts_by_role_with_sentinels_behind(file: Path) -> None:
    config = load_config(file, ["vocab.special_tokens={pad_token: <pad>, bos_token: <s>, cls_token: <s>, sentinels: 2}"])
    assert config.vocab is not None and config.vocab.special_tokens is not None and config.vocab.learns
    assert config.vocab.special_tokens.texts == ["<s>", "<pad>", "<extra_id_0>", "<extra_id_1>"]
    assert config.vocab.special_tokens.roles == {"bos_token": "<s>", "pad_token": "<pad>", "cls_token": "<s>"}
    assert SpecialTokensConfig(sentinels=1).roles == {}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["vocab.add_rows=0"], "so nothing would be added"),
        (["vocab.tokenizer=own", "vocab.add_rows=5"], "which replaces the base's, with add_rows 5"),
        (["vocab.tokenizer=own", "vocab.word_list=words.txt"], "set tokenizer: null, or add_rows: 0 and word_list: null"),
        (["vocab.tokenizer=own", "vocab.init=similarity"], "rows start as subword_mean, mean, mean_noise or random"),
        (["vocab.tokenizer=own", "vocab.compare_init=true"], "compare_init True beside tokenizer"),
        (["vocab.special_tokens={}"], "no special token is named"),
        (["vocab.special_tokens={pad_token: <a pad>}"], "vocab.special_tokens.pad_token"),
        (["vocab.special_tokens={sentinels: -1}"], "vocab.special_tokens.sentinels is -1"),
        (["vocab.special_tokens={pad: <pad>}"], "known here: bos_token, cls_token"),
        (["vocab.special_tokens={mask_tokens: <m>}"], "did you mean mask_token?"),
        (["vocab.tokenizer=own", "train.lora={}", "train.embeddings=none"], "train.embeddings is none"),
    ],
)
def test_contradictions_are_one_line(file: Path, settings: list[str], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(file, settings)
    assert said in str(caught.value) and "\n" not in str(caught.value)
