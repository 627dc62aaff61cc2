"""A corpus on an object store, played by moto on the loopback interface."""

import gzip
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest
from moto.server import ThreadedMotoServer

from zhlm.corpus.files import find_files
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
