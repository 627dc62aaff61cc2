"""Rows without text in streams that say `skip_non_text`: told of, and left out."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from zhlm.config.schema import StreamConfig
from zhlm.corpus import read
from zhlm.corpus.files import SourceFile, find_files
from zhlm.corpus.parts import parts_of
from zhlm.corpus.read import read_documents, read_piece
from zhlm.corpus.streams import files_of
from zhlm.errors import CorpusError

VALUES: list[Any] = ["一", None, "", None, "龍𠮷", None]


def jsonl(path: Path, values: list[Any]) -> None:
    path.write_text("".join(json.dumps({"completion": value}, ensure_ascii=False) + "\n" for value in values), encoding="utf-8")


def saved(path: Path) -> None:
    datasets.disable_progress_bars()
    datasets.Dataset.from_dict({"completion": VALUES}).save_to_disk(path)


WRITERS: dict[str, Callable[[Path], None]] = {
    "a.jsonl": lambda path: jsonl(path, VALUES),
    "a.parquet": lambda path: pq.write_table(pa.table({"completion": VALUES}), path, row_group_size=4),
    "saved": saved,
}


def told_of(files: list[SourceFile], field: str = "completion") -> tuple[list[tuple[str, int]], list[tuple[int, Any]]]:
    """Texts and what was skipped, both with their rows."""
    skipped: list[tuple[int, Any]] = []
    pieces = [piece for part in parts_of(files, 1 << 20) for piece in part.pieces]
    batches = [batch for piece in pieces for batch in read_piece(piece, field, skip=lambda path, row, value: skipped.append((row, value)))]
    return [(text, row) for batch in batches for text, row in zip(batch.texts, batch.rows, strict=True)], skipped


@pytest.mark.parametrize("name", WRITERS)
def test_rows_without_text_are_told_of(tmp_path: Path, name: str) -> None:
    WRITERS[name](tmp_path / name)
    files = find_files([str(tmp_path / name)])
    texts, skipped = told_of(files)
    assert texts == [("一", 1), ("", 3), ("龍𠮷", 5)]
    assert skipped == [(2, None), (4, None), (6, None)]
    assert [d.text for file in files for batch in read_documents(file, skip_non_text=True) for d in batch] == ["一", "", "龍𠮷"]
    with pytest.raises(CorpusError, match=r" 2: .*null.*skip_non_text: true"):
        list(read_piece(parts_of(files, 1 << 20)[0].pieces[0], "completion"))


def test_lines_of_json_with_anything_in_the_field_or_without_it(tmp_path: Path) -> None:
    jsonl(tmp_path / "a.jsonl", ["一", 7, 0.5, True, ["x"], {"y": "z"}])
    with open(tmp_path / "a.jsonl", "a", encoding="utf-8") as file:
        file.write('\n{"title": "x"}\n')
    texts, skipped = told_of(find_files([str(tmp_path)]))
    assert texts == [("一", 1)]
    assert skipped == [(2, 7), (3, 0.5), (4, True), (5, ["x"]), (6, {"y": "z"}), (8, None)]


def test_a_broken_line_stays_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"completion": null}\n{"completion": \n')
    with pytest.raises(CorpusError, match="line 2: not valid JSON"):
        told_of(find_files([str(tmp_path)]))


def test_a_file_without_one_text(tmp_path: Path) -> None:
    pq.write_table(pa.table({"completion": [None, None]}), tmp_path / "a.parquet")
    assert told_of(find_files([str(tmp_path)])) == ([], [(1, None), (2, None)])


def test_a_column_of_numbers_stays_an_error(tmp_path: Path) -> None:
    pq.write_table(pa.table({"completion": [1, 2]}), tmp_path / "a.parquet")
    with pytest.raises(CorpusError, match="has the type int64"):
        told_of(find_files([str(tmp_path)]))


def test_a_dataset_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    (tmp_path / "repository").mkdir()
    pq.write_table(pa.table({"completion": VALUES}), tmp_path / "repository" / "train.parquet")
    stream = StreamConfig(name="zh", role="new", dataset=str(tmp_path / "repository"))
    texts, skipped = told_of(files_of(stream, str))
    assert [text for text, _ in texts] == ["一", "", "龍𠮷"] and len(skipped) == 3


def test_lines_that_are_text_keep_the_fast_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jsonl(tmp_path / "a.jsonl", ["一"] * 9)
    monkeypatch.setattr(read, "_by_json", None)
    assert len(told_of(find_files([str(tmp_path)]))[0]) == 9
