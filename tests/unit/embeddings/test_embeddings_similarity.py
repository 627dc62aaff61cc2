import numpy as np
import pytest
import torch

from zhlm.embeddings.similarity import _neighbours, _of_old_ids, similarity, sparsemax

FIRST = 20
"""Ids from here on are new."""


def sentences(num: int = 3000, seed: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Of two kinds: old 1-4 and new 20 stand between 5-9, old 11-14 and new 21 between 15-19."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(num):
        shift = 10 * int(rng.integers(2))
        word = int(rng.choice([1, 2, 3, 4, FIRST - shift + shift // 10])) + shift
        rows.append([*(rng.integers(5, 10, 2) + shift), word, *(rng.integers(5, 10, 2) + shift)])
    return np.concatenate(rows), np.arange(0, 5 * num + 1, 5)


def test_a_new_piece_is_mixed_from_old_ones_that_are_used_alike() -> None:
    ids_I, offsets = sentences()
    # The third new piece does not occur; spellings of all are ids that occur nowhere.
    mixture, unseen = similarity(ids_I, offsets, FIRST, [[0], [10], [0, 10, 10]])
    assert unseen == 1
    ends = np.cumsum(mixture.counts_N)
    parts = np.split(np.arange(len(mixture.old_ids_M)), ends[:-1])
    assert mixture.old_ids_M[parts[2]].tolist() == [0, 10, 10]
    assert mixture.weights_M[parts[2]] == pytest.approx([1 / 3] * 3)
    for part, own in ((parts[0], {0, 1, 2, 3, 4}), (parts[1], {10, 11, 12, 13, 14})):
        share = sum(w for row, w in zip(mixture.old_ids_M[part], mixture.weights_M[part], strict=True) if row in own)
        assert share > 0.9
        assert mixture.weights_M[part].sum() == pytest.approx(1, abs=1e-5)
        assert (mixture.weights_M[part] > 0).all() and (mixture.old_ids_M[part] < FIRST).all()


def test_twice_gives_the_same_and_leaves_the_random_state() -> None:
    torch.manual_seed(9)
    state = torch.get_rng_state()
    first, second = (similarity(*sentences(), FIRST, [[0], [10]])[0] for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert np.array_equal(first.old_ids_M, second.old_ids_M) and np.array_equal(first.weights_M, second.weights_M)


@pytest.mark.parametrize("ids", [[], [3], [3, 4, 3], [21]], ids=["none", "one", "only_old", "only_new"])
def test_texts_without_new_pieces_or_neighbours(ids: list[int]) -> None:
    mixture, unseen = similarity(np.asarray(ids, np.uint32), np.asarray([0, len(ids)]), FIRST, [[1, 2], [3], []])
    assert unseen == 3 - (21 in ids)
    old_VD = torch.arange(40.0).reshape(20, 2)
    assert torch.allclose(mixture(old_VD), torch.stack([old_VD[1:3].mean(0), old_VD[3], old_VD.mean(0)]))


def dense(pairs: object, shape: tuple[int, int]) -> list[list[int]]:
    found = np.zeros(shape, np.int64)
    found[pairs.rows_P, pairs.columns_P] = pairs.counts_P  # type: ignore[attr-defined]
    return found.tolist()


def test_neighbours_are_of_the_same_text_and_on_both_sides() -> None:
    # Texts: a b a | c | a c, with a = 0, b = 1, c = 2.
    pairs = _neighbours(np.asarray([0, 1, 0, 2, 0, 2]), np.asarray([0, 3, 4, 6]), 3)
    assert dense(pairs, (3, 3)) == [[2, 2, 1], [2, 0, 0], [1, 0, 0]]


def test_an_old_piece_has_the_neighbours_of_the_new_ones_that_it_spells() -> None:
    seen_U = np.asarray([4, 6, FIRST, FIRST + 1])
    near = _neighbours(np.asarray([0, 2, 1, 3]), np.asarray([0, 2, 4]), 4)  # 4 beside 20, 6 beside 21
    old_O, pairs = _of_old_ids(near, seen_U, [[4, 4], [5]], FIRST)
    assert old_O.tolist() == [4, 5, 6]
    # 4 stands beside 20, and twice inside of 20 beside 4; 5 is inside of 21 beside 6.
    assert dense(pairs, (3, 4)) == [[2, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 1]]


def test_sparsemax() -> None:
    scores = torch.tensor([[0.9, 0.8, 0.1], [3.0, 0.5, 0.1], [0.2, 0.2, 0.2]])
    assert torch.allclose(sparsemax(scores), torch.tensor([[0.55, 0.45, 0.0], [1.0, 0.0, 0.0], [1 / 3, 1 / 3, 1 / 3]]))
