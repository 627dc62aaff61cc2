"""Tensor files are plain safetensors, verified, and cut by names."""

import hashlib
import math
import os
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from zhlm.checkpoint import files
from zhlm.checkpoint.files import Tensors, file_bytes, file_name, kind_of, name_ranges, names_by_owner, write_tensors
from zhlm.errors import CheckpointError

TENSORS = {"b": torch.randn(3, 5), "a.scalar": torch.tensor(2.5), "row": torch.arange(7.0), "half": torch.ones(2, 2, dtype=torch.bfloat16)}


def test_a_written_file_is_what_the_library_reads(tmp_path: Path) -> None:
    path, beats = tmp_path / "x.safetensors", []
    checksum = write_tensors(path, TENSORS, lambda: beats.append(1))
    found = load_file(path)
    assert found.keys() == TENSORS.keys() and all(torch.equal(found[n], t.float()) for n, t in TENSORS.items())
    assert checksum == hashlib.sha256(path.read_bytes()).hexdigest()
    assert path.stat().st_size == file_bytes(TENSORS) and (path.stat().st_size - 4 * (15 + 1 + 7 + 4)) % 8 == 0
    assert len(beats) > len(TENSORS)


def test_large_tensors_go_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "CHUNK_BYTES", 100)
    large = {"w": torch.randn(37, 11)}
    write_tensors(tmp_path / "x", large)
    assert torch.equal(load_file(tmp_path / "x")["w"], large["w"])


def test_a_disk_that_changes_a_byte_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = os.fsync

    def bad_disk(number: int) -> None:
        synced(number)
        os.pwrite(number, b"\x01", 300)

    monkeypatch.setattr(os, "fsync", bad_disk)
    with pytest.raises(CheckpointError, match="does not read back as written"):
        write_tensors(tmp_path / "x", {"w": torch.zeros(100)})


def test_tensors_of_several_files_are_one_mapping(tmp_path: Path) -> None:
    parts = [{"a": torch.ones(2)}, {"b": torch.zeros(3), "c": torch.tensor(4.0)}]
    paths = [tmp_path / file_name("trainable", n, 2) for n in range(2)]
    for path, part in zip(paths, parts, strict=True):
        write_tensors(path, part)
    found = Tensors(paths)
    assert sorted(found) == ["a", "b", "c"] and len(found) == 3 and found["b"].tolist() == [0, 0, 0] and "d" not in found
    assert [p.name for p in paths] == ["trainable-00001-of-00002.safetensors", "trainable-00002-of-00002.safetensors"]
    assert {kind_of(p.name) for p in paths} == {kind_of(file_name("trainable", 0, 1))} == {"trainable"}
    (tmp_path / "no").write_bytes(b"\xff" * 40)
    with pytest.raises(CheckpointError, match="no whole file of tensors"):
        Tensors([tmp_path / "no"])


@settings(max_examples=40)
@given(st.dictionaries(st.text("abc", min_size=1, max_size=4), st.integers(1, 1000), min_size=1, max_size=30), st.integers(1, 12))
def test_ranges_hold_every_name_once_in_order_and_are_balanced(sizes: dict[str, int], most: int) -> None:
    ranges = name_ranges(sizes, most)
    assert [name for part in ranges for name in part] == sorted(sizes)
    assert all(ranges) and len(ranges) == min(most, len(sizes))
    share = math.ceil(sum(sizes.values()) / most)
    assert max(sum(sizes[n] for n in part) for part in ranges) <= 2 * share + 2 * max(sizes.values())
    assert names_by_owner(ranges) == {name: rank for rank, part in enumerate(ranges) for name in part}
