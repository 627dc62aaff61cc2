"""The objective in a config: a word or a section, and what is wrong with it in one line."""

from pathlib import Path
from typing import Any

import pytest

from zhlm.config.load import dump_config, load_config
from zhlm.config.objective import CausalConfig, MaskedConfig, PrefixConfig, SpanCorruptionConfig
from zhlm.errors import ConfigError

SMALLEST = "name: tiny\nbase: {model: some/model}\nstreams: [{name: zh, paths: [zh.txt], role: new}]\ntrain: {steps: 4}\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(SMALLEST, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("masked", MaskedConfig()),
        ("{name: masked, mask_share: 0.3, whole_words: true}", MaskedConfig(mask_share=0.3, whole_words=True)),
        ("span_corruption", SpanCorruptionConfig()),
        ("{name: prefix, min_share: 0.5, max_share: 0.5}", PrefixConfig(min_share=0.5, max_share=0.5)),
        ("causal", CausalConfig()),
        ("{name: causal}", CausalConfig()),
    ],
)
def test_a_word_or_a_section(file: Path, written: str, meant: Any) -> None:
    config = load_config(file, [f"objective={written}"])
    assert config.objective == meant
    file.write_text(dump_config(config), encoding="utf-8")
    assert load_config(file) == config


def test_without_a_word_it_is_causal(file: Path) -> None:
    assert load_config(file).objective == CausalConfig()


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("bert", "objective: name is 'bert', expected one of causal, masked, span_corruption, prefix; set objective: causal"),
        ("{mask_share: 0.2}", "objective: name is None, expected one of causal, masked, span_corruption, prefix; set objective: causal"),
        ("{name: masked, mask_shar: 0.2}", "unknown key objective.mask_shar; did you mean mask_share?"),
        ("{name: causal, mask_share: 0.2}", "unknown key objective.mask_share; known here: name"),
        ("{name: masked, mask_share: 1.0}", "objective.mask_share is 1.0; input should be less than 1"),
        ("{name: masked, random_share: 0.5}", "mask_token_share 0.8 and random_share 0.5 exceed 1 together; lower one of them"),
        ("{name: span_corruption, mean_span: 0.5}", "objective.mean_span is 0.5; input should be greater than or equal to 1"),
        ("{name: prefix, min_share: -0.1}", "objective.min_share is -0.1; input should be greater than or equal to 0"),
        ("{name: prefix, max_share: 1.5}", "objective.max_share is 1.5; input should be less than or equal to 1"),
        ("{name: prefix, min_share: 0.95}", "min_share 0.95 exceeds max_share 0.9; lower the first or raise the second"),
        ("[masked]", "objective is ['masked']"),
        ("{name: [masked]}", "objective: name is ['masked'], expected one of causal"),
    ],
)
def test_what_is_wrong_is_one_line(file: Path, written: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(file, [f"objective={written}"])
    assert said in str(caught.value) and "\n" not in str(caught.value)
