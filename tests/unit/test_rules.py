"""The project's rules, held by machine: sizes, language, entry points, and what may be imported when."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "zhlm"
MODULES = sorted(PACKAGE.rglob("*.py"))
STAGES = ("sample", "vocab", "pack", "train", "export", "evaluate", "serve")

MODULE_LINES = 400
FUNCTION_LINES = 60
ROOM_LINES = 1600
PACKAGE_LINES = 24_000

HAN_ALLOWED = {"zhlm/sample/lexicon.py", "zhlm/sample/grammar.py", "zhlm/tokenizer/encode.py", "zhlm/cli.py"}
"""Modules whose Chinese is data: words of the sample, hard cases for tokenizers, a prompt in the help. zhlm/text/ as well."""
PRINT_ALLOWED = {"zhlm/cli.py", "zhlm/pipeline.py", "zhlm/serve/job.py", "zhlm/submit/jobs.py"}
"""Modules that talk to the person at the terminal; stages report."""

HAN = re.compile("[\u2e80-\u2fdf\u3005-\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def trees() -> list[tuple[str, ast.Module]]:
    return [(relative(m), ast.parse(m.read_text(encoding="utf-8"))) for m in MODULES]


def num_lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def test_modules_and_rooms_are_short_and_the_package_is_small() -> None:
    assert len(MODULES) > 40, "the package was not found"
    assert {relative(m): n for m in MODULES if (n := num_lines(m)) > MODULE_LINES} == {}
    rooms = {m.parent for m in MODULES} - {PACKAGE}
    assert {relative(r): n for r in rooms if (n := sum(map(num_lines, r.glob("*.py")))) > ROOM_LINES} == {}
    assert sum(map(num_lines, MODULES)) <= PACKAGE_LINES


def test_functions_are_short() -> None:
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    found = [(name, f) for name, tree in trees() for f in ast.walk(tree) if isinstance(f, kinds)]
    assert len(found) > 200
    lengths = {f"{name}:{f.name}": (f.end_lineno or 0) - f.lineno + 1 for name, f in found}
    assert {place: n for place, n in lengths.items() if n > FUNCTION_LINES} == {}


def test_folders_are_two_levels_deep() -> None:
    assert [relative(m) for m in MODULES if len(m.relative_to(PACKAGE).parts) > 2] == []


def test_code_and_comments_are_english() -> None:
    searched = [*MODULES, *(ROOT / "ray_jobs").rglob("*.py"), *(ROOT / "scripts").rglob("*")]
    own = [p for p in searched if p.is_file() and p.suffix != ".pyc" and relative(p) not in HAN_ALLOWED and p.parent.name != "text"]
    assert own
    assert [relative(p) for p in own if HAN.search(p.read_text(encoding="utf-8"))] == []


def test_the_lexicon_is_found_by_the_search_for_chinese() -> None:
    assert HAN.search((PACKAGE / "sample" / "lexicon.py").read_text(encoding="utf-8")), "the test above would find nothing"


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_has_one_job_with_a_run(stage: str) -> None:
    tree = ast.parse((PACKAGE / stage / "job.py").read_text(encoding="utf-8"))
    run = next(n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == "run")
    assert [a.arg for a in run.args.args] == ["config", "report"]
    assert ast.get_docstring(run)
    assert (ROOT / "ray_jobs" / f"{stage}.py").is_file() or stage == "sample"


def test_rooms_say_what_they_are_and_import_nothing() -> None:
    rooms = sorted(p for p in PACKAGE.glob("*/__init__.py"))
    assert len(rooms) > 10
    for room in rooms:
        tree = ast.parse(room.read_text(encoding="utf-8"))
        assert ast.get_docstring(tree), f"{relative(room)} has no docstring"
        assert len(tree.body) == 1, f"{relative(room)} holds more than its docstring"


def test_every_module_says_what_it_is() -> None:
    assert [name for name, tree in trees() if not ast.get_docstring(tree)] == []


def test_only_the_terminals_modules_print() -> None:
    prints = {
        name
        for name, tree in trees()
        for call in ast.walk(tree)
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "print"
    }
    assert "zhlm/cli.py" in prints
    assert prints - PRINT_ALLOWED == set()


def test_no_error_is_swallowed() -> None:
    """`except Exception: pass`, a bare `except:` and a bare `raise ValueError` hide what the user must know."""
    found = []
    for name, tree in trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.ExceptHandler):
                broad = node.type is None or (isinstance(node.type, ast.Name) and node.type.id in ("Exception", "BaseException"))
                if broad and all(isinstance(s, ast.Pass | ast.Continue) for s in node.body):
                    found.append(f"{name}:{node.lineno}")
            if (
                isinstance(node, ast.Raise)
                and isinstance(node.exc, ast.Name)
                and node.exc.id in ("ValueError", "RuntimeError", "Exception")
            ):
                found.append(f"{name}:{node.lineno}")
    assert found == []


def test_assertions_say_what_is_wrong() -> None:
    assert [f"{name}:{n.lineno}" for name, tree in trees() for n in ast.walk(tree) if isinstance(n, ast.Assert) and n.msg is None] == []


def test_files_are_read_and_written_as_utf8() -> None:
    """The default depends on the machine: a Chinese corpus breaks where it is not UTF-8."""
    calls = [(name, n) for name, tree in trees() for n in ast.walk(tree) if isinstance(n, ast.Call)]
    found = []
    for name, call in calls:
        function, encoded = call.func, "encoding" in {k.arg for k in call.keywords}
        # Place.read_text is UTF-8 by itself, and the two can be told apart only where a Path is made on the spot.
        on_path = isinstance(function, ast.Attribute) and function.attr in ("read_text", "write_text") and is_new_path(function.value)
        mode = str(call.args[1].value) if len(call.args) > 1 and isinstance(call.args[1], ast.Constant) else "r"
        as_text = isinstance(function, ast.Name) and function.id == "open" and "b" not in mode
        if (on_path or as_text) and not encoded:
            found.append(f"{name}:{call.lineno}")
    assert found == []


def is_new_path(node: ast.expr) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Path"


@pytest.mark.parametrize(
    "module",
    ["zhlm.cli", "zhlm.pipeline", "zhlm.submit.plan", "zhlm.config.load", "zhlm.storage", "zhlm.text.normalise", "zhlm.text.reject"],
)
def test_a_laptop_needs_no_torch(module: str) -> None:
    code = f"import sys, {module}; print(*sorted({{'torch', 'ray', 'transformers', 'deepspeed', 'peft', 'vllm'}} & set(sys.modules)))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (ran.returncode, ran.stdout.strip()) == (0, ""), ran.stderr


def test_no_machine_is_named() -> None:
    """Paths of one machine in the code would work nowhere else."""
    local = re.compile(r"/(?:work|home|root|Users)/")
    assert [relative(m) for m in MODULES if local.search(m.read_text(encoding="utf-8"))] == []
