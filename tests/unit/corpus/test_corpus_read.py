"""Reading: what comes out of each format, and where a broken file is broken."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from zhlm.corpus import read
from zhlm.corpus.files import find_files
from zhlm.corpus.read import read_documents
from zhlm.errors import CorpusError
from zhlm.records import Document

TEXTS = [
    "今天天气很好，我们去公园散步。",
    "臺灣的繁體字：龍、龜、鬱。",
    "生僻字𠮷𪚥𬺰在基本平面之外。",
    "全角ＡＢＣ１２３！（括号）　缩进",
    "👨‍👩‍👧 一家人 🇨🇳",
    'def 函数(x): return "值"  # code',
]


def texts_of(path: Path, field: str | None = None, batch_documents: int = 4096) -> list[str]:
    (file,) = find_files([str(path)])
    return [d.text for batch in read_documents(file, field, batch_documents) for d in batch]


def write_text(path: Path) -> None:
    path.write_text("".join(t + "\n" for t in TEXTS), encoding="utf-8")


def write_text_gz(path: Path) -> None:
    path.write_bytes(gzip.compress("\n".join(TEXTS).encode()))


def write_jsonl(path: Path) -> None:
    path.write_text("".join(json.dumps({"id": 1, "text": t}) + "\n" for t in TEXTS))


def write_jsonl_gz(path: Path) -> None:
    path.write_bytes(gzip.compress("\r\n".join(json.dumps({"text": t}, ensure_ascii=False) for t in TEXTS).encode()))


def write_parquet(path: Path) -> None:
    pq.write_table(pa.table({"id": range(len(TEXTS)), "text": TEXTS}), path, row_group_size=2)


def write_parquet_dictionary(path: Path) -> None:
    pq.write_table(pa.table({"text": pa.array(TEXTS).dictionary_encode()}), path)


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("a.txt", write_text),
        ("a.txt.gz", write_text_gz),
        ("a.jsonl", write_jsonl),
        ("a.json.gz", write_jsonl_gz),
        ("a.parquet", write_parquet),
        ("b.parquet", write_parquet_dictionary),
    ],
)
def test_every_format_gives_the_same_documents(tmp_path: Path, name: str, write: Callable[[Path], None]) -> None:
    write(tmp_path / name)
    assert texts_of(tmp_path / name) == TEXTS


def test_documents_say_where_they_came_from(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeff一\n\n   \r\n二\r\n".encode())
    (batch,) = read_documents(find_files([str(path)])[0])
    assert batch == [Document("一", str(path), 1), Document("二", str(path), 4)]


def test_batches_are_bounded_by_documents_and_by_characters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.txt"
    path.write_text("".join(f"{i:04d}\n" for i in range(10)))
    (file,) = find_files([str(path)])
    assert [len(b) for b in read_documents(file, batch_documents=4)] == [4, 4, 2]
    monkeypatch.setattr(read, "BATCH_CHARACTERS", 12)
    assert [len(b) for b in read_documents(file)] == [3, 3, 3, 1]


def test_the_usual_fields_are_found_in_order_and_a_named_one_wins(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"content": "c", "completion": "b"}\n{"completion": "b2", "text": "a"}\n')
    assert texts_of(path) == ["b", "b2"]
    path.write_text('{"content": "c", "completion": "b"}\n')
    assert texts_of(path, field="content") == ["c"]


def test_half_a_surrogate_pair_becomes_a_replacement_mark(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(r'{"text": "x\ud842y \ud842\udfb7"}' + "\n")
    assert texts_of(path) == ["x\ufffdy 𠮷"]


def test_only_line_feeds_end_a_document(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("一\u2028二\x0b三\x85四\n五\n", encoding="utf-8")
    assert texts_of(path) == ["一\u2028二\x0b三\x85四", "五"]


GZ = gzip.compress("".join(f"第{i}句话\n" for i in range(5000)).encode())


@pytest.mark.parametrize(
    ("name", "content", "field", "said"),
    [
        ("a.txt", "好\n".encode() + "坏".encode("gbk") + b"\n", None, ("line 2", "not UTF-8", "convert")),
        ("a.txt", "好\n".encode("utf-16"), None, ("line 1", "not UTF-8")),
        ("a.jsonl", b'{"text": "ok"}\n\n{"text": "\xff"}\n', None, ("line 3", "0xff", "not UTF-8")),
        ("a.txt.gz", GZ[: len(GZ) // 2], None, ("truncated", "copy it again")),
        ("a.txt.gz", b"plain text\n", None, ("damaged gzip", "rename")),
        ("a.jsonl.gz", GZ[:20] + b"\x00" * 20 + GZ[40:], None, ("gzip", "copy it again")),
        ("a.jsonl", b'{"text": "ok"}\n{"text": "o\n', None, ("line 2", "not valid JSON", "repair")),
        ("a.jsonl", b'[{"text": "ok"}]\n', None, ("line 1", "a list", "one object per line")),
        ("a.jsonl", b"[" * 100_000 + b"\n", None, ("line 1", "not valid JSON")),
        ("a.jsonl", b'{"text": "ok"}\n{"body": "x"}\n', None, ("line 2", "no field 'text'", "body")),
        ("a.jsonl", b'{"body": "x", "title": "y"}\n', None, ("line 1", "body, title", "`field`")),
        ("a.jsonl", b'{"text": "ok"}\n', "body", ("line 1", "no field 'body'", "text")),
        ("a.jsonl", b'{"text": null}\n', None, ("line 1", "null", "expected a string")),
        ("a.jsonl", b'{"text": ["a"]}\n', None, ("line 1", "a list", "expected a string")),
        ("a.parquet", b"not parquet at all", None, ("not a readable Parquet", "truncated or damaged")),
    ],
)
def test_a_broken_file_is_named_with_its_line_and_the_remedy(
    tmp_path: Path, name: str, content: bytes, field: str | None, said: tuple[str, ...]
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(CorpusError, match=r"^corpus: ") as caught:
        texts_of(path, field)
    message = str(caught.value)
    assert "\n" not in message
    for part in (str(path), *said):
        assert part in message
    assert caught.value.facts["path"] == str(path)


@pytest.mark.parametrize(
    ("table", "field", "said"),
    [
        (pa.table({"title": ["x"], "body": ["y"]}), None, "title, body"),
        (pa.table({"text": ["x"]}), "body", "no column 'body'; there are: text"),
        (pa.table({"text": [1, 2]}), None, "type int64, expected string"),
        (pa.table({"text": ["x", None]}), None, "row 2: the text is null"),
        (pa.table({"text": pa.array([b"ok", b"\xff\xfe"]).cast(pa.string(), safe=False)}), None, "row 2: the text holds bytes"),
    ],
)
def test_a_parquet_file_without_usable_text_is_one_line(tmp_path: Path, table: pa.Table, field: str | None, said: str) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(table, path)
    with pytest.raises(CorpusError) as caught:
        texts_of(path, field)
    assert said in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_truncated_parquet_file_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    write_parquet(path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(CorpusError, match="damaged"):
        texts_of(path)


def test_a_parquet_file_damaged_in_the_middle_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": [f"第{i}句话" for i in range(5000)]}), path, row_group_size=1000)
    data = bytearray(path.read_bytes())
    data[4:2000] = b"\xff" * 1996
    path.write_bytes(bytes(data))
    with pytest.raises(CorpusError, match="damaged"):
        texts_of(path)
