"""Every mistake of the list gives one line, exit code 2, soon, and a rerun with the mistake mended works."""

import gzip
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from conftest import run_data, save_tiny_llama
from zhlm.pipeline import main, run_file

pytestmark = pytest.mark.usefixtures("ray_local")

SENTENCES = ["今天天气很好，我们去公园散步。", "小明买了三本书。", "It rains today.", "She reads two books in the garden."]
LIMIT_S = 30.0


def write_corpus(folder: Path) -> None:
    """Two small streams; each line another document."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("zh", "en"):
        lines = [f"{SENTENCES[i % 4]} {name} {i}" for i in range(60)]
        (folder / f"{name}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


class Case:
    """A run's folder and config, good until a test spoils it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        write_corpus(folder)
        save_tiny_llama(folder / "base")
        self.data = run_data(folder)
        self.data["pack"]["validation_share"] = 0.1

    @property
    def run_folder(self) -> Path:
        return self.folder / "runs" / "tiny"

    def config(self) -> str:
        path = self.folder / "config.yaml"
        path.write_text(yaml.safe_dump(self.data, allow_unicode=True), encoding="utf-8")
        return str(path)

    def pack(self) -> int:
        return main(("pack",), ["--config", self.config()])


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return Case(tmp_path)


def refused(call: Callable[[], int], capfd: pytest.CaptureFixture[str], *parts: str) -> str:
    """The one line of a refusal, after its exit code, its time and its words were checked."""
    capfd.readouterr()
    started_s = time.monotonic()
    code = call()
    seconds = time.monotonic() - started_s
    out, err = capfd.readouterr()
    complaints = [line for line in (out + err).splitlines() if line.startswith("zhlm: ")]
    assert code == 2, f"exit code {code}: {out}{err}"
    assert seconds < LIMIT_S
    assert len(complaints) == 1, out + err
    assert "Traceback" not in out, "what the terminal shows; a log handler of an earlier test may still write to stderr"
    for part in parts:
        assert part in complaints[0], complaints[0]
    return complaints[0]


def spoil_missing(case: Case) -> tuple[str, ...]:
    case.data["streams"][0]["paths"] = [str(case.folder / "nowhere.txt")]
    return ("nowhere.txt", "does not exist")


def spoil_glob(case: Case) -> tuple[str, ...]:
    case.data["streams"][0]["paths"] = [str(case.folder / "*.nothing")]
    return ("*.nothing",)


def spoil_empty(case: Case) -> tuple[str, ...]:
    (case.folder / "zh.txt").write_text("")
    return ("zh.txt", "empty")


def spoil_utf8(case: Case) -> tuple[str, ...]:
    (case.folder / "zh.txt").write_bytes("第一行\n".encode() + "第二行\n".encode("gbk"))
    return ("zh.txt", "line 2", "UTF-8")


def spoil_gzip(case: Case) -> tuple[str, ...]:
    lines = "\n".join(f"{SENTENCES[0]}{os.urandom(8).hex()}" for _ in range(2000))
    (case.folder / "zh.txt.gz").write_bytes(gzip.compress(lines.encode())[:-4000])
    case.data["streams"][0]["paths"] = [str(case.folder / "zh.txt.gz")]
    return ("zh.txt.gz",)


def spoil_json_line(case: Case) -> tuple[str, ...]:
    good = json.dumps({"text": SENTENCES[0]}, ensure_ascii=False)
    (case.folder / "zh.jsonl").write_text(f'{good}\n{good}\n{{"text": "bro\n', encoding="utf-8")
    case.data["streams"][0]["paths"] = [str(case.folder / "zh.jsonl")]
    return ("zh.jsonl", "line 3")


def spoil_json_field(case: Case) -> tuple[str, ...]:
    rows = [{"body": SENTENCES[0]}, {"title": "x"}]
    (case.folder / "zh.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    case.data["streams"][0] |= {"paths": [str(case.folder / "zh.jsonl")], "field": "body"}
    return ("zh.jsonl", "line 2", "body")


def spoil_parquet(case: Case) -> tuple[str, ...]:
    pq.write_table(pa.table({"title": SENTENCES}), case.folder / "zh.parquet")
    case.data["streams"][0] |= {"paths": [str(case.folder / "zh.parquet")], "field": "body"}
    return ("zh.parquet", "body", "title")


def spoil_key(case: Case) -> tuple[str, ...]:
    case.data["train"]["learning_rat"] = 1e-3
    return ("train.learning_rat", "learning_rate")


def spoil_no_tokenizer(case: Case) -> tuple[str, ...]:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (case.folder / "base" / name).unlink(missing_ok=True)
    return ("base", "tokenizer")


def spoil_small_embedding(case: Case) -> tuple[str, ...]:
    tokenizer = case.folder / "base" / "tokenizer.json"
    data: dict[str, Any] = json.loads(tokenizer.read_text(encoding="utf-8"))
    data["model"]["vocab"] |= {"zz": 96, "zy": 97}
    tokenizer.write_text(json.dumps(data), encoding="utf-8")
    return ("98", "96")


def spoil_block_tokens(case: Case) -> tuple[str, ...]:
    case.data["pack"]["block_tokens"] = 4096
    return ("pack", "block_tokens 4096", "64 positions", "lower pack.block_tokens")


def spoil_workers(case: Case) -> tuple[str, ...]:
    case.data["resources"]["workers"] = 500
    return ("cluster", "500", "resources.workers")


def spoil_gpus(case: Case) -> tuple[str, ...]:
    case.data["resources"]["gpus_per_worker"] = 8
    return ("cluster", "GPU", "resources.gpus_per_worker")


def spoil_storage(case: Case) -> tuple[str, ...]:
    case.data["storage"]["root"] = "/proc/zhlm"  # the kernel refuses this even to root
    return ("storage", "/proc/zhlm")


MISTAKES = [v for k, v in list(globals().items()) if k.startswith("spoil_")]


@pytest.mark.parametrize("spoil", MISTAKES, ids=lambda f: f.__name__.removeprefix("spoil_"))
def test_a_mistake_is_one_line_and_mending_it_is_enough(case: Case, spoil: Callable[[Case], tuple[str, ...]], capfd: Any) -> None:
    refused(case.pack, capfd, *spoil(case))
    blocks = case.run_folder / "blocks"
    assert not (blocks / "manifest.json").exists()
    assert not list(blocks.glob("**/ledger.jsonl")), "nothing half-written counts"
    mended = Case(case.folder)
    shutil.rmtree(case.folder / "base")
    save_tiny_llama(case.folder / "base")
    assert mended.pack() == 0
    assert (blocks / "manifest.json").exists()


def test_a_run_name_of_another_experiment_is_refused(case: Case, capfd: Any) -> None:
    assert case.pack() == 0
    before = (case.run_folder / "config.yaml").read_text()
    shutil.copytree(case.folder / "base", case.folder / "other")
    case.data["base"]["model"] = str(case.folder / "other")
    refused(case.pack, capfd, "another config", "base", "choose another name")
    assert (case.run_folder / "config.yaml").read_text() == before


FULL_DISK = """\
import os, subprocess, sys
from pathlib import Path
import ray
from zhlm.pipeline import main

disk, config = Path(sys.argv[1]), sys.argv[2]
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=80m", "none", disk], check=True)
ray.init(num_cpus=2, log_to_driver=False, include_dashboard=False, logging_level="ERROR")
pack = lambda share: main(("pack",), ["--config", config, "--set", f"pack.validation_share={share}"])
codes = [pack(0.1)]
with open(disk / "ballast", "wb", buffering=0) as ballast:
    try:
        while True:
            ballast.write(bytes(1 << 16))
    except OSError:
        codes.append(pack(0.2))
manifest = disk / "tiny" / "blocks" / "manifest.json"
assert not manifest.exists() or '"validation_share": 0.1' in manifest.read_text()
(disk / "ballast").unlink()
print("exit codes", *codes, pack(0.2))
"""


def test_a_full_disk_is_named_and_the_run_goes_on_when_there_is_room(case: Case) -> None:
    """On a real small disk, mounted in a namespace of its own."""
    small = case.folder / "small"
    small.mkdir()
    case.data["storage"]["root"] = str(small)
    command = ["unshare", "--map-root-user", "--mount", sys.executable, "-c", FULL_DISK, str(small), case.config()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "exit codes 0 2 0" in done.stdout
    complaints = done.stderr.strip().splitlines()
    assert len(complaints) == 1 and complaints[0].startswith("zhlm: storage: "), done.stderr
    assert "full" in complaints[0] or "free" in complaints[0]
    assert done.stdout.count("pack      done in") == 2


def test_a_port_in_use_is_named(case: Case) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        (case.run_folder / "export" / "merged").mkdir(parents=True)
        shutil.copytree(case.folder / "base", case.run_folder / "export" / "merged", dirs_exist_ok=True)
        shutil.copy(case.config(), case.run_folder / "config.yaml")
        command = [str(Path(sys.executable).with_name("zhlm")), "serve", str(case.run_folder), "--port", port]
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S)
    assert done.returncode == 2
    assert port in done.stderr and "serve.port" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_stage_alone_asks_for_the_stage_before(case: Case, capfd: Any) -> None:
    refused(lambda: main(("train",), ["--config", case.config()]), capfd, "pack", "no finished")


def test_a_missing_config_file(capfd: Any) -> None:
    refused(lambda: run_file("configs/nothing.yaml"), capfd, "configs/nothing.yaml", "does not exist")
