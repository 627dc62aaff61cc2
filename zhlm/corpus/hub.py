"""Datasets of the Hugging Face hub, or local folders laid out like one, read as a stream through `datasets`.

`datasets` is imported inside the functions: it takes a second, and a plan never needs it.
"""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from zhlm.corpus.open import content_hash, reason_of
from zhlm.errors import CorpusError, ZhlmError

READ_ROWS = 256


@dataclass(frozen=True)
class HubSplit:
    """One split of a dataset, as it was found."""

    name: str
    """Hub name, or absolute path of a local repository folder."""
    config: str | None
    split: str
    num_shards: int
    files: tuple[str, ...]
    """The split's data files, as `datasets` resolved them."""
    origins: tuple[str, ...]
    """What stands for their content where they are not local: the commit or an ETag."""

    def fingerprint(self) -> str:
        """Of the content of local files; of commit and path of those on the hub."""
        marks = [content_hash(f, "hub") if os.path.isfile(f) else f"{o} {f}" for f, o in zip(self.files, self.origins, strict=True)]
        return hashlib.sha256("\n".join(["hub", *marks]).encode()).hexdigest()[:32]

    def columns(self) -> list[str]:
        """Names of the fields, from the first example. Raises: CorpusError when it cannot be read."""
        with self._reading("the first example"):
            return list(next(iter(_stream(self.name, self.config, self.split)), {}))

    def values(self, shard: int, field: str) -> Iterator[list[Any]]:
        """What a field holds in one shard, a few rows at a time.

        Raises: CorpusError when the shard cannot be read.
        """
        with self._reading(f"shard {shard}"):
            stream = _stream(self.name, self.config, self.split).shard(self.num_shards, shard)
            for rows in stream.select_columns([field]).iter(batch_size=READ_ROWS):
                yield rows[field]

    @contextmanager
    def _reading(self, what: str) -> Iterator[None]:
        try:
            yield
        except ZhlmError:
            raise
        except Exception as error:  # whatever its builder, the network or the format's library raises
            reason = f"{type(error).__name__}: {reason_of(error)[:160]}"
            raise CorpusError(
                f"corpus: {self.name}: {what} cannot be read: {reason}; check the stream's `field`, the network and the files",
                path=self.name,
            ) from error


def find_split(name: str, config: str | None, split: str) -> tuple[HubSplit, int]:
    """A split of a dataset and the bytes of its local files (0 when they are not here), without reading them.

    Raises: CorpusError for an unknown name, config or split, which lists what there is, and for a hub out of reach.
    """
    if os.path.isdir(name):
        name = os.path.abspath(name)
    stream = _stream(name, config, split)
    import datasets

    try:
        found = datasets.load_dataset_builder(name, config).config.data_files[split]
    except Exception as error:
        raise _not_found(name, config, split, error) from error
    files, origins = tuple(str(f) for f in found), tuple(" ".join(o) for o in found.origin_metadata)
    size = sum(os.path.getsize(f) for f in files if os.path.isfile(f))
    return HubSplit(name, config, split, stream.num_shards, files, origins), size


def check_local(name: str) -> None:
    """A dataset that is named like a folder is one. Raises: CorpusError."""
    looks_local = name.startswith((".", "/", "~")) or name.count("/") > 1
    if looks_local and not os.path.isdir(name):
        raise CorpusError(f"corpus: the dataset folder {name} does not exist; correct the stream's `dataset`", path=name)


def _stream(name: str, config: str | None, split: str) -> Any:
    """The split as a `datasets.IterableDataset`; nothing is printed and nothing downloaded but what tells where the files are."""
    check_local(name)
    import datasets

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # what it logs is raised too
    try:
        return datasets.load_dataset(name, config, split=split, streaming=True)
    except Exception as error:  # see _not_found: there is no common class
        raise _not_found(name, config, split, error) from error


def _not_found(name: str, config: str | None, split: str, error: Exception) -> CorpusError:
    """`datasets` tells the cases apart by its words: they are told apart here by what was asked and what there is."""
    reason = " ".join(str(error).split())
    if "Config name is missing" in reason or "BuilderConfig" in reason:
        there = reason[reason.find("[") + 1 : reason.find("]")].replace("'", "")
        asked = f"no config {config!r}" if config else "several configs and none was chosen"
        return CorpusError(f"corpus: the dataset {name} has {asked}; there are: {there}; set the stream's `dataset_config`", path=name)
    if "Bad split" in reason or "Unknown split" in reason:
        there = reason[reason.find("[") + 1 : reason.find("]")].replace("'", "")
        return CorpusError(f"corpus: the dataset {name} has no split {split!r}; there are: {there}; set `dataset_split`", path=name)
    if os.path.isdir(name):
        return CorpusError(f"corpus: the dataset folder {name} cannot be read: {reason[:160]}; check its README and data files", path=name)
    return CorpusError(
        f"corpus: the dataset {name} cannot be found: {reason[:160]}; check the name and the network, or name a local folder", path=name
    )
