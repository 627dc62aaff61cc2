"""A packer's sign of life outlives a storage that is away for a moment."""

import time
from pathlib import Path

import pytest

from zhlm.blocks.store import beat, read_heartbeat
from zhlm.errors import CorpusError, StorageError
from zhlm.pack import job
from zhlm.storage import Place


class Storage:
    """Heartbeats that fail while it is away."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.away, self.refused = False, 0
        monkeypatch.setattr(job, "BEAT_S", 0.01)
        monkeypatch.setattr(job, "beat", self.beat)

    def beat(self, blocks: Place, *sign: str) -> None:
        if self.away:
            self.refused += 1
            raise StorageError("storage: away")
        beat(blocks, *sign)  # type: ignore[arg-type]


@pytest.fixture
def storage(monkeypatch: pytest.MonkeyPatch) -> Storage:
    return Storage(monkeypatch)


def test_it_goes_on_when_the_storage_is_back(storage: Storage, tmp_path: Path) -> None:
    blocks = Place(tmp_path)
    with job._heartbeat(blocks):
        storage.away = True
        deadline = time.monotonic() + 10
        while storage.refused < 3:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        storage.away, before = False, read_heartbeat(blocks)
        while read_heartbeat(blocks) == before:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    sign = read_heartbeat(blocks)
    assert sign is not None and sign.state == "done"


def test_what_ended_the_work_is_what_is_raised(storage: Storage, tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="broken"), job._heartbeat(Place(tmp_path)):
        storage.away = True
        raise CorpusError("broken")
    storage.away = False
    with pytest.raises(StorageError), job._heartbeat(Place(tmp_path)):
        storage.away = True
