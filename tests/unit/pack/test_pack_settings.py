"""Settings that do not fit the corpus, the tokenizer or the model are refused before Ray does anything."""

import json
from pathlib import Path
from typing import Any

import pytest

from conftest import run_data, save_tiny_llama
from zhlm.config.schema import RunConfig
from zhlm.errors import BaseModelError, ConfigError, CorpusError
from zhlm.pack.job import run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("settings")
    save_tiny_llama(folder / "base", positions=64)
    for name in ("zh", "en"):
        (folder / f"{name}.txt").write_text(f"{name} one\n{name} two\n")
    without_end = save_tiny_llama(folder / "without_end")
    settings = json.loads((without_end / "tokenizer_config.json").read_text())
    del settings["eos_token"]
    (without_end / "tokenizer_config.json").write_text(json.dumps(settings))
    without_tokenizer = save_tiny_llama(folder / "without_tokenizer")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (without_tokenizer / name).unlink()
    return folder


@pytest.mark.parametrize(
    ("changes", "kind", "said"),
    [
        ({"pack": {"block_tokens": 128}}, ConfigError, "block_tokens 128 exceeds the 64 positions"),
        ({"pack": {"validation_share": 0.0}}, ConfigError, "stream zh has no held_out files and pack.validation_share is 0"),
        ({"base": {"model": "{}/without_end"}}, ConfigError, "has no eos token; set pack.document_end: none"),
        ({"base": {"model": "{}/without_tokenizer"}}, BaseModelError, "has none of tokenizer.json"),
        ({"base": {"model": "{}/nowhere"}}, BaseModelError, "does not exist"),
        ({"zh": {"paths": ["{}/nowhere.txt"]}}, CorpusError, "nowhere.txt does not exist"),
        ({"zh": {"held_out": ["{}/zh.*"]}}, CorpusError, "every file of stream zh is also in its held_out"),
        ({"zh": {"held_out": ["{}/*.held"]}}, CorpusError, "matches no file"),
    ],
)
def test_a_wrong_setting_is_one_line(folder: Path, changes: dict[str, Any], kind: type[Exception], said: str) -> None:
    data = run_data(folder)
    changes = json.loads(json.dumps(changes).replace("{}", str(folder)))
    for section, values in changes.items():
        (data["streams"][0] if section == "zh" else data[section]).update(values)
    with pytest.raises(kind) as caught:
        run(RunConfig.model_validate_json(json.dumps(data)), lambda _: None)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
