"""What a job's working directory weighs once Ray packed it, so that a folder too large is refused before it is uploaded."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from zhlm.errors import ClusterError


@dataclass(frozen=True)
class Package:
    """The files that Ray would upload."""

    files: frozenset[str]
    """Paths inside the folder."""
    size_bytes: int
    by_entry: Counter[str]
    """Bytes of each file or folder at the top."""


def measure(folder: Path) -> Package:
    """Walk the folder as Ray does: .gitignore and .rayignore of every folder count, and so do Ray's default exclusions.

    Ray's zip does not compress, so the sum of the sizes is the size of the upload.
    """
    from ray._private import ray_constants
    from ray._private.runtime_env import packaging

    sizes: dict[str, int] = {}

    def note(path: Path) -> None:
        if path.is_file():
            sizes[path.relative_to(folder).as_posix()] = path.stat().st_size

    # Ray's own walk, though private: a copy of its rules would be wrong one day, and the upload would fail after minutes.
    excluded = packaging._get_excludes(folder, ray_constants.get_runtime_env_default_excludes())
    packaging._dir_travel(folder, [excluded], note, include_gitignore=True)
    by_entry: Counter[str] = Counter()
    for path, size in sizes.items():
        top, slash, _ = path.partition("/")
        by_entry[top + slash] += size
    return Package(frozenset(sizes), sum(sizes.values()), by_entry)


def check_package(folder: Path, config_file: str) -> Package:
    """The package of a folder if the cluster will take it and it holds the config.

    Raises: ClusterError that names the biggest entries, or the ignored config.
    """
    from ray._private import ray_constants
    from ray._private.runtime_env import packaging

    package = measure(folder)
    limit = min(ray_constants.DASHBOARD_CLIENT_MAX_SIZE, packaging.GCS_STORAGE_MAX_SIZE)
    if package.size_bytes > limit:
        biggest = ", ".join(f"{name} {size / 2**20:.0f} MiB" for name, size in package.by_entry.most_common(3))
        raise ClusterError(
            f"submit: {folder} packs to {package.size_bytes / 2**20:.0f} MiB, Ray takes {limit / 2**20:.0f} MiB; "
            f"the biggest entries are {biggest}; add what the job does not need to .rayignore"
        )
    if config_file not in package.files:
        raise ClusterError(
            f"submit: {config_file} would not be uploaded, .gitignore or .rayignore excludes it; move it or change those files"
        )
    return package
