"""Which files a stage reads itself, and which of them are no longer what they were."""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from zhlm.config.schema import RunConfig
from zhlm.config.stages import Stage
from zhlm.corpus.files import SourceFile, find_files
from zhlm.corpus.open import size_of, stamp_of
from zhlm.corpus.streams import files_of
from zhlm.errors import CorpusError
from zhlm.storage import SAMPLE_SCHEME, is_remote

Listing = Mapping[str, Sequence[Any]]
"""Path -> fingerprint and, of local files, the stamp: plain data, kept in a stage's manifest."""


def files_of_stage(config: RunConfig, stage: Stage) -> dict[str, list[SourceFile]]:
    """By the setting that names them; what the sample stage writes is not among them."""
    files: dict[str, list[SourceFile]] = {}
    if stage == "sample" and config.sample and config.sample.base:
        files["sample.base"] = _own_files(config.sample.base.paths)
    if stage == "vocab" and config.vocab and config.vocab.word_list:
        path = os.path.abspath(config.vocab.word_list) if not is_remote(config.vocab.word_list) else config.vocab.word_list
        files["vocab.word_list"] = [SourceFile(path, "whole", "none", size_of(path))]
    for stream in config.streams if stage in ("vocab", "pack") else ():
        if stream.dataset is not None:
            files[stream.name] = files_of(stream, str)
        elif stage == "pack" or stream.role == "new":
            files[stream.name] = _own_files(stream.paths, stream.document)
        if stage == "pack":
            files[f"{stream.name}.held_out"] = _own_files(stream.held_out, stream.document)
    return {name: found for name, found in files.items() if found}


def _own_files(paths: Sequence[str], document: Literal["line", "file"] = "line") -> list[SourceFile]:
    own = [p for p in paths if not p.startswith(SAMPLE_SCHEME)]
    return find_files(own, document) if own else []


def listing_of(files: Sequence[SourceFile]) -> Listing:
    """Reads the files, for their fingerprints."""
    return {f.path: [f.fingerprint, *(f.stamp or ())] for f in files}


def changes(old: Listing, new: Listing) -> list[str]:
    """`x.txt changed`, `y.txt is new`, `z.txt is gone`; a file that has only another name is none of these."""
    appeared = [f"{p} {'changed' if p in old else 'is new'}" for p in _surplus(new, old)]
    vanished = [f"{p} {'changed' if p in new else 'is gone'}" for p in _surplus(old, new)]
    return list(dict.fromkeys(appeared + vanished))


def _surplus(these: Listing, others: Listing) -> list[str]:
    """Paths of what the others have not, or not as often; of copies, one that is not in the same place there."""
    left = Counter(fingerprint for fingerprint, *_ in these.values())
    left.subtract(fingerprint for fingerprint, *_ in others.values())
    found = []
    for path in sorted(these, key=lambda p: p in others and others[p][0] == these[p][0]):
        fingerprint = these[path][0]
        if left[fingerprint] > 0:
            left[fingerprint] -= 1
            found.append(path)
    return found


def changed_since(old: Listing, document: Literal["line", "file"]) -> list[str]:
    """As `changes`, for the local files of a listing; only those with another stamp are read. New files are not looked for."""
    found = []
    for path, (fingerprint, *stamp) in old.items():
        try:
            if stamp and tuple(stamp) != stamp_of(path) and find_files([path], document)[0].fingerprint != fingerprint:
                found.append(f"{path} changed")
        except CorpusError:
            found.append(f"{path} cannot be read any more")
    return found
