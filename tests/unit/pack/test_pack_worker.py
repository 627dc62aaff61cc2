"""What runs in a Ray Data task, without Ray."""

import pickle
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zhlm.errors import ClusterError, CorpusError
from zhlm.pack.job import MOST_TOGETHER, dealt
from zhlm.pack.worker import ATTEMPTS, answer, on_row


@dataclass(frozen=True)
class Task:
    """As much of a task as a row needs."""

    key: str
    source: Any


def task(key: str) -> Task:
    return Task(key, SimpleNamespace(part=SimpleNamespace(source=f"{key}.jsonl")))


def row(*keys: str) -> dict[str, Any]:
    return {"tasks": pickle.dumps(list(enumerate(map(task, keys), start=4)))}


@pytest.fixture(autouse=True)
def session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Ray's folder on this machine."""
    (tmp_path / "session").mkdir()
    context = SimpleNamespace(get_temp_dir=lambda: str(tmp_path), get_session_name=lambda: "session")
    monkeypatch.setattr("ray.get_runtime_context", lambda: context)
    return tmp_path / "session"


def test_a_row_carries_tasks_and_answers_one_by_one(session: Path) -> None:
    seen: list[str] = []
    answers = on_row(lambda t: seen.append(t.key) or t.key.upper(), "run", row("a", "b"))
    first = next(answers)
    assert seen == ["a"], "an answer travels before the next task begins"
    assert (first["index"], pickle.loads(first["answer"])) == (4, "A")
    assert [(r["index"], pickle.loads(r["answer"])) for r in answers] == [(5, "B")]
    assert not list(session.glob("*/*"))


def test_an_error_of_ours_travels_as_an_answer() -> None:
    def fails(_: object) -> None:
        raise CorpusError("corpus: a.txt line 3: broken", path="a.txt", line=3)

    error = pickle.loads(answer(fails, None))
    assert isinstance(error, CorpusError) and error.facts == {"path": "a.txt", "line": 3}


def test_a_part_over_which_workers_die_is_given_up() -> None:
    class Died(BaseException):
        """Stands for the end of the process."""

    def dies(one: Task) -> str:
        if one.key == "bad":
            raise Died
        return "done"

    for _ in range(ATTEMPTS):
        with pytest.raises(Died):
            list(on_row(dies, "run", row("good", "bad")))
    good, bad = (pickle.loads(r["answer"]) for r in on_row(dies, "run", row("good", "bad")))
    assert good == "done"
    assert isinstance(bad, ClusterError) and "4 workers died over bad.jsonl" in str(bad)
    with pytest.raises(Died):  # another execution counts anew
        list(on_row(dies, "another run", row("bad")))


@given(st.integers(0, 300), st.integers(1, 20))
def test_every_part_is_dealt_once_and_the_last_ones_singly(count: int, workers: int) -> None:
    groups = dealt(count, workers)
    assert sorted(n for group in groups for n in group) == list(range(count))
    assert all(0 < len(group) <= MOST_TOGETHER for group in groups)
    assert all(len(group) == 1 for group in groups[-workers:])
    assert [group[0] for group in groups[:workers]] == list(range(min(count, workers))), "neighbours go to different workers"
