"""A base that is replaced in its place is noticed, by content; a copy, a new time or a new model card is not."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from conftest import save_tiny_llama
from zhlm.errors import BaseModelError
from zhlm.model.files import Kind, check_hub_name, listing_of_base


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return save_tiny_llama(tmp_path / "base")


def fingerprints(folder: Path, *kinds: Kind) -> dict[str, str]:
    return {Path(path).name: fingerprint for path, (fingerprint,) in listing_of_base(str(folder), kinds).items()}


def test_each_kind_has_its_files(base: Path) -> None:
    assert set(fingerprints(base, "weights")) == {"config.json", "model.safetensors"}
    assert set(fingerprints(base, "tokenizer")) == {"tokenizer.json", "tokenizer_config.json"}
    assert len(fingerprints(base, "weights", "tokenizer")) == 4
    assert listing_of_base("Qwen/Qwen3-0.6B", ["weights"]) == {} == listing_of_base(str(base / "none"), ["weights"])


def test_other_weights_of_the_same_size_are_another_base(base: Path) -> None:
    before, path = fingerprints(base, "weights"), base / "model.safetensors"
    times, size = path.stat(), path.stat().st_size
    tensors = load_file(path)
    name = sorted(tensors)[-1]
    save_file(tensors | {name: tensors[name] + torch.tensor(1e-3)}, path, metadata={"format": "pt"})
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    after = fingerprints(base, "weights")
    assert path.stat().st_size == size and {n for n in after if after[n] != before[n]} == {"model.safetensors"}


def test_a_copy_a_new_time_a_card_and_a_chat_template_change_nothing(base: Path, tmp_path: Path) -> None:
    before = fingerprints(base, "weights", "tokenizer")
    shutil.copytree(base, tmp_path / "copy")
    (base / "README.md").write_text("a card\n", encoding="utf-8")
    settings = json.loads((base / "tokenizer_config.json").read_text(encoding="utf-8"))
    (base / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": "{{ messages }}"}), encoding="utf-8")
    os.utime(base / "model.safetensors", (0, 0))
    assert fingerprints(base, "weights", "tokenizer") == before == fingerprints(tmp_path / "copy", "weights", "tokenizer")
    (base / "tokenizer_config.json").write_text(json.dumps(settings | {"eos_token": "<bos>"}), encoding="utf-8")
    assert fingerprints(base, "tokenizer")["tokenizer_config.json"] != before["tokenizer_config.json"]
    (base / "tokenizer_config.json").write_text("[1]", encoding="utf-8")
    assert fingerprints(base, "tokenizer")["tokenizer_config.json"] != before["tokenizer_config.json"]


@pytest.mark.parametrize("name", ["./base", "../base", ".base", "/no/base", "~/no-base", "~nobody/base", "a/b/c", "gone/", "runs/base"])
def test_a_name_that_means_a_folder_is_no_hub_name(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BaseModelError, match=rf"base: the folder {name} does not exist.*; correct base\.model, or ") as caught:
        check_hub_name(name)
    assert "\n" not in str(caught.value)
    assert ("start where no folder is named runs" in str(caught.value)) == name.startswith("runs/")


def test_a_hub_name_is_none_of_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "org").write_text("a file\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    for name in ("Qwen/Qwen3-0.6B", "gpt2", "runs", "org/name", "runs.v2/base"):
        check_hub_name(name)
