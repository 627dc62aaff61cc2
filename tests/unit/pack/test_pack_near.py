"""Texts that differ a little are found, those that differ much are not, and the same ones everywhere."""

import subprocess
import sys
from random import Random

import numpy as np
import pytest

from zhlm.pack.near import SIGNATURE_SLOTS, near_copies, resembling, signatures, similarity, slots_of_band, slots_that_miss_none

HAN = [chr(c) for c in range(0x4E00, 0x5A00)]


def random_text(random: Random, characters: int = 400) -> str:
    return "".join(random.choices(HAN, k=characters))


def edited(text: str, random: Random, edits: int) -> str:
    characters = list(text)
    for place in random.sample(range(len(characters)), edits):
        characters[place] = random.choice(HAN)
    return "".join(characters)


def jaccard(one: str, other: str) -> float:
    first, second = ({t[i : i + 5] for i in range(len(t) - 4)} for t in (one, other))
    return len(first & second) / len(first | second)


def test_signatures_estimate_the_similarity() -> None:
    random = Random(1)
    texts = [random_text(random) for _ in range(200)]
    others = [edited(text, random, i % 20) for i, text in enumerate(texts)]
    both = signatures([*texts, *others])
    assert (both.shape, both.dtype) == ((400, SIGNATURE_SLOTS), np.uint32)
    estimated = similarity(both, np.arange(200), np.arange(200, 400))
    true = np.array([jaccard(a, b) for a, b in zip(texts, others, strict=True)])
    assert abs((estimated - true).mean()) < 0.01
    assert np.abs(estimated - true).max() < 5 * (0.25 / SIGNATURE_SLOTS) ** 0.5


def test_signatures_do_not_depend_on_the_batch_or_the_process() -> None:
    texts = ["春眠不觉晓，处处闻啼鸟。", "短", "", "𠮷野家", "春眠不觉晓，处处闻啼鸟。" * 30, "plain words"]
    together = signatures(texts)
    assert (together == np.concatenate([signatures([t]) for t in texts])).all()
    assert signatures([]).shape == (0, SIGNATURE_SLOTS)
    code = f"from zhlm.pack.near import signatures; print(signatures({texts!a}).tobytes().hex())"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env={"RAYON_NUM_THREADS": "1"})
    assert ran.stdout.strip() == together.tobytes().hex(), ran.stderr
    assert together[0, :4].tolist() == [3390685279, 3432531017, 3222683550, 3349980547], (
        "signatures in block stores would no longer compare: raise the version of the recipe"
    )


def test_near_ones_are_flagged_and_others_not() -> None:
    random = Random(2)
    texts = [random_text(random) for _ in range(300)]
    near = [edited(text, random, 2) for text in texts]  # about 0.95
    far = [edited(text, random, 30) for text in texts]  # about 0.5
    flags = near_copies(signatures([*texts, *near, *far]), 0.8)
    assert not flags[:300].any(), "the first of each group stays"
    assert flags[300:600].mean() > 0.99
    assert flags[600:].mean() < 0.01


def test_short_texts_are_near_only_their_copies() -> None:
    assert near_copies(signatures(["好", "好的", "好", "坏的"]), 0.8).tolist() == [False, False, True, False]


def test_a_large_group_of_copies_keeps_its_first() -> None:
    random = Random(3)
    text, other = random_text(random), random_text(random)
    texts = [other, *(edited(text, random, 1) for _ in range(500))]
    assert np.flatnonzero(~near_copies(signatures(texts), 0.8)).tolist() == [0, 1]


def test_chains_hang_together() -> None:
    steps = np.zeros((6, SIGNATURE_SLOTS), np.uint32)
    for step in range(1, 6):  # each differs from the one before in a tenth of the slots
        steps[step] = steps[step - 1]
        steps[step, (step - 1) * 12 : step * 12] = step
    assert near_copies(steps, 0.85).tolist() == [False, True, True, True, True, True]
    assert near_copies(steps[::2], 0.85).tolist() == [False, False, False]


@pytest.mark.parametrize(("threshold", "slots"), [(0.5, 3), (0.8, 6), (0.9, 10), (0.05, 1)])
def test_bands_find_pairs_at_the_threshold(threshold: float, slots: int) -> None:
    assert slots_of_band(threshold) == slots


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.8, 0.97])
def test_what_resembles_another_is_found_as_by_comparing_all(threshold: float) -> None:
    """Around the threshold, in crowded buckets: values are 0 to 3, and every other is a changed copy of the same few."""
    random = np.random.default_rng(4)
    bases = random.integers(0, 4, (3, SIGNATURE_SLOTS), np.uint32)
    rows = bases[random.integers(0, 3, 600)]
    changed = random.random(rows.shape) < random.random((600, 1)) * 1.2 * (1 - threshold)
    rows[changed] = random.integers(0, 1 << 32, rows.shape, np.uint32)[changed]
    documents, others = rows[:500], rows[500:]
    share = (documents[:, None] == others[None]).mean(axis=2)
    expected = (share >= threshold).any(axis=1)
    assert 20 < expected.sum() < 480
    assert resembling([documents], others, threshold)[0].tolist() == expected.tolist()
    parts = resembling([documents[:7], documents[7:7], documents[7:]], others[::-1], threshold)
    assert [len(p) for p in parts] == [7, 0, 493] and np.concatenate(parts).tolist() == expected.tolist()


def test_a_pair_that_differs_in_every_band_is_found() -> None:
    pair = np.zeros((2, SIGNATURE_SLOTS), np.uint32)
    pair[1, 2::6] = 1  # 21 slots, one in each band of near_copies
    pair[1, :4] = 1
    assert not near_copies(pair, 0.8).any()
    assert resembling([pair[:1]], pair[1:], 0.8)[0].tolist() == [True]
    assert resembling([pair[:1]], pair[:0], 0.8)[0].tolist() == [False]


@pytest.mark.parametrize(("threshold", "slots"), [(0.05, 1), (0.5, 2), (0.51, 2), (0.7, 3), (0.8, 4), (0.9, 9), (0.999, 128)])
def test_more_bands_than_slots_may_differ(threshold: float, slots: int) -> None:
    assert slots_that_miss_none(threshold) == slots
    if threshold > 0.505:
        assert SIGNATURE_SLOTS // slots > SIGNATURE_SLOTS - np.ceil(threshold * SIGNATURE_SLOTS)
