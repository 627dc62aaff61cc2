"""Which file changed: named, and only where its content did."""

import json
import os
import shutil
from pathlib import Path

import pytest

from conftest import run_data
from zhlm.config.schema import RunConfig
from zhlm.corpus.changes import changed_since, changes, files_of_stage, listing_of
from zhlm.corpus.files import find_files


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("a1 b2", "a1 b2", []),
        ("a1 b2", "b1 a2", []),  # only names
        ("a1 b2", "x1 b2", []),
        ("a1 b2", "a3 b2", ["a changed"]),
        ("a1", "a1 b2", ["b is new"]),
        ("a1 b2", "a1", ["b is gone"]),
        ("a1 b2", "a2", ["a changed"]),  # b took its place
        ("a1", "a1 b1", ["b is new"]),  # a copy
        ("a1 b1", "b1", ["a is gone"]),
        ("a1 b2 c3", "a4 c3 d5", ["a changed", "d is new", "b is gone"]),
    ],
)
def test_files_are_told_apart_by_content(old: str, new: str, told: list[str]) -> None:
    was, now = ({name[0]: [name[1]] for name in names.split()} for names in (old, new))
    assert changes(was, now) == told


def test_only_a_file_of_other_content_changed_since(tmp_path: Path) -> None:
    for name in ("same.txt", "touched.txt", "other.txt", "gone.txt"):
        (tmp_path / name).write_text(f"{name}\n", encoding="utf-8")
    listing = json.loads(json.dumps(listing_of(find_files([str(tmp_path)]))))
    os.utime(tmp_path / "touched.txt", (0, 0))
    (tmp_path / "other.txt").write_text("different\n", encoding="utf-8")
    (tmp_path / "gone.txt").unlink()
    assert changed_since(listing, "line") == [f"{tmp_path}/gone.txt cannot be read any more", f"{tmp_path}/other.txt changed"]
    assert changed_since({"s3://nowhere/a.txt": ["1234"]}, "line") == [], "remote files are not asked for"


def test_a_stage_reads_what_the_config_names_and_no_sample(tmp_path: Path) -> None:
    for name in ("zh.txt", "en.txt", "held.txt"):
        shutil.copy(__file__, tmp_path / name)
    data = run_data(tmp_path)
    data["streams"][0] |= {"held_out": [str(tmp_path / "held.txt")]}
    data["streams"][1] |= {"paths": ["sample://en"]}
    config = RunConfig.model_validate_json(json.dumps(data | {"sample": {"corpus": {}}}))
    assert list(files_of_stage(config, "pack")) == ["zh", "zh.held_out"]
    assert list(files_of_stage(config, "vocab")) == ["zh"] and files_of_stage(config, "train") == {}
    words = RunConfig.model_validate_json(json.dumps(data | {"sample": {"corpus": {}}, "vocab": {"word_list": str(tmp_path / "held.txt")}}))
    assert list(files_of_stage(words, "vocab")) == ["vocab.word_list", "zh"]
