"""Copies of remote files: made once, deleted when they are too many or too old, never while somebody uses them."""

import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from zhlm import cache
from zhlm.cache import cached_copy, in_use, prune, scratch

MIB = 1 << 20


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The cache of this test, on a disk that never changes its size, looked through at every call."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(cache, "_held", held := dict[Path, int]())
    monkeypatch.setattr(cache, "_rest_s", 0.0)
    free(monkeypatch, 100)
    yield tmp_path / f"zhlm-cache-{os.getuid()}"
    for descriptor in held.values():
        os.close(descriptor)


def free(monkeypatch: pytest.MonkeyPatch, mib: int) -> None:
    usage = type(shutil.disk_usage("/"))(0, 0, mib * MIB)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)


def a_file(content: bytes = b"x" * MIB) -> Callable[[Path], None]:
    return lambda to: to.write_bytes(content) and None


def a_folder(to: Path) -> None:
    to.mkdir()
    (to / "weights").write_bytes(b"x" * MIB)


def unused(folder: Path, seconds: float) -> None:
    os.utime(folder, (time.time() - seconds,) * 2)


def look(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "_rest_s", 0.0)
    prune()


def stamps(root: Path) -> list[str]:
    return sorted(p.name for p in root.iterdir() if p.name != ".lock")


def test_a_copy_is_fetched_once_and_lies_alone_in_its_folder(root: Path) -> None:
    fetched: list[Path] = []

    def fetch(to: Path) -> None:
        fetched.append(to)
        to.write_bytes(b"content")

    first = cached_copy("s1", "a.arrow", fetch)
    assert first == root / "s1" / "a.arrow" == cached_copy("s1", "a.arrow", fetch)
    assert len(fetched) == 1 and first.read_bytes() == b"content"
    assert sorted(p.name for p in first.parent.iterdir()) == [".held", "a.arrow"]


def test_a_fetch_that_fails_is_made_again(root: Path) -> None:
    def fails(to: Path) -> None:
        to.write_bytes(b"ha")
        raise OSError("away")

    with pytest.raises(OSError, match="away"):
        cached_copy("s1", "a", fails)
    assert cached_copy("s1", "a", a_file(b"half and half")).read_bytes() == b"half and half"


def test_the_longest_unused_go_until_the_rest_fits(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for n in range(6):
        cached_copy(f"s{n}", "a", a_file())
        unused(root / f"s{n}", 5000 - 100 * n)
    cached_copy("s0", "a", a_file())  # asked for again
    unused(root / "s0", 4000)
    free(monkeypatch, 2)
    look(monkeypatch)
    assert stamps(root) == ["s0", "s3", "s4", "s5"], "2 MiB are free and 6 are copies, so 4 may stay"


def test_what_was_asked_for_just_now_stays_whatever_its_size(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for n in range(3):
        cached_copy(f"s{n}", "a", a_file())
    unused(root / "s1", cache.YOUNG_S + 60)
    free(monkeypatch, 0)
    look(monkeypatch)
    assert stamps(root) == ["s0", "s2"]


def test_what_nobody_asked_for_in_weeks_goes_though_there_is_room(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for n, days in enumerate((13, 15)):
        cached_copy(f"s{n}", "a", a_file())
        unused(root / f"s{n}", days * 86400)
    look(monkeypatch)
    assert stamps(root) == ["s0"]


USES = """
import sys, tempfile, time
from pathlib import Path
tempfile.tempdir = sys.argv[1]
from zhlm.cache import cached_copy
cached_copy("model", "m", lambda to: None)
print("has it", flush=True)
time.sleep(600)
"""


def test_a_model_stays_while_a_process_that_asked_for_it_lives(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that was started weeks ago loads its model again when a replica dies."""
    cached_copy("model", "m", a_folder)
    os.close(cache._held.pop(root / "model"))
    with subprocess.Popen([sys.executable, "-c", USES, str(tmp_path)], stdout=subprocess.PIPE, text=True) as user:
        assert user.stdout is not None and user.stdout.readline() == "has it\n"
        unused(root / "model", 1e8)
        free(monkeypatch, 0)
        look(monkeypatch)
        assert (root / "model" / "m" / "weights").is_file()
        user.kill()
    look(monkeypatch)
    assert stamps(root) == []


def test_a_download_that_takes_hours_is_left_alone(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(to: Path) -> None:
        to.mkdir()
        (to / "weights").write_bytes(b"x" * MIB)
        unused(root / "model", 1e8)
        free(monkeypatch, 0)
        look(monkeypatch)

    assert (cached_copy("model", "m", slow) / "weights").is_file()


def test_an_open_file_stays_readable_when_its_name_is_gone(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pyarrow as pa

    mapped = pa.memory_map(str(cached_copy("s", "a", a_file(b"blocks"))))
    unused(root / "s", 1e8)
    look(monkeypatch)
    assert stamps(root) == [] and mapped.read() == b"blocks"
    mapped.close()


def test_what_killed_processes_left_goes(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a download, half an upload, half a deletion."""
    for name in ("s/m.0123abcd", "upload-1/files", ".trash-1/m"):
        (root / name).mkdir(parents=True)
        unused((root / name).parent, 1e8)
    look(monkeypatch)
    assert stamps(root) == []


def test_a_scratch_folder_is_fresh_and_leaves_nothing(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with scratch() as one, scratch() as two:
        assert one != two and list(one.iterdir()) == []
        unused(one.parent, 1e8)
        look(monkeypatch)
        assert one.is_dir()
    assert stamps(root) == []


def test_looking_takes_a_tenth_of_the_time(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[Path] = []

    def slowly(folder: Path) -> int:
        looked.append(folder)
        time.sleep(0.01)
        return 1

    monkeypatch.setattr(cache, "_bytes_of", slowly)
    started_s = time.monotonic()
    for n in range(30):
        cached_copy(f"s{n}", "a", a_file(b"x"))
    assert 0.01 * len(looked) <= 0.3 * (time.monotonic() - started_s) + 0.2 and len(looked) < 100


def test_users_and_a_busy_broom_on_a_full_disk(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever is inside keeps what is there, though everything else is deleted all the time."""
    monkeypatch.setattr(cache, "YOUNG_S", -1.0)
    free(monkeypatch, 0)
    stop, problems, made = threading.Event(), list[BaseException](), list[str]()

    def sweep() -> None:
        while not stop.is_set():
            cache._rest_s = 0.0
            prune()

    def use(seed: int) -> None:
        try:
            for n in range(100):
                with in_use(f"s{(seed * 7 + n * n) % 3}") as folder:
                    if not (folder / "a").exists():
                        made.append(folder.name)
                        (folder / "a").write_bytes(b"whole")
                    time.sleep(0.001 * (n % 4))
                    assert (folder / "a").read_bytes() in (b"whole", b""), "another user may be writing it"
        except BaseException as error:
            problems.append(error)

    users = [threading.Thread(target=use, args=(seed,)) for seed in range(4)]
    broom = threading.Thread(target=sweep)
    for thread in (*users, broom):
        thread.start()
    for thread in users:
        thread.join()
    stop.set()
    broom.join()
    assert problems == [] and len(made) > 10, "the broom never swept"
