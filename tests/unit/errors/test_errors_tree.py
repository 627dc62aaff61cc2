"""Every error survives the way through Ray, and the user's mistake is found behind any wrapping."""

import inspect
import pickle
import subprocess
import sys

import pytest

from zhlm import errors
from zhlm.errors import CorpusError, StorageError, TrainError, UserError, ZhlmError, find_user_error

TREE = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, ZhlmError)]


def test_the_tree_has_all_its_classes() -> None:
    assert {"ConfigError", "CorpusError", "StorageError", "CheckpointError", "TrainError"} <= {k.__name__ for k in TREE}
    assert all(kind.__doc__ and kind.__module__ == "zhlm.errors" for kind in TREE)


@pytest.mark.parametrize("kind", TREE, ids=lambda k: k.__name__)
@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_an_error_is_pickled_with_its_facts(kind: type[ZhlmError], protocol: int) -> None:
    back = pickle.loads(pickle.dumps(kind("corpus: 中文.txt is broken", path="中文.txt", line=3), protocol))
    assert type(back) is kind and str(back) == "corpus: 中文.txt is broken" and back.facts == {"path": "中文.txt", "line": 3}
    assert str(pickle.loads(pickle.dumps(kind()))) == ""


def test_rays_pickle_keeps_every_class() -> None:
    """In a process of its own, because importing ray takes longer than all other tests of this file."""
    code = """
import warnings; warnings.simplefilter("ignore")
import inspect
from ray import cloudpickle
from ray.exceptions import RayTaskError
from zhlm import errors
for _, kind in inspect.getmembers(errors, inspect.isclass):
    if not issubclass(kind, errors.ZhlmError):
        continue
    back = cloudpickle.loads(cloudpickle.dumps(kind("m", line=3)))
    assert type(back) is kind and str(back) == "m" and back.facts == {"line": 3}, kind
    wrapped = RayTaskError("f", "the whole traceback", kind("m", line=3))
    for error in (wrapped, wrapped.as_instanceof_cause(), cloudpickle.loads(cloudpickle.dumps(wrapped))):
        found = errors.find_user_error(error)
        if issubclass(kind, errors.UserError):
            assert type(found) is kind and str(found) == "m", (kind, str(found))
        else:
            assert found is None, kind
print("ok")
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert ran.stdout.strip() == "ok", ran.stderr


class LikeRayTaskError(Exception):
    def __init__(self, cause: BaseException) -> None:
        super().__init__("a long traceback")
        self.cause = cause


class LikeWorkerGroupError(Exception):
    def __init__(self, failures: dict[int, BaseException]) -> None:
        super().__init__("2 workers failed")
        self.worker_failures = failures


def chained(outer: Exception, inner: Exception, *, explicit: bool) -> Exception:
    try:
        try:
            raise inner
        except Exception as met:
            if explicit:
                raise outer from met
            raise outer  # noqa: B904 - the implicit chain is what is tested
    except Exception as error:
        return error


MISTAKE = CorpusError("corpus: x is empty")


@pytest.mark.parametrize(
    "error",
    [
        MISTAKE,
        chained(RuntimeError("outer"), MISTAKE, explicit=True),
        chained(RuntimeError("outer"), MISTAKE, explicit=False),
        LikeRayTaskError(MISTAKE),
        LikeWorkerGroupError({0: ValueError("lost its partner"), 1: LikeRayTaskError(MISTAKE)}),
        chained(RuntimeError("outermost"), LikeWorkerGroupError({3: chained(KeyError("k"), MISTAKE, explicit=True)}), explicit=True),
        chained(TrainError("train: the workers kept failing"), LikeRayTaskError(MISTAKE), explicit=True),
    ],
)
def test_the_mistake_is_found(error: BaseException) -> None:
    assert find_user_error(error) is MISTAKE


def test_what_is_no_mistake_of_the_user_is_not_called_one() -> None:
    for error in (ValueError("x"), TrainError("train: nan"), LikeRayTaskError(TrainError("x")), LikeWorkerGroupError({})):
        assert find_user_error(error) is None
    odd = ValueError("x")
    odd.cause = "text"  # type: ignore[attr-defined]
    assert find_user_error(odd) is None


def test_rings_end() -> None:
    one, other = ValueError("one"), ValueError("other")
    one.__cause__, other.__cause__ = other, one
    assert find_user_error(one) is None


def test_the_nearest_mistake_wins() -> None:
    outer = StorageError("storage: outer")
    assert find_user_error(chained(outer, MISTAKE, explicit=True)) is outer
    assert isinstance(outer, UserError)
