"""Items taken ahead in a thread: their order, an error in its place, and no more than one ahead."""

import threading
from collections.abc import Iterator

import pytest

from zhlm.objectives.ahead import Ahead


def test_items_come_in_order_and_an_error_in_its_place() -> None:
    def items() -> Iterator[int]:
        yield 1
        yield 2
        raise ZeroDivisionError("three")

    ahead = Ahead(items())
    assert ahead.ready(10) and next(ahead) == 1 and next(ahead) == 2
    assert ahead.ready(10)
    with pytest.raises(ZeroDivisionError, match="three"):
        next(ahead)
    ahead.close()
    done = Ahead(iter([7]))
    assert [*done] == [7]
    done.close()


def test_one_is_made_ahead_and_its_thread_ends() -> None:
    given, go = [], threading.Event()

    def items() -> Iterator[int]:
        for n in range(9):
            given.append(n)
            if n == 1:
                assert go.wait(10)
            yield n

    before = threading.active_count()
    ahead = Ahead(items())
    assert next(ahead) == 0 and not ahead.ready(0.1), "the next one is under way"
    go.set()
    assert ahead.ready(10) and given == [0, 1]
    ahead.close()
    assert threading.active_count() == before and given == [0, 1]
