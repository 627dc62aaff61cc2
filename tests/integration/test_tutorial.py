"""The tutorial: both languages have the same commands, and these do what the text says, on tiny models under the names that the hub has."""

import json
import multiprocessing
import os
import re
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from tiny_bases import bert_folder, bloom_folder, gpt2_folder, t5_folder
from zhlm import cli

ROOT = Path(__file__).parents[2]
BASES: dict[str, Callable[[Path], Path]] = {
    "wenzhong_gpt2_lora_zero2": lambda path: gpt2_folder(path, wordpiece=True),
    "bert_base_chinese_mlm": bert_folder,
    "gpt2_medium_full": gpt2_folder,
    "bloom_causal": bloom_folder,
    "mt5_span_corruption": lambda path: t5_folder(path, tied=False),
}
"""By config."""
COMMIT = "0" * 40
SERVER, SERVER_OF_ANOTHER_TEST = "# until Ctrl-C", "# with vLLM, until Ctrl-C"
"""At the end of a line that goes on: what follows in its block is asked of it. vLLM takes a minute to start; test_serve.py does that."""
READY_S = 150


def sections(file: str) -> dict[str, list[str]]:
    """Heading -> its blocks of commands, in order."""
    _, *parts = re.split(r"^## ", (ROOT / "docs" / file).read_text(encoding="utf-8"), flags=re.M)
    return {part.partition("\n")[0]: re.findall(r"^```bash\n(.*?)^```$", part, flags=re.M | re.S) for part in parts}


def makes_data(block: str) -> bool:
    return block.startswith("mkdir -p data")


ENGLISH = sections("tutorial.md")
EXPECTED = {
    "A": [
        "transformer.h.*.attn.c_attn", "tied", "repeats", "documents begin with [CLS] and end with [SEP]", "logits as trained within",
        "24 documents read", "learns", "|-", "> 老张推着自行车", "adapted",
    ],
    "B": ["objectives", "masked", "66 documents read", "[MASK]=", '"masks"', '"score"'],
    "C": ["1 rows added", "optimizer states", "\\xe", "> 小明的生日是哪一天？"],
    "D: BLOOM": ["BloomForCausalLM", "> 杭州是浙江的一座"],
    "D with T5": ["reads", "writes", "<extra_id_0>", "的一座城市。", '"texts"'],
    "D with a prefix": ["a prefix of", "> 杭州是浙江的一座"],
}  # fmt: skip
"""What the text tells the reader to look at."""


def test_both_languages_have_the_same_commands() -> None:
    chinese = sections("tutorial.zh.md")
    assert list(chinese.values()) == list(ENGLISH.values())
    assert sum(map(len, ENGLISH.values())) > 20, "the blocks were not found"


class Shell:
    """A folder where commands are run as in a terminal. Those of zhlm are called in a process of their own that stays: each would load the
    same libraries again."""

    def __init__(self, folder: Path, process: Executor) -> None:
        self.folder, self._process, self._environment = folder, process, dict(os.environ)

    def run(self, block: str) -> str:
        """The output of all of its lines. They must not fail."""
        first, *rest = block.splitlines(keepends=True)
        if first.rstrip().endswith(SERVER_OF_ANOTHER_TEST):
            return ""
        if first.rstrip().endswith(SERVER):
            with self._served(first) as address:
                return self._bash("".join(rest).replace("http://127.0.0.1:8000", address))
        output, pending = "", ""
        for line in block.splitlines(keepends=True):
            if not line.startswith(("zhlm ", "export ")):
                pending += line
                continue
            output, pending = output + self._bash(pending), ""
            output += self._zhlm(line) if line.startswith("zhlm ") else self._export(line)
        return output + self._bash(pending)

    def _export(self, line: str) -> str:
        name, _, value = shlex.split(line)[1].partition("=")
        self._environment[name] = value
        return ""

    def _bash(self, text: str) -> str:
        return self._checked(text, ["bash", "-euo", "pipefail", "-c", text]) if text else ""

    def _checked(self, what: str, command: list[str]) -> str:
        done = subprocess.run(command, cwd=self.folder, env=self._environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, f"{what}\n{done.stdout}{done.stderr}"
        return done.stdout

    def _words(self, line: str) -> list[str]:
        settings = re.sub(r"\$(\w+)", lambda found: self._environment[found[1]], line)
        return shlex.split(settings, comments=True)[1:]

    def _zhlm(self, line: str) -> str:
        output = self.folder / "output.txt"
        code = self._process.submit(call, self._words(line), self.folder, output).result(timeout=170)
        written = output.read_text(encoding="utf-8", errors="replace")
        assert code == 0, f"{line}\n{written}"
        return written

    @contextmanager
    def _served(self, line: str) -> Iterator[str]:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        output = self.folder / "served.txt"
        with open(output, "w", encoding="utf-8") as file:
            command = [str(Path(sys.executable).with_name("zhlm")), *self._words(line), "--port", str(port)]
            process = subprocess.Popen(command, cwd=self.folder, env=self._environment, stdout=file, stderr=subprocess.STDOUT)
        try:
            deadline_s = time.monotonic() + READY_S
            while "try it" not in output.read_text(encoding="utf-8"):
                assert process.poll() is None and time.monotonic() < deadline_s, output.read_text(encoding="utf-8")
                time.sleep(0.1)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(60)


def call(words: list[str], folder: Path, output: Path) -> int:
    """A command of zhlm, with all that it prints in a file."""
    os.chdir(folder)
    with open(output, "wb") as file:
        for number in (1, 2):
            os.dup2(file.fileno(), number)
    code = cli.main(words)
    sys.stdout.flush()
    sys.stderr.flush()
    return code


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory, ray_local: dict[str, str]) -> Iterator[Shell]:
    """Beside the project's configs, with a cache of the hub that has tiny models under the names of the bases."""
    folder = tmp_path_factory.mktemp("tutorial")
    (folder / "configs").symlink_to(ROOT / "configs")
    for config, make in BASES.items():
        settings = yaml.safe_load((ROOT / "configs" / f"{config}.yaml").read_text(encoding="utf-8"))
        for name in {settings["base"]["model"], (settings.get("vocab") or {}).get("tokenizer")} - {None}:
            place = folder / "home" / "hub" / f"models--{name.replace('/', '--')}"
            (place / "refs").mkdir(parents=True, exist_ok=True)
            (place / "refs" / "main").write_text(COMMIT)
            make(place / "snapshots" / COMMIT)
    home = {"HF_HOME": str(folder / "home")}
    # Workers of a Ray that runs already know nothing of this process's environment; what a driver gets as a job, it tells them. In a job,
    # runs are under ZHLM_HOME.
    told = {"RAY_JOB_CONFIG_JSON_ENV_VAR": json.dumps({"runtime_env": {"env_vars": home}}), "ZHLM_HOME": str(folder)}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (ray_local | home | told | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}).items():
            patch.setenv(name, value)
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
            shell = Shell(folder, process)
            for block in (b for blocks in ENGLISH.values() for b in blocks if makes_data(b) or b.startswith("export ")):
                shell.run(block)
            yield shell


@pytest.mark.timeout(240)
@pytest.mark.parametrize("heading", [heading for heading in ENGLISH if heading != "Before you start"])
def test_a_section_runs_and_shows_what_it_says(shell: Shell, heading: str) -> None:
    output = "".join(shell.run(block) for block in ENGLISH[heading] if not makes_data(block))
    wanted = next(texts for start, texts in EXPECTED.items() if heading.startswith(start))
    assert [text for text in wanted if text not in output] == [], output
