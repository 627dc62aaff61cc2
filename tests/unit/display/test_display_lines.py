"""What the person sees: plain lines in a log, one live line on a terminal, and nobody else's noise."""

import io
import os
import pty
import re
import select
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from zhlm import display
from zhlm.display import Display
from zhlm.records import Progress


def progress(done: float, **facts: float | int | str) -> Progress:
    return Progress("train", done, 100, "steps", facts)


class Clock:
    now_s = 1000.0

    def monotonic(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(display, "time", clock)
    return clock


def test_a_log_gets_few_plain_lines_and_always_the_last(clock: Clock) -> None:
    out = io.StringIO()
    with Display(out) as shown:
        shown.start("train", "starts")
        for step in range(101):
            clock.now_s += 0.5
            shown.report(progress(step))
        shown.finish("train", "loss 1.234")
    lines = out.getvalue().splitlines()
    assert lines[0] == "train     starts"
    assert lines[-1] == "train     done in 50s: loss 1.234"
    reported = [int(line.split()[1].split("/")[0]) for line in lines[1:-1]]
    assert reported == [*range(0, 101, 10)]
    assert "\x1b" not in out.getvalue() and "\r" not in out.getvalue()


def test_the_last_report_is_shown_even_at_once(clock: Clock) -> None:
    out = io.StringIO()
    with Display(out) as shown:
        shown.start("pack", "starts")
        for step in (1, 2, 3, 100):
            shown.report(progress(step))
    assert [line.split()[1] for line in out.getvalue().splitlines()[1:]] == ["1/100", "100/100"]


def test_each_stage_shows_its_first_report(clock: Clock) -> None:
    out = io.StringIO()
    with Display(out) as shown:
        for stage in ("pack", "train"):
            shown.start(stage, "starts")
            shown.report(Progress(stage, 1, 9, "files"))
    told = [line.rstrip() for line in out.getvalue().splitlines()]
    assert told == ["pack      starts", "pack      1/9 files", "train     starts", "train     1/9 files"]


def test_two_stages_at_a_time_keep_their_own_measurements(clock: Clock) -> None:
    out = io.StringIO()
    with Display(out) as shown:
        shown.start("pack", "starts")
        clock.now_s += 100
        shown.start("train", "starts")
        for step in range(1, 5):
            clock.now_s += 10
            shown.report(Progress("pack", step, 10, "shards"))
            shown.report(progress(step))
        shown.finish("pack", "all")
        clock.now_s += 1
        shown.finish("train", "")
    lines = [line.rstrip() for line in out.getvalue().splitlines()]
    assert lines[-4:] == [
        "pack      4/10 shards    left 1m00s",
        "train     4/100 steps    left 16m00s",
        "pack      done in 2m20s: all",
        "train     done in 41s",
    ]


def test_facts_are_short_and_the_time_left_is_measured_from_where_this_run_began(clock: Clock) -> None:
    out = io.StringIO()
    with Display(out) as shown:
        shown.start("train", "goes on where it stopped")
        shown.report(progress(50))
        clock.now_s += 100
        shown.report(progress(60, loss_nats=1.23456, tokens_per_s=12345.6, learning_rate=3e-4, workers=2, note="ok"))
        clock.now_s += 3600
        shown.report(progress(61))
    lines = out.getvalue().splitlines()
    assert lines[2] == "train     60/100 steps  loss 1.235  tok/s 12,346  lr 3.0e-04  workers 2  note ok  left 6m40s"
    assert lines[3].endswith("left 3h38m")  # 39 steps at 11 steps in 3,700 s


def test_a_restart_of_the_training_starts_the_measurement_anew(clock: Clock) -> None:
    out = io.StringIO()
    with Display(out) as shown:
        shown.start("train", "starts")
        shown.report(progress(90))
        clock.now_s += 10
        shown.report(progress(20))  # fell back to its checkpoint
        clock.now_s += 10
        shown.report(progress(40))
    assert out.getvalue().splitlines()[-1].endswith("left 30s")


def test_another_unit_starts_the_measurement_anew(clock: Clock) -> None:
    out = io.StringIO()
    with Display(out) as shown:
        shown.start("vocab", "starts")
        shown.report(Progress("vocab", 0, 10, "files"))
        clock.now_s += 100
        for done in (10, 20):  # slower from here on
            shown.report(Progress("vocab", done, 30, "files proved"))
            clock.now_s += 100
        shown.report(Progress("vocab", 25, 30, "files proved"))
    assert out.getvalue().splitlines()[-1].endswith("left 1m07s")  # 5 at 15 in 200 s


def test_long_lines_and_brackets_stay_as_they_are() -> None:
    out = io.StringIO()
    with Display(out) as shown:
        shown.line("[bold]x[/bold] " + "中文" * 200)
        shown.skip("pack")
    assert out.getvalue().splitlines() == ["[bold]x[/bold] " + "中文" * 200, "pack      finished earlier, nothing to do"]


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0s"), (59.4, "59s"), (59.6, "1m00s"), (3599, "59m59s"), (3600, "1h00m"), (90061, "25h01m")]
)
def test_spans(seconds: float, text: str) -> None:
    assert display._span(seconds) == text


def on_a_terminal(fail: bool, show: Callable[[Display], None] | None = None) -> str:
    """What a pseudo-terminal receives from a display with a live line."""
    controller, terminal = pty.openpty()
    received: list[bytes] = []

    def drain() -> None:
        while select.select([controller], [], [], 10)[0]:
            try:
                data = os.read(controller, 65536)
            except OSError:  # the other end is closed
                return
            if not data:
                return
            received.append(data)

    reader = threading.Thread(target=drain)
    reader.start()
    try:
        with os.fdopen(terminal, "w", encoding="utf-8") as stream, Display(stream) as shown:
            shown.start("train", "starts")
            if show:
                show(shown)
            print("noise of a library")
            for step in range(1, 101):
                shown.report(progress(step, loss_nats=2.0))
            if fail:
                raise ValueError("in the middle")
            shown.finish("train", "")
            shown.line("bye")
    except ValueError:
        assert fail
    finally:
        reader.join(20)
        os.close(controller)
    return b"".join(received).decode()


@pytest.fixture
def real_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "120")


@pytest.mark.parametrize("fail", [False, True])
def test_on_a_terminal_the_live_line_ends_clean(real_terminal: None, fail: bool) -> None:
    text = on_a_terminal(fail)
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") == 1, "the cursor is hidden once and shown again"
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")
    # What follows the last clearing of a line is all that stays of the live one: nothing.
    after = text[text.rindex("\x1b[2K") :]
    assert "steps" not in after and "loss" not in after
    if not fail:
        assert "bye" in text and "done in 0s" in text


def test_on_a_terminal_there_are_no_plain_progress_lines(real_terminal: None) -> None:
    text = on_a_terminal(False)
    assert "100/100 steps  loss" not in text
    assert "noise" not in text, "what others print is not drawn above the live line"


def test_on_a_terminal_two_stages_have_a_live_line_each(real_terminal: None) -> None:
    def both(shown: Display) -> None:
        shown.start("pack", "starts")
        shown.report(progress(7))
        shown.report(Progress("pack", 3, 9, "shards"))
        time.sleep(0.6)  # the live lines are drawn four times a second
        shown.finish("pack", "all of it")

    text = on_a_terminal(False, both)
    assert re.search(r"train\W.*7/100 steps.*\n.*pack\W.*3/9 shards", text)
    assert text.count("\x1b[?25h") == 1 and "all of it" in text and "pack" not in text[text.rindex("\x1b[2K") :]


QUIET = """
import os, subprocess, sys, warnings
from pathlib import Path
from zhlm.display import quiet
print("before")
try:
    with quiet(Path(sys.argv[1])) as terminal:
        print("python"); os.write(1, b"native out\\n"); os.write(2, b"native err\\n")
        subprocess.run(["sh", "-c", "echo child; echo child err >&2"], check=True)
        print("buffered", end="")
        terminal.write("shown \\u4e2d\\n")
        if sys.argv[2] == "fail":
            raise ValueError("inside")
except ValueError:
    print("caught")
os.write(1, b"native after\\n"); subprocess.run(["echo", "child after"], check=True)
print("after"); print("after err", file=sys.stderr)
print(len(os.listdir("/proc/self/fd")))
with quiet(Path(sys.argv[1])): pass
print(len(os.listdir("/proc/self/fd")))
"""


@pytest.mark.parametrize("how", ["well", "fail"])
def test_quiet_sends_all_noise_to_the_log_and_restores_the_terminal(tmp_path: Path, how: str) -> None:
    log = tmp_path / "logs" / "run.log"
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8"}
    ran = subprocess.run(
        [sys.executable, "-c", QUIET, str(log), how], capture_output=True, text=True, encoding="utf-8", env=environment, timeout=60
    )
    assert ran.returncode == 0, ran.stderr
    *lines, open_before, open_after = ran.stdout.splitlines()
    middle = ["caught"] if how == "fail" else []
    assert lines == ["before", "shown 中", *middle, "native after", "child after", "after"]
    assert ran.stderr.splitlines() == ["after err"]
    assert open_before == open_after, "no descriptor is lost"
    noise = log.read_text(encoding="utf-8")
    assert noise.splitlines() == ["python", "native out", "native err", "child", "child err", "buffered"]


def test_a_log_is_continued_not_replaced(tmp_path: Path) -> None:
    log = tmp_path / "run.log"
    log.write_text("earlier\n", encoding="utf-8")
    code = "import sys\nfrom pathlib import Path\nfrom zhlm.display import quiet\nwith quiet(Path(sys.argv[1])): print('now')"
    subprocess.run([sys.executable, "-c", code, str(log)], check=True, timeout=60)
    assert log.read_text(encoding="utf-8") == "earlier\nnow\n"
