"""Batches that are made while the ones before are trained on."""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import TypeVar

T = TypeVar("T")


class Ahead(Iterator[T]):
    """What an iterator gives, in its order, taken from it in a thread one item ahead. An error comes out in the place of its item."""

    def __init__(self, items: Iterator[T]) -> None:
        self._items, self._pool = items, ThreadPoolExecutor(1, "zhlm-make")
        self._next: Future[T] = self._pool.submit(next, self._items)

    def __next__(self) -> T:
        item = self._next.result()
        self._next = self._pool.submit(next, self._items)
        return item

    def ready(self, timeout_s: float) -> bool:
        """Whether the next item, or what is in its place, is there; waits for it so long at most."""
        with suppress(TimeoutError):
            self._next.exception(timeout_s)
        return self._next.done()

    def close(self) -> None:
        """End the thread; what the iterator waits for must have ended before."""
        self._pool.shutdown(cancel_futures=True)
