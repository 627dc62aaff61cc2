"""Two stages at the same time: one in the main thread, one beside it, and neither outlives the other's failure."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from zhlm.records import Progress, Report

STOP_TIMEOUT_S = 30
"""How long the work beside may take to end when the main one has failed."""

T = TypeVar("T")


class _Stopped(Exception):  # noqa: N818 - not a failure
    """Ends the work beside at its next report."""


@contextmanager
def interruptible() -> Iterator[None]:
    """A SIGINT reaches the main thread, which runs this block, also where the `&` of a script made the process deaf to it."""
    before = signal.getsignal(signal.SIGINT)
    if before == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        if before == signal.SIG_IGN:
            signal.signal(signal.SIGINT, before)


def at_once(main: Callable[[], T], beside: Callable[[Report], None], report: Report) -> T:
    """What `main` returns, once `beside` has ended too, in a thread. The first error of either ends both and is the one that is raised."""
    stopped, ended = threading.Event(), threading.Event()  # not Thread.join: interrupted, it takes a running thread for one that has ended
    errors: list[BaseException] = []
    main_thread = threading.get_ident()

    def checked(progress: Progress) -> None:
        if stopped.is_set():
            raise _Stopped
        report(progress)

    def work() -> None:
        try:
            beside(checked)
        except BaseException as error:
            if not stopped.is_set():
                errors.append(error)
                signal.pthread_kill(main_thread, signal.SIGINT)  # the one way to end whatever `main` waits for
        finally:
            ended.set()

    try:
        with interruptible():
            threading.Thread(target=work, daemon=True, name="zhlm-beside").start()
            result = main()
            ended.wait()
        if errors:
            raise errors[0]
    except BaseException:
        stopped.set()
        ended.wait(STOP_TIMEOUT_S)
        if errors:
            raise errors[0] from None
        raise
    return result
