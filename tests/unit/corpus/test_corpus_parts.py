"""Parts: what is in the files decides them, and together they are every document once."""

import gzip
import itertools
import json
import random
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zhlm.corpus import lines as lines_module
from zhlm.corpus.files import SourceFile, find_files
from zhlm.corpus.parts import Piece, SourcePart, parts_of, whole
from zhlm.corpus.read import read_documents, read_piece
from zhlm.errors import CorpusError


def texts_of(parts: list[SourcePart]) -> list[str]:
    return [t for part in parts for piece in part.pieces for batch in read_piece(piece) for t in batch.texts]


def whole_texts(files: list[SourceFile]) -> list[str]:
    return [d.text for f in files for batch in read_documents(f) for d in batch]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "语料"
    folder.mkdir()
    dice = random.Random(3)
    for number in range(40):
        lines = [f"第{number}篇{i}，" + "好" * dice.randrange(30) for i in range(dice.randrange(1, 12))]
        (folder / f"{number}.txt").write_text("\n".join(lines), encoding="utf-8")
    (folder / "large.jsonl").write_text("".join(json.dumps({"text": f"长{i}"}) + "\n" for i in range(500)))
    pq.write_table(pa.table({"text": [f"行{i}" for i in range(3000)]}), folder / "table.parquet", row_group_size=100)
    return folder


def test_every_document_is_in_one_part(folder: Path) -> None:
    files = find_files([str(folder)])
    parts = parts_of(files, 2000)
    assert sorted(texts_of(parts)) == sorted(whole_texts(files))
    assert sum(p.size_bytes for p in parts) == pytest.approx(sum(f.size_bytes for f in files), rel=0.25)  # Parquet has a footer too
    assert all(p.size_bytes <= 3000 for p in parts) and len({p.key for p in parts}) == len(parts)


def test_names_and_order_do_not_matter(folder: Path, tmp_path: Path) -> None:
    keys = [p.key for p in parts_of(find_files([str(folder)]), 2000)]
    other = tmp_path / "other" / "deep"
    other.mkdir(parents=True)
    names = sorted(folder.iterdir())
    random.Random(5).shuffle(names)
    for number, path in enumerate(names):
        shutil.copy(path, (other if number % 2 else other.parent) / f"x{number}{path.suffix}")
    files = find_files([str(other.parent)])
    assert [p.key for p in parts_of(files, 2000)] == keys
    assert [p.key for p in parts_of(files[::-1], 2000)] == keys


def test_one_more_file_leaves_most_parts_alone(folder: Path) -> None:
    before = {p.key for p in parts_of(find_files([str(folder)]), 2000)}
    (folder / "new.txt").write_text("新来的\n", encoding="utf-8")
    after = {p.key for p in parts_of(find_files([str(folder)]), 2000)}
    assert len(before - after) == 1 and len(after - before) <= 2


def test_copies_of_a_file_are_files_too(tmp_path: Path) -> None:
    for number in range(7):
        (tmp_path / f"{number}.txt").write_text("一样的内容\n", encoding="utf-8")
    parts = parts_of(find_files([str(tmp_path)]), 40)
    assert texts_of(parts) == ["一样的内容"] * 7 and max(len(p.pieces) for p in parts) == 2


def test_a_format_is_part_of_the_key(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text('{"text": "x"}\n')
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n')
    lines, jsonl = (find_files([str(tmp_path / n)]) for n in ("a.txt", "a.jsonl"))
    one = find_files([str(tmp_path / "a.txt")], "file")
    assert len({parts_of(f, 100)[0].key for f in (lines, jsonl, one)}) == 3


@given(
    lines=st.lists(st.text(st.sampled_from("ab好𠮷 \r"), max_size=12), max_size=12),
    ends=st.booleans(),
    cuts=st.lists(st.integers(0, 120), max_size=5),
)
def test_a_line_belongs_to_the_piece_in_which_it_starts(
    tmp_path_factory: pytest.TempPathFactory, lines: list[str], ends: bool, cuts: list[int]
) -> None:
    path = tmp_path_factory.mktemp("cut") / "a.txt"
    path.write_bytes(("\n".join(lines) + "\n" * ends).encode() or b"\n")
    (file,) = find_files([str(path)])
    expected = [(d.row, d.text) for batch in read_documents(file) for d in batch]
    places = [0, *sorted({c for c in cuts if 0 < c < file.size_bytes}), file.size_bytes]
    starts = {number: sum(len(line) + 1 for line in path.read_bytes().split(b"\n")[: number - 1]) for number, _ in expected}
    for chunk in (3, 1 << 19):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(lines_module, "CHUNK_BYTES", chunk)
            for start, stop in itertools.pairwise(places):
                found = [t for b in read_piece(Piece(file, start, stop)) for t in b.texts]
                assert found == [text for number, text in expected if start <= starts[number] < stop]


def test_an_error_in_a_later_piece_names_the_line_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(f'{{"text": "{i:04d}"}}\n' for i in range(100)) + '{"text": 1}\n')
    parts = parts_of(find_files([str(path)]), 400)
    assert len(parts) == 4
    with pytest.raises(CorpusError, match=r"line 101: field 'text' is a number"):
        texts_of(parts)


def test_rows_of_a_later_piece_are_counted_from_its_start(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"content": "first"}\n' + "".join(f'{{"content": "{i}", "text": "other"}}\n' for i in range(50)))
    (file,) = find_files([str(path)])
    (batch,) = read_piece(Piece(file, 30, file.size_bytes))
    assert batch.texts[0] == "1" and batch.rows[0] == 1 and batch.path == f"{path} from byte 30"


def test_what_cannot_be_cut_is_one_piece(tmp_path: Path) -> None:
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(random.Random(1).randbytes(500).hex().encode()))
    (file,) = find_files([str(tmp_path)])
    assert [p.pieces for p in parts_of([file], 100)] == [(whole(file),)]
