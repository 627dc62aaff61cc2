"""Checks of seconds before a run of hours: paths, sizes, storage, base model, and whether a cluster file can hold the run."""

import errno
import importlib.util
import os
import shutil
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from zhlm.config.schema import RunConfig
from zhlm.corpus.files import find_files
from zhlm.corpus.hub import check_local
from zhlm.errors import BaseModelError, ClusterError, ConfigError, StorageError
from zhlm.model.files import TOKENIZER_FILES
from zhlm.model.kind import check_fits
from zhlm.model.shape import KNOWN, ModelShape
from zhlm.storage import SAMPLE_SCHEME, Place, Run, is_remote, resolve_root, storage_errors
from zhlm.submit.memory import count_parameters, too_large
from zhlm.submit.sources import (
    base_config,
    base_folder,
    check_prompts,
    own_tokenizer,
    read_object,
    tokenizer_entries,
    trained_shape,
)

SPARE_BYTES = 64 << 20
"""Room for what is small: logs, metrics, reports."""
RAY_MAX_WORKERS = 2
"""Ray's own default for a cluster file that does not say."""


def check(config: RunConfig) -> None:
    """Find a user's mistake now instead of after the minutes that loading, packing or starting nodes take.

    Raises: CorpusError, BaseModelError, ConfigError, RunError or StorageError, each one line.
    """
    check_corpus(config)
    check_trackers(config)
    folder = base_folder(config)
    if folder is not None:
        own = config.vocab is not None and config.vocab.tokenizer is not None  # in place of the base's
        check_base_folder(folder, config.base.model, weights=not config.base.from_scratch, fitting=not own)
    own_tokenizer(config)
    check_prompts(config)
    checkpoint_bytes = 0
    base = _known_base(config)
    if base is not None:
        check_fits(config.objective, base, config.base.model)
    shape = _known_shape(config)
    if shape is not None:
        check_positions(config, shape)
        checkpoint_bytes = count_parameters(config, shape).checkpoint_bytes
    check_storage(config, checkpoint_bytes)


def check_memory(config: RunConfig, room: tuple[int, str] | None) -> None:
    """The model fits into the memory that each worker has, by bytes and what has them; None where that is not known.

    Raises: ClusterError that says which part needs how much, and what to lower.
    """
    shape = _known_shape(config) if room is not None else None
    if room is not None and shape is not None and (problem := too_large(config, shape, *room)):
        raise ClusterError(problem)


def _known_shape(config: RunConfig) -> ModelShape | None:
    """None for a base that is not within reach yet, or whose sizes are not known from its config."""
    base = _known_base(config)
    return trained_shape(config)[0] if base is not None and base.get("model_type") in KNOWN else None


def _known_base(config: RunConfig) -> dict[str, Any] | None:
    """config.json of the base; None for one in a remote store."""
    in_reach = not is_remote(config.base.model) or config.base.model.startswith(SAMPLE_SCHEME)
    return base_config(config) if in_reach else None


def check_corpus(config: RunConfig) -> None:
    """Every local path of the corpus leads to files; what the sample stage makes, remote paths and the hub are left to the stages."""
    paths = [p for s in config.streams for p in [*s.paths, *s.held_out]]
    if config.sample and config.sample.base:
        paths += config.sample.base.paths
    local = [p for p in paths if not is_remote(p)]
    if local:
        find_files(local)
    for stream in config.streams:
        if stream.dataset is not None:
            check_local(stream.dataset)


def check_trackers(config: RunConfig) -> None:
    """The package of each tracker is installed."""
    for name in config.train.trackers:
        if importlib.util.find_spec(name) is None:
            raise ConfigError(
                f"train: trackers names {name}, which is not installed here; pip install {name}, or remove it from train.trackers"
            )


def check_positions(config: RunConfig, shape: ModelShape) -> None:
    """Blocks are no longer than the model can read."""
    if shape.positions is not None and config.pack.block_tokens > shape.positions:
        raise ConfigError(
            f"pack: block_tokens {config.pack.block_tokens} exceeds the model's {shape.positions} positions; lower pack.block_tokens."
        )


def check_base_folder(folder: Path, name: str, *, weights: bool = True, fitting: bool = True) -> None:
    """The folder holds a model and a tokenizer that fit each other, or need not."""
    if not folder.is_dir():
        raise BaseModelError(f"base: {name} is a file, expected a folder with config.json, weights and tokenizer; correct base.model")
    names = set(os.listdir(folder))
    if "config.json" not in names:
        raise BaseModelError(f"base: {name} has no config.json, expected a Hugging Face model folder; correct base.model")
    if weights and not any(n.endswith((".safetensors", ".bin")) for n in names):
        raise BaseModelError(f"base: {name} has no weights (*.safetensors or *.bin); download the model again or correct base.model")
    if not names.intersection(TOKENIZER_FILES):
        raise BaseModelError(
            f"base: {name} has no tokenizer, expected one of {', '.join(TOKENIZER_FILES)}; copy the tokenizer's files into that folder"
        )
    if fitting and "tokenizer.json" in names:
        rows = read_object(folder / "config.json").get("vocab_size")
        entries = tokenizer_entries(read_object(folder / "tokenizer.json"))
        if isinstance(rows, int) and entries > rows:
            raise BaseModelError(
                f"base: the tokenizer of {name} has {entries} entries but its embedding only {rows} rows (vocab_size); "
                "use the tokenizer that belongs to the model, or resize the model's embedding"
            )


def check_storage(config: RunConfig, checkpoint_bytes: int) -> None:
    """The storage root takes a file, and a local disk has room for a checkpoint.

    Raises: StorageError.
    """
    root = resolve_root(config.storage.root)
    if is_remote(root):
        probe = Place(root) / f".probe-{uuid.uuid4().hex[:8]}"
        probe.write_text("zhlm")
        probe.delete()
        return
    folder = Path(root)
    with storage_errors("creating", folder):
        if folder.exists() and not folder.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, "it is a file, not a folder")
        folder.mkdir(parents=True, exist_ok=True)
    probe_file = folder / f".probe-{uuid.uuid4().hex[:8]}"
    with storage_errors("writing into", folder):
        try:
            probe_file.write_bytes(b"\0" * 4096)
        finally:
            probe_file.unlink(missing_ok=True)
    free, needed = shutil.disk_usage(folder).free, checkpoint_bytes + SPARE_BYTES
    if free < needed and not Run.of(config).checkpoints.path.exists():
        raise StorageError(
            f"storage: the disk of {folder} has {free / 2**30:.2f} GiB free, one checkpoint and logs need {needed / 2**30:.2f} GiB; "
            "free some space or set storage.root to another disk"
        )


@dataclass(frozen=True)
class NodeType:
    """A kind of node in a cluster file."""

    name: str
    offers: Mapping[str, float]
    most: int
    is_head: bool

    def holds(self, bundle: Mapping[str, float]) -> int:
        """How many of these bundles one node holds. Ray fills empty resources in from the instance type: those hold anything."""
        if not self.offers:
            return 1 << 20
        return min(int(self.offers.get(kind, 0.0) / amount + 1e-9) for kind, amount in bundle.items())


def check_cluster_file(config: RunConfig, path: str | Path) -> None:
    """A cluster-launcher file can hold each bundle of the run, and as many as it asks for at the least.

    Raises: ClusterError that names the bundle and the largest node type.
    """
    file = Path(path)
    nodes, most_workers = _node_types(file)
    resources, serve = config.resources, config.serve
    worker = {"CPU": resources.cpus_per_worker, "GPU": resources.gpus_per_worker}
    replica = {"CPU": float(serve.cpus_per_replica), "GPU": serve.gpus_per_replica}
    for what, bundle, count, setting in (
        ("training worker", worker, resources.min_workers, "resources.workers"),
        ("serving replica", replica, serve.replicas, "serve.replicas"),
        ("packing task", {"CPU": 1.0}, 1, "resources.pack_tasks"),
    ):
        wanted = {kind: amount for kind, amount in bundle.items() if amount}
        _check_fits(nodes, what, wanted, file.name)
        room = _room(nodes, wanted, most_workers)
        if room < count:
            fitting = ", ".join(f"{n.name} x {n.most}" for n in nodes if n.holds(wanted))
            raise ClusterError(
                f"cluster: {setting} asks for {count} x {_braces(wanted)}, {file.name} has room for {room} ({fitting}, "
                f"max_workers {most_workers}); raise max_workers there or lower {setting}"
            )


def _check_fits(nodes: Sequence[NodeType], what: str, bundle: Mapping[str, float], file: str) -> None:
    if any(n.holds(bundle) for n in nodes):
        return
    largest = max(nodes, key=lambda n: (n.offers.get("GPU", 0.0), n.offers.get("CPU", 0.0)))
    lower = {"training worker": "lower resources.cpus_per_worker or resources.gpus_per_worker, or "}
    lower["serving replica"] = "lower serve.cpus_per_replica or serve.gpus_per_replica, or "
    raise ClusterError(
        f"cluster: a {what} needs {_braces(bundle)}, which no node type of {file} holds; the largest is {largest.name} with "
        f"{_braces(largest.offers)}; {lower.get(what, '')}give {file} a larger type"
    )


def _room(nodes: Sequence[NodeType], bundle: Mapping[str, float], most_workers: int) -> int:
    """How many bundles the full-grown cluster holds, the roomiest node types taken first."""
    room, budget = 0, most_workers
    for node in sorted(nodes, key=lambda n: -n.holds(bundle)):
        taken = node.most if node.is_head else min(node.most, budget)
        budget -= 0 if node.is_head else taken
        room += taken * node.holds(bundle)
    return room


def _braces(resources: Mapping[str, float]) -> str:
    inside = ", ".join(f"{amount:g} {kind}" for kind, amount in resources.items())
    return "{" + inside + "}"


def _node_types(path: Path) -> tuple[list[NodeType], int]:
    """The node types of a cluster file, and how many workers it allows in all."""
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ClusterError(f"cluster: {path} cannot be read ({error.strerror}); name a file such as cluster.yaml") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ClusterError(f"cluster: {path} is not valid YAML ({' '.join(str(error).split())}); correct it") from None
    types = data.get("available_node_types") if isinstance(data, dict) else None
    if not isinstance(types, dict) or not types:
        raise ClusterError(f"cluster: {path} has no available_node_types, expected a file as `ray up` takes it; start from cluster.yaml")
    most_workers = int(data.get("max_workers", RAY_MAX_WORKERS))
    nodes = []
    for name, node in types.items():
        is_head = name == data.get("head_node_type")
        offers = {kind: float(amount) for kind, amount in (node.get("resources") or {}).items()}
        most = 1 if is_head else int(node.get("max_workers", most_workers))
        nodes.append(NodeType(name, offers, most, is_head))
    return nodes, most_workers
