"""A corpus on an object store, played by moto on the loopback interface."""

import gzip
import socket
import threading
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest
from moto.server import ThreadedMotoServer

from zhlm import storage
from zhlm.corpus import open as opening
from zhlm.corpus.files import SourceFile, find_files
from zhlm.corpus.read import read_documents
from zhlm.errors import CorpusError


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as environment:
        for name, value in {
            "AWS_ENDPOINT_URL": f"http://{host}:{port}",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }.items():
            environment.setenv(name, value)
        uri = "s3://corpus?allow_bucket_creation=true"
        filesystem, _ = pafs.FileSystem.from_uri(uri)
        filesystem.create_dir("corpus")
        contents = {
            "zh/a.txt": "今天\n天气\n".encode(),
            "zh/deep/b.jsonl.gz": gzip.compress('{"text": "𠮷"}\n'.encode()),
            "zh/notes.md": b"notes",
            "empty.txt": b"",
            "long.txt": b"0123456789\n" * 100_000,
        }
        for name, content in contents.items():
            with filesystem.open_output_stream(f"corpus/{name}", compression=None) as stream:
                stream.write(content)
        with filesystem.open_output_stream("corpus/zh/c.parquet") as stream:
            pq.write_table(pa.table({"text": ["好"]}), stream)
        yield "s3://corpus"
    server.stop()


def test_folders_globs_and_files_are_read_where_they_are(bucket: str) -> None:
    found = find_files([f"{bucket}/zh"])
    assert [f.path for f in found] == [f"{bucket}/zh/a.txt", f"{bucket}/zh/c.parquet", f"{bucket}/zh/deep/b.jsonl.gz"]
    assert [[d.text for batch in read_documents(f) for d in batch] for f in found] == [["今天", "天气"], ["好"], ["𠮷"]]
    assert find_files([f"{bucket}/zh/**/*.gz", f"{bucket}/zh/*.txt"]) == [found[0], found[2]]
    assert find_files([found[0].path]) == [found[0]]


def test_a_storage_that_goes_away_for_a_while(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """While listing, opening and in the middle of a file; then for ever."""
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setattr(storage, "RETRY_PAUSE_S", 0.1)
    monkeypatch.setattr(opening, "REMOTE_BUFFER_BYTES", 1 << 16)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
    late = threading.Timer(0.5, server.start)
    late.start()
    (file,) = find_files([f"{bucket}/long.txt"])
    batches = read_documents(file, batch_documents=1000)
    read = len(next(batches))
    server.stop()
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
    late = threading.Timer(0.5, server.start)
    late.start()
    assert read + sum(map(len, batches)) == 100_000
    batches = read_documents(file, batch_documents=1000)
    next(batches)
    server.stop()
    monkeypatch.setattr(storage, "RETRY_S", 0.3)
    with pytest.raises(CorpusError, match=r"long.txt: reading failed: .* \(tried for \d+ s\)") as caught:
        list(batches)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("missing.txt", "does not exist"),
        ("zh/*.csv", "matches no file"),
        ("empty.txt", "is empty"),
        ("zh/notes.md", "ending that is not known"),
    ],
)
def test_remote_mistakes_are_one_line_too(bucket: str, path: str, said: str) -> None:
    with pytest.raises(CorpusError) as caught:
        find_files([f"{bucket}/{path}"])
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_a_fingerprint_is_read_once_until_the_file_changes(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    filesystem, _ = pafs.FileSystem.from_uri(bucket)

    def fingerprint(content: bytes) -> str:
        with filesystem.open_output_stream("corpus/changing.txt", compression=None) as stream:
            stream.write(content)
        return find_files([f"{bucket}/changing.txt"])[0].fingerprint

    first = fingerprint("一\n".encode())
    assert fingerprint("一二\n".encode()) != first
    last = find_files([f"{bucket}/changing.txt"])[0]
    assert last.fingerprint != first
    monkeypatch.setattr(opening, "open_bytes", lambda path: pytest.fail("read again"))
    assert SourceFile(last.path, last.format, last.compression, last.size_bytes).fingerprint == last.fingerprint
