"""Reading: what comes out of each format, and where a broken file is broken."""

import gzip
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from zhlm.corpus import lines, read
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


TEXT = st.text(st.one_of(st.sampled_from('a"\\\n\r\t\x00\x1f{}好𠮷\u2028\ufeff'), st.characters(codec="utf-8")), max_size=8)
VALUE = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), TEXT, st.just("\ud842"), st.just("\udfb7\ud842")),
    lambda inner: st.one_of(st.lists(inner, max_size=2), st.dictionaries(st.sampled_from(["text", "content", "x", ""]), inner, max_size=3)),
    max_leaves=5,
)
RECORD = st.one_of(
    st.fixed_dictionaries({"text": TEXT}),
    st.fixed_dictionaries({"text": TEXT}, optional={"id": VALUE, "好": VALUE, "text ": VALUE}),
    st.fixed_dictionaries({}, optional={"x": VALUE, "text": VALUE}),
)
LINE = st.one_of(
    st.builds(lambda record, ascii_, space: (json.dumps(record, ensure_ascii=ascii_) + space).encode("utf-8", "surrogatepass"),
              RECORD, st.booleans(), st.sampled_from(["", "", "", " ", "\r", "\r\r", "\x0c"])),
    st.sampled_from([b"", b"  ", b"\r", b"\xe3\x80\x80", b"\xef\xbb\xbf" + b'{"text": "bom"}', b'{"text": "a"}{"text": "b"}', b'{"text":',
                     b'"b"}', b'{"text": "a", "text": "b"}', b'{"text": 1, "text": "b"}', b'{"text": "b", "text": null}', b'["text"]',
                     b'{"te\\u0078t": "x", "y": NaN}', b'{"text": "x", "y": Inf}', b'{"text": "x", "y": "\xff"}', b'{"text": "\xff"}',
                     b'{"text": "x", "\xc0": 1}', b'{"text": "a\x01"}', b'{"text": "a", "n": 01}', b'{"text": "a",}', b'{"text": "\\q"}',
                     b'{"text": "\\ud842\\udfb7 \\ud842"}', b'{"text": "x", "y": 1e999}', b"{'text': 'x'}", b'"text"', b"null"]),
)  # fmt: skip


@example(lines=[b'{"text": "a"}{"text":', b'"b"}'], field="text", ends=True)
@given(lines=st.lists(LINE, min_size=1, max_size=6), field=st.sampled_from(["text", None, "x"]), ends=st.booleans())
@settings(max_examples=400)
def test_fast_reading_is_that_of_json(tmp_path_factory: pytest.TempPathFactory, lines: list[bytes], field: str | None, ends: bool) -> None:
    path = tmp_path_factory.mktemp("json") / "a.jsonl"
    path.write_bytes(b"\n".join(lines) + b"\n" * ends or b"\n")
    (file,) = find_files([str(path)])

    def outcome() -> object:
        try:
            return [d for batch in read_documents(file, field) for d in batch]
        except CorpusError as error:
            return str(error), error.facts

    fast = outcome()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(read, "_decode", lambda data, decoder: None)
        assert fast == outcome()


def test_the_fast_path_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_jsonl(tmp_path / "a.jsonl")
    monkeypatch.setattr(read, "_by_json", None)
    assert texts_of(tmp_path / "a.jsonl", "text") == TEXTS


def test_a_line_longer_than_a_chunk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "CHUNK_BYTES", 50)
    monkeypatch.setattr(read, "CHUNK_BYTES", 50)
    texts = ["短", "长" * 500, "短", "x" * 49, "y" * 200, "末"]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": t}, ensure_ascii=False) + "\n" for t in texts))
    (tmp_path / "a.txt").write_text("\n".join(texts))
    assert texts_of(tmp_path / "a.jsonl") == texts_of(tmp_path / "a.txt") == texts
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n{"text": "' + "b" * 300 + '"\n')
    with pytest.raises(CorpusError, match="line 2: not valid JSON"):
        texts_of(tmp_path / "a.jsonl")


PEAK = """
import resource, sys
from zhlm.corpus.files import find_files
from zhlm.corpus.read import read_piece
from zhlm.corpus.parts import whole
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for batch in read_piece(whole(find_files([sys.argv[1]], sys.argv[2])[0])):
    assert len(batch.texts) == 1
    size = len(batch.texts[0])
    del batch
print(size, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10)
"""


@pytest.mark.parametrize(("name", "document"), [("a.jsonl", "line"), ("a.txt", "line"), ("a.txt", "file")])
def test_a_huge_document_needs_little_more_than_itself(tmp_path: Path, name: str, document: str) -> None:
    """4 bytes a character in memory, as in the file; at most the text twice and something."""
    text = "𠮷" * (5 << 20)  # 20 MiB
    content = json.dumps({"text": text}, ensure_ascii=False) if name == "a.jsonl" else text
    (tmp_path / name).write_text(content + "\n", encoding="utf-8")
    command = [sys.executable, "-c", PEAK, str(tmp_path / name), document]
    size, peak_mib = map(int, subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
    assert size == (5 << 20) + (document == "file") and peak_mib < 70


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
