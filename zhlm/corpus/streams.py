"""The files of one stream of the config."""

from collections.abc import Callable

from zhlm.config.schema import StreamConfig
from zhlm.corpus.files import SourceFile, find_files
from zhlm.corpus.hub import find_split
from zhlm.errors import CorpusError


def files_of(stream: StreamConfig, resolve: Callable[[str], str]) -> list[SourceFile]:
    """What a stream is trained on: its paths or its dataset, without the held-out files, which a folder or glob may hold too.

    `resolve` turns a path of the config into a real one. Files of the hub are found, not read.

    Raises: CorpusError when there is none, or none besides the held-out ones.
    """
    if stream.dataset is not None:
        name = resolve(stream.dataset)
        found, size_bytes = find_split(name, stream.dataset_config, stream.dataset_split)
        return [SourceFile(found.name, "hub", "none", size_bytes, found)]
    held_out = {file.path for file in held_out_of(stream, resolve)}
    files = [file for file in find_files([resolve(p) for p in stream.paths], stream.document) if file.path not in held_out]
    if not files:
        raise CorpusError(f"corpus: every file of stream {stream.name} is also in its held_out; name other files in one of the two")
    return files


def held_out_of(stream: StreamConfig, resolve: Callable[[str], str]) -> list[SourceFile]:
    """The stream's held-out files; none where a share of its documents is held out instead. Raises: CorpusError."""
    return find_files([resolve(p) for p in stream.held_out], stream.document) if stream.held_out else []
