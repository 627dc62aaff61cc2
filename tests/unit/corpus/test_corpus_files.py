"""Which files a corpus is, and every way of naming one wrongly."""

import gzip
import re
import shutil
from pathlib import Path

import pytest

from zhlm.corpus import open as opening
from zhlm.corpus.files import SourceFile, find_files
from zhlm.corpus.open import glob_pattern
from zhlm.errors import CorpusError


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    folder = tmp_path / "语料"
    (folder / "deep" / "er").mkdir(parents=True)
    (folder / "b.txt").write_text("二\n", encoding="utf-8")
    (folder / "a.jsonl").write_text('{"text": "一"}\n', encoding="utf-8")
    (folder / "deep" / "er" / "c.parquet").write_bytes(b"PAR1")
    (folder / "deep" / "d.txt.gz").write_bytes(gzip.compress("四\n".encode()))
    (folder / "README.md").write_text("notes")
    (folder / "_SUCCESS").touch()
    (folder / ".hidden.txt").write_text("no")
    return folder


def names(found: list[SourceFile]) -> list[str]:
    return [Path(f.path).name for f in found]


def test_a_folder_is_searched_to_the_bottom_and_sorted(corpus: Path) -> None:
    found = find_files([str(corpus)])
    assert names(found) == ["a.jsonl", "b.txt", "c.parquet", "d.txt.gz"] or names(found) == ["a.jsonl", "b.txt", "d.txt.gz", "c.parquet"]
    assert [f.path for f in found] == sorted(f.path for f in found)
    by_name = {Path(f.path).name: f for f in found}
    assert (by_name["d.txt.gz"].format, by_name["d.txt.gz"].compression) == ("text", "gzip")
    assert (by_name["c.parquet"].format, by_name["c.parquet"].compression) == ("parquet", "none")


def test_each_file_once_however_it_is_named(corpus: Path) -> None:
    paths = [str(corpus), str(corpus / "*.txt"), str(corpus / "deep" / ".." / "b.txt"), f"file://{corpus}/a.jsonl"]
    assert find_files(paths) == find_files([str(corpus)])


def test_globs_reach_files_folders_and_depths(corpus: Path) -> None:
    assert names(find_files([str(corpus / "*.txt")])) == ["b.txt"]
    assert names(find_files([str(corpus / "de*")])) == ["d.txt.gz", "c.parquet"]
    assert names(find_files([str(corpus / "**" / "*.parquet")])) == ["c.parquet"]


def test_a_relative_path_becomes_absolute(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(corpus)
    assert find_files(["b.txt"])[0].path == str(corpus / "b.txt")


def test_a_fingerprint_survives_copying_and_sees_a_change(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(corpus, tmp_path / "copy")
    prints = [f.fingerprint for f in find_files([str(corpus)])]
    assert [f.fingerprint for f in find_files([str(tmp_path / "copy")])] == prints
    (corpus / "b.txt").write_text("三\n", encoding="utf-8")
    assert [f.fingerprint for f in find_files([str(corpus)])] != prints

    monkeypatch.setattr(opening, "WHOLE_BYTES", 10)
    monkeypatch.setattr(opening, "SAMPLE_BYTES", 4)
    large = tmp_path / "large.txt"
    large.write_bytes(b"x" * 1000)
    before = find_files([str(large)])[0].fingerprint
    large.write_bytes(b"x" * 999 + b"y")
    assert find_files([str(large)])[0].fingerprint != before


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("missing.txt", "does not exist"),
        ("*.nothing", "matches no file"),
        ("nothing", "holds no corpus file"),
        ("empty.jsonl", "is empty (0 bytes)"),
        ("table.csv", "ending that is not known"),
        ("archive.parquet.gz", "ending that is not known"),
        ("ne?er/*.txt", "matches no file"),
    ],
)
def test_what_is_not_there_or_not_known_is_one_line(tmp_path: Path, name: str, said: str) -> None:
    (tmp_path / "nothing").mkdir()
    (tmp_path / "nothing" / "notes.md").write_text("x")
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "table.csv").write_text("a,b")
    (tmp_path / "archive.parquet.gz").write_bytes(b"x")
    with pytest.raises(CorpusError, match=r"^corpus: ") as caught:
        find_files([str(tmp_path / name)])
    assert said in str(caught.value)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_remote_scheme_is_one_line() -> None:
    with pytest.raises(CorpusError, match="cannot be reached") as caught:
        find_files(["nowhere://bucket/x.txt"])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("pattern", "yes", "no"),
    [
        ("b/*.txt", "b/a.txt", "b/c/a.txt"),
        ("b/**/*.txt", "b/c/d/a.txt", "b/a.jsonl"),
        ("b/**/a.txt", "b/a.txt", "b/ba.txt"),
        ("b/[ab]?.txt", "b/a1.txt", "b/c1.txt"),
        ("b/[!ab].txt", "b/c.txt", "b/a.txt"),
    ],
)
def test_remote_globs_follow_the_local_rules(pattern: str, yes: str, no: str) -> None:
    assert re.fullmatch(glob_pattern(pattern), yes)
    assert not re.fullmatch(glob_pattern(pattern), no)
