"""What else a measurement needs to know of the machine: how busy it was, how much memory a process tree holds, which versions ran."""

import os
import platform
import subprocess
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

SAMPLE_S = 0.2
PACKAGES = ("zhlm", "ray", "gigatoken", "tokenizers", "datasets", "transformers", "pyarrow", "numpy")


def facts() -> dict[str, Any]:
    """The machine and the versions."""
    return {"cores": os.cpu_count(), "python": platform.python_version(), "versions": {name: version(name) for name in PACKAGES}}


def busy_share(seconds: float = 1.0) -> float:
    """Share of all cores' time in which somebody worked, while this process waits."""
    before = _jiffies()
    time.sleep(seconds)
    idle, total = (after - b for after, b in zip(_jiffies(), before, strict=True))
    return round(1 - idle / total, 3)


def _jiffies() -> tuple[int, int]:
    """Idle (waiting for disks included) and total, since the machine started."""
    fields = [int(f) for f in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    return fields[3] + fields[4], sum(fields)


def tree_pss_bytes(root: int) -> list[tuple[int, str]]:
    """Memory and name of a process and of each of its descendants, largest first.

    What n of them share counts 1/n in each (proportional set size), so the sum is what all take together.
    """
    return sorted(((_pss_bytes(pid), _name(pid)) for pid in _tree(root)), reverse=True)


def watched(command: Sequence[str], settings: dict[str, str]) -> tuple[str, list[tuple[int, str]]]:
    """Run a command. Returns what it printed, and memory and name of each process of its tree when all together took most.

    `settings` are added to the environment.
    """
    peak: list[tuple[int, str]] = []
    with tempfile.TemporaryFile("w+", encoding="utf-8") as log:
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=os.environ | settings)
        while child.poll() is None:
            peak = max(peak, tree_pss_bytes(child.pid), key=lambda tree: sum(size for size, _ in tree))
            time.sleep(SAMPLE_S)
        assert child.stdout, "it was asked for"
        out = child.stdout.read()
        if child.returncode:
            log.seek(0)
            raise SystemExit(f"benchmarks: {' '.join(command[1:4])} failed:\n{log.read()[-4000:]}")
    return out, peak


def tree_cpu_s(root: int) -> float:
    """CPU seconds of a process and all its descendants so far, ended ones included: unlike elapsed time, no neighbour lengthens it much."""
    ticks = sum(sum(int(f) for f in fields[11:15]) for fields in _tree(root).values())
    return ticks / os.sysconf("SC_CLK_TCK")


def _tree(root: int) -> dict[int, list[str]]:
    """The fields of /proc/PID/stat after the name, of a process and all its descendants."""
    every = {int(p.name): fields for p in Path("/proc").iterdir() if p.name.isdigit() and (fields := _stat(p))}
    tree, found = set[int](), {root}
    while found:
        tree |= found
        found = {pid for pid, fields in every.items() if int(fields[1]) in found} - tree
    return {pid: every[pid] for pid in tree if pid in every}


def _stat(process: Path) -> list[str]:
    try:
        return (process / "stat").read_text().rpartition(")")[2].split()
    except OSError:  # it ended meanwhile
        return []


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return "ended"


def _pss_bytes(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)
