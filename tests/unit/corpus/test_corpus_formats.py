"""Formats beyond the usual: zstd, Arrow, folders that `datasets` saved, a file as a document, dataset repositories."""

import gzip
import json
import random
from collections.abc import Callable
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from zhlm.config.schema import StreamConfig
from zhlm.corpus.files import SourceFile, find_files
from zhlm.corpus.parts import parts_of
from zhlm.corpus.read import read_documents, read_piece, text_field
from zhlm.corpus.streams import files_of, held_out_of
from zhlm.errors import CorpusError

TEXTS = [f"第{i}篇：龍𠮷，全角ＡＢＣ。" for i in range(300)]


@pytest.fixture(autouse=True)
def quiet_datasets(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    datasets.disable_progress_bars()


def texts(files: list[SourceFile], field: str | None = None) -> list[str]:
    return [d.text for f in files for batch in read_documents(f, field) for d in batch]


def in_parts(files: list[SourceFile], shard_bytes: int) -> list[str]:
    return [t for p in parts_of(files, shard_bytes) for piece in p.pieces for b in read_piece(piece) for t in b.texts]


def zstd(data: bytes) -> bytes:
    return bytes(pa.Codec("zstd").compress(data, asbytes=True))


def test_zstd_with_several_frames(tmp_path: Path) -> None:
    (tmp_path / "a.txt.zst").write_bytes(zstd("一\n二\n".encode()) + zstd("三\n".encode()))
    (tmp_path / "b.jsonl.zst").write_bytes(zstd(b'{"text": "x"}\n'))
    assert texts(find_files([str(tmp_path)])) == ["一", "二", "三", "x"]


NOISE = zstd(random.Random(1).randbytes(100_000).hex().encode())


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (NOISE[:-50], "truncated"),
        (NOISE[:500], "truncated"),
        (b"plain\n", "rename it if it is not zstd"),
        (NOISE + b"junk" * 9, "damaged zstd"),
    ],
)
def test_broken_zstd(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "a.txt.zst").write_bytes(content)
    with pytest.raises(CorpusError, match=said) as caught:
        texts(find_files([str(tmp_path)]))
    assert str(tmp_path / "a.txt.zst") in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_as_a_document(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("\ufeff第一行\r\n\n第三行\n".encode())
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress("另一篇\n".encode()))
    (tmp_path / "c.txt").write_text(" \n\n")
    (tmp_path / "d.jsonl").write_text('{"text": "x"}\n{"text": "y"}\n')
    files = find_files([str(tmp_path)], "file")
    assert [f.format for f in files] == ["whole", "whole", "whole", "jsonl"]
    assert texts(files) == ["第一行\r\n\n第三行\n", "另一篇\n", "x", "y"]
    (tmp_path / "a.txt").write_bytes("好\n坏".encode() + b"\xff")
    with pytest.raises(CorpusError, match=r"byte 0xff at offset 7 of the file is not UTF-8"):
        texts(find_files([str(tmp_path / "a.txt")], "file"))


def write_stream(path: Path) -> None:
    table = pa.table({"id": range(300), "text": TEXTS})
    with pa.OSFile(str(path), "wb") as out, pa.ipc.new_stream(out, table.schema) as writer:
        writer.write_table(table, max_chunksize=50)


def write_indexed(path: Path) -> None:
    table = pa.table({"text": pa.array(TEXTS, pa.large_string()), "id": range(300)})
    with pa.OSFile(str(path), "wb") as out, pa.ipc.new_file(out, table.schema) as writer:
        writer.write_table(table, max_chunksize=70)


def write_dictionary(path: Path) -> None:
    table = pa.table({"text": pa.array(TEXTS).dictionary_encode()})
    with pa.OSFile(str(path), "wb") as out, pa.ipc.new_stream(out, table.schema) as writer:
        writer.write_table(table, max_chunksize=100)


@pytest.mark.parametrize(("write", "parts"), [(write_stream, 6), (write_indexed, 5), (write_dictionary, 1)])
def test_arrow_whole_and_in_parts(tmp_path: Path, write: Callable[[Path], None], parts: int) -> None:
    write(tmp_path / "a.arrow")
    files = find_files([str(tmp_path)])
    assert texts(files) == TEXTS and in_parts(files, 3000) == TEXTS
    assert len(parts_of(files, 1000)) == parts


@pytest.mark.parametrize("keep", [0.3, 0.9, None])
def test_a_damaged_arrow_file_is_named(tmp_path: Path, keep: float | None) -> None:
    write_stream(tmp_path / "a.arrow")
    data = (tmp_path / "a.arrow").read_bytes()
    (tmp_path / "a.arrow").write_bytes(b"no arrow at all" if keep is None else data[: int(len(data) * keep)])
    with pytest.raises(CorpusError, match="not a readable Arrow file") as caught:
        texts(find_files([str(tmp_path)]))
    assert "\n" not in str(caught.value)


def test_a_folder_saved_by_datasets(tmp_path: Path) -> None:
    saved = datasets.Dataset.from_dict({"content": TEXTS})
    saved.save_to_disk(tmp_path / "one", num_shards=3)
    files = find_files([str(tmp_path / "one")])
    assert [f.format for f in files] == ["arrow"] * 3 and texts(files) == TEXTS
    assert text_field(files[0], None) == "content"
    datasets.DatasetDict(train=saved).save_to_disk(tmp_path / "train_only")
    assert texts(find_files([str(tmp_path / "train_only")])) == TEXTS
    datasets.DatasetDict(train=saved, test=saved).save_to_disk(tmp_path / "both")
    with pytest.raises(CorpusError, match=r"splits test, train, expected one of them; name its folder, such as .*/both/train$"):
        find_files([str(tmp_path / "both")])
    assert texts(find_files([str(tmp_path / "both" / "test")])) == TEXTS


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "repo"
    (folder / "zh").mkdir(parents=True)
    for number in range(3):
        part = TEXTS[number * 100 : number * 100 + 100]
        (folder / "zh" / f"train-{number}.jsonl").write_text("".join(json.dumps({"id": 1, "text": t}) + "\n" for t in part))
    (folder / "en").mkdir()
    (folder / "en" / "x.jsonl").write_text('{"body": "a"}\n{"body": "b"}\n')
    configs = [f"- config_name: {name}\n  data_files:\n  - split: {split}\n    path: {path}\n"
               for name, split, path in (("zh", "train", "zh/train-*.jsonl"), ("en", "test", "en/*.jsonl"))]  # fmt: skip
    (folder / "README.md").write_text("---\nconfigs:\n" + "".join(configs) + "---\n")
    return folder


def stream(**settings: object) -> StreamConfig:
    return StreamConfig.model_validate({"name": "zh", "role": "new", **settings})


def test_a_dataset_repository_is_read_shard_by_shard(repository: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (file,) = files_of(stream(dataset=str(repository), dataset_config="zh"), str)
    assert file.size_bytes > 1000 and text_field(file, None) == "text"
    parts = parts_of([file], 1 << 20)
    assert [p.pieces[0].start for p in parts] == [0, 1, 2]
    assert in_parts([file], 1 << 20) == TEXTS and texts([file]) == TEXTS
    (english,) = files_of(stream(dataset=str(repository), dataset_config="en", dataset_split="test"), str)
    assert texts([english], "body") == ["a", "b"]
    assert capfd.readouterr() == ("", "")


def test_a_dataset_repository_of_parquet(tmp_path: Path) -> None:
    for number in range(2):
        pq.write_table(pa.table({"content": TEXTS[number * 150 : number * 150 + 150]}), tmp_path / f"train-{number}.parquet")
    (file,) = files_of(stream(dataset=str(tmp_path)), str)
    assert text_field(file, None) == "content" and in_parts([file], 1 << 20) == TEXTS


def test_a_dataset_is_known_by_its_content(repository: Path) -> None:
    settings = stream(dataset=str(repository), dataset_config="zh")
    before = files_of(settings, str)[0].fingerprint
    (repository / "zh" / "train-0.jsonl").touch()
    (repository / "zh" / "train-2.jsonl").rename(repository / "zh" / "train-9.jsonl")
    assert files_of(settings, str)[0].fingerprint == before
    (repository / "zh" / "train-1.jsonl").write_text('{"text": "changed"}\n')
    assert files_of(settings, str)[0].fingerprint != before


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "several configs and none was chosen; there are: zh, en"),
        ({"dataset_config": "xx"}, "no config 'xx'; there are: zh, en; set the stream's `dataset_config`"),
        ({"dataset_config": "zh", "dataset_split": "dev"}, "no split 'dev'; there are: train; set `dataset_split`"),
        ({"dataset": "nobody/nothing"}, "nobody/nothing cannot be found"),
        ({"dataset": "./nothing"}, "folder ./nothing does not exist"),
    ],
)
def test_a_dataset_that_is_not_there_is_one_line(repository: Path, settings: dict[str, str], said: str) -> None:
    with pytest.raises(CorpusError) as caught:
        files_of(stream(**({"dataset": str(repository)} | settings)), str)
    assert said in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(("field", "said"), [(None, "none of the usual fields"), ("id", "expected a string"), ("xx", "xx")])
def test_a_dataset_without_text_is_one_line(repository: Path, field: str | None, said: str) -> None:
    english = field is None
    config = {"dataset_config": "en", "dataset_split": "test"} if english else {"dataset_config": "zh"}
    with pytest.raises(CorpusError, match=said) as caught:
        texts(files_of(stream(dataset=str(repository), **config), str), field)
    assert "\n" not in str(caught.value)


def test_held_out_files_are_not_trained_on(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.txt").write_text(name)
    settings = stream(paths=["sample://"], held_out=["sample://b.txt"])
    resolve = lambda p: p.replace("sample://", f"{tmp_path}/")  # noqa: E731
    assert texts(files_of(settings, resolve)) == ["a", "c"] and texts(held_out_of(settings, resolve)) == ["b"]
    with pytest.raises(CorpusError, match="every file of stream zh is also in its held_out"):
        files_of(stream(paths=[str(tmp_path)], held_out=[str(tmp_path)]), str)
    assert held_out_of(stream(paths=["x"]), str) == []


def test_a_parquet_file_without_a_row_group_has_no_document(tmp_path: Path) -> None:
    """As Spark writes an empty partition."""
    pq.ParquetWriter(tmp_path / "a.parquet", pa.schema([("text", pa.string())])).close()
    (part,) = parts_of(find_files([str(tmp_path)]), 1 << 20)
    assert [list(read_piece(piece)) for piece in part.pieces] == [[]]


def test_a_mark_of_byte_order_alone_is_a_blank_line(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes('\ufeff\n{"text": "一"}\n'.encode())
    assert [(d.text, d.row) for batch in read_documents(find_files([str(tmp_path)])[0], "text") for d in batch] == [("一", 2)]
