"""The main job, small, as a user runs it: the whole pipeline with a killed driver, its results, and its reruns."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
import yaml
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from conftest import run_data, save_tiny_llama
from zhlm.blocks.read import training_reader
from zhlm.config.load import load_config
from zhlm.storage import Run

SETTINGS: dict[str, Any] = {
    "name": "mini",
    "sample": {
        "corpus": {"documents": 600, "held_out_documents": 40},
        "base": {"paths": ["sample://en/train"], "vocabulary": 400, "layers": 2, "width": 64, "heads": 2, "steps": 30,
                 "batch_tokens": 2048},
    },
    "base": {"model": "sample://base"},
    "streams": [
        {"name": "zh", "role": "new", "paths": ["sample://zh/train"], "held_out": ["sample://zh/held_out"], "weight": 0.75},
        {"name": "en", "role": "old", "paths": ["sample://en/train"], "held_out": ["sample://en/held_out"], "weight": 0.25},
    ],
    "vocab": {"add_rows": 64},
    "pack": {"block_tokens": 128, "document_start": "bos"},
    "train": {
        "steps": 20, "global_batch_blocks": 8, "micro_batch_blocks": 4, "learning_rate": 5e-3, "log_every": 2, "validate_every": 10,
        "checkpoint_every": 5, "validation_blocks": 8, "lora": {"r": 8},
    },
    "resources": {"workers": 2},
    "evaluate": {"documents": 20, "prompts": ["今天", "Today"], "generate": {"max_new_tokens": 12}},
}  # fmt: skip

pytestmark = pytest.mark.timeout(400)


class MiniRun:
    """A run folder and the command that fills it, in processes of their own. Without `ray`, they start a Ray of their own too."""

    def __init__(self, folder: Path, ray: dict[str, str]) -> None:
        self.folder, self.ray = folder / "runs" / "mini", ray
        self._config = folder / "mini.yaml"
        self._config.write_text(yaml.safe_dump(SETTINGS | {"storage": {"root": str(folder / "runs")}}), encoding="utf-8")

    def command(self, *overrides: str) -> list[str]:
        sets = [part for o in overrides for part in ("--set", o)]
        return [sys.executable, "-m", "ray_jobs.pipeline", "--config", str(self._config), *sets]

    def run(self, *overrides: str, ray: dict[str, str] | None = None) -> str:
        environment = os.environ | (self.ray if ray is None else ray)
        done = subprocess.run(self.command(*overrides), capture_output=True, text=True, timeout=300, env=environment)
        assert done.returncode == 0, done.stdout + done.stderr + self.log_tail()
        assert done.stderr == ""
        return done.stdout

    def run_until_a_checkpoint(self) -> str:
        """Start, and kill the driver once a checkpoint is there, but not the last one. Returns what the terminal showed."""
        with tempfile.TemporaryFile("w+", encoding="utf-8") as terminal:
            process = subprocess.Popen(self.command(), stdout=terminal, stderr=terminal)
            deadline = time.monotonic() + 240
            while not list((self.folder / "checkpoints").glob("step_*")):
                assert process.poll() is None and time.monotonic() < deadline, f"no checkpoint: {self.log_tail()}"
                time.sleep(0.02)
            family = psutil.Process(process.pid).children(recursive=True)
            # Workers outlive their driver by seconds, in which a fast machine takes all the steps that are left. So they stand still first.
            workers = _training_workers(family)
            for worker in workers:
                worker.suspend()
            process.kill()
            process.wait(timeout=30)
            for worker in workers:
                worker.kill()
            _wait_for_workers_to_end(family)
            terminal.seek(0)
            return terminal.read()

    def log_tail(self) -> str:
        log = self.folder / "logs" / "run.log"
        return "\n".join(log.read_text(errors="replace").splitlines()[-40:]) if log.exists() else ""

    def steps(self) -> list[int]:
        """Whose losses were told."""
        rows = [json.loads(line) for line in (self.folder / "metrics.jsonl").read_text().splitlines()]
        return [r["step"] for r in rows if "loss_nats" in r]


@pytest.fixture(scope="module")
def mini(tmp_path_factory: pytest.TempPathFactory, ray_local: dict[str, str]) -> MiniRun:
    """One finished run, on a Ray of its own, whose driver was killed in training; `output` is what the two terminals showed."""
    run = MiniRun(tmp_path_factory.mktemp("pipeline"), ray_local)
    killed = run.run_until_a_checkpoint()
    assert not (run.folder / "checkpoints" / "step_00000020").exists(), "something is left to do"
    run.output = killed, run.run(ray={})  # type: ignore[attr-defined]
    return run


def test_a_killed_driver_goes_on_from_its_checkpoint(mini: MiniRun) -> None:
    """With the same losses, to the bit: test_kill_points.py."""
    killed, later = mini.output  # type: ignore[attr-defined]
    assert killed.count(" starts") == 4 and "train     done in" not in killed
    assert later.count("finished earlier") == 3, "sample, vocab and pack are not done again"
    assert "train     goes on where it stopped" in later and "evaluate  done in" in later
    assert mini.steps() == list(range(2, 21, 2)), "each step is told once"


def test_the_terminal_stays_readable(mini: MiniRun) -> None:
    output: str = "".join(mini.output)  # type: ignore[attr-defined]
    for stage in ("sample", "vocab", "pack", "train", "export", "evaluate"):
        assert f"{stage:9} starts" in output and f"{stage:9} done in" in output
    for noise in ("ray::", "INFO", "WARNING", "DeepSpeed info", "(RayTrainWorker", "Traceback"):
        assert noise not in output
    assert "report.html" in output and "export/merged" in output and "zhlm serve" in output
    assert len(output.splitlines()) < 80


def test_results_hold_both_models_and_both_languages(mini: MiniRun) -> None:
    results = json.loads((mini.folder / "evaluate" / "results.json").read_text(encoding="utf-8"))
    for model in ("base", "adapted"):
        for stream in ("zh", "en"):
            score = results[model][stream]
            assert score["bits_per_byte"] > 0 and score["bits_per_character"] > 0
            assert score["documents"] == 20 and score["tokens"] > 0
    assert results["adapted"]["zh"]["bits_per_byte"] < results["base"]["zh"]["bits_per_byte"]
    assert results["adapted"]["zh"]["tokens"] < results["base"]["zh"]["tokens"], "the extended vocabulary needs fewer tokens"
    assert set(results["entropy_bits_per_byte"]) == {"zh", "en"}
    assert [set(g) for g in results["generations"]] == [{"prompt", "base", "adapted"}] * 2
    assert "<svg" in (mini.folder / "evaluate" / "report.html").read_text(encoding="utf-8")


def test_plain_transformers_and_peft_load_the_export(mini: MiniRun) -> None:
    export = mini.folder / "export"
    base = AutoModelForCausalLM.from_pretrained(mini.folder / "vocab", dtype=torch.float32)
    adapter = PeftModel.from_pretrained(base, export / "adapter").eval()
    merged = AutoModelForCausalLM.from_pretrained(export / "merged", dtype=torch.float32).eval()
    ids = AutoTokenizer.from_pretrained(export / "merged")("今天下雨。It rains today.", return_tensors="pt").input_ids
    assert ids[0, 0] == merged.config.bos_token_id, "prompts begin as training documents did"
    with torch.no_grad():
        assert float((adapter(input_ids=ids).logits - merged(input_ids=ids).logits).abs().max()) < 1e-4


def test_a_rerun_has_nothing_to_do(mini: MiniRun) -> None:
    output = mini.run()
    assert output.count("finished earlier, nothing to do") == 6
    assert "starts" not in output and "is done again" not in output


def test_a_changed_setting_redoes_only_what_it_touches(mini: MiniRun) -> None:
    output = mini.run("evaluate.documents=10")
    assert output.count("finished earlier") == 5
    assert "evaluate  is done again: evaluate.documents: 20 -> 10" in output
    unchanged = mini.run("evaluate.documents=10", "resources.pack_tasks=1", "train.log_every=7")
    assert unchanged.count("finished earlier") == 6


def test_generate_shows_base_and_adapted(mini: MiniRun) -> None:
    command = [str(Path(sys.executable).with_name("zhlm")), "generate", str(mini.folder), "--prompt", "今天", "--max-new-tokens", "8"]
    done = subprocess.run([*command, "--seed", "3"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "今天" in done.stdout and "base" in done.stdout and "adapted" in done.stdout


PACK_AND_TRAIN = "import sys; from zhlm.pipeline import main; sys.exit(main(('pack', 'train'), sys.argv[1:]))"


class Overlapping:
    """Packing of many tiny shards by one task, and training by half a CPU each, on two CPUs."""

    def __init__(self, folder: Path, lines: int, *, workers: int = 1) -> None:
        self.folder = folder
        save_tiny_llama(folder / "base", vocabulary=259)
        random = np.random.default_rng(1)
        words = ["she", "reads", "book", "rain", "今天", "天气", "公园", "散步"]
        data = run_data(folder, steps=20, trace_blocks=True, start="with_packing")
        for stream, share in zip(data["streams"], (0.75, 0.25), strict=True):
            for name, count in ((f"{stream['name']}.txt", int(lines * share)), (f"{stream['name']}_held.txt", 60)):
                chosen = random.choice(words, (count, 12))
                (folder / name).write_text("".join(" ".join(row) + "\n" for row in chosen), encoding="utf-8")
            stream["held_out"] = [str(folder / f"{stream['name']}_held.txt")]
        data["pack"] |= {"shard_bytes": 2000, "deduplicate": False}
        data["resources"] |= {"cpus_per_worker": 0.5, "workers": workers}
        (folder / "config.yaml").write_text(yaml.safe_dump(data), encoding="utf-8")

    def start(self, ray: dict[str, str], *overrides: str) -> subprocess.Popen[str]:
        sets = [part for o in overrides for part in ("--set", o)]
        command = [sys.executable, "-c", PACK_AND_TRAIN, "--config", str(self.folder / "config.yaml"), *sets]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ | ray)

    def rows(self) -> list[dict[str, Any]]:
        path = self.folder / "runs" / "tiny" / "metrics.jsonl"
        rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        return [r for r in rows if "loss_nats" in r]

    def consumed(self) -> list[tuple[Any, ...]]:
        """What the ranks say that they read: number, stream, shard, row and checksum of each block. Equal words on a block are one."""
        lines = [line for p in (self.folder / "runs" / "tiny" / "trace").iterdir() for line in p.read_text().splitlines()]
        whole = [json.loads(line) for line in lines if line.endswith("]}")]  # a worker may end within a line
        return sorted({tuple(block) for line in whole for block in line["blocks"]})

    def order(self) -> list[tuple[Any, ...]]:
        """What `consumed` should be, by a reader that comes when everything is packed."""
        config = load_config(self.folder / "config.yaml")
        reader = training_reader(Run.of(config), config, wait=False)
        indices = range(20 * config.train.global_batch_blocks)
        blocks, streams = reader.read(indices), list(reader.weights)
        sums = [zlib.crc32(ids[: ends[-1]].astype("<u4").tobytes()) for ids, ends in zip(blocks.ids_BT, blocks.ends, strict=True)]
        places = zip(indices, reader.addresses(indices), sums, strict=True)
        return [(n, streams[a.stream], reader.part(a.stream, a.shard).key[:12], a.row, crc) for n, a, crc in places]

    def interrupt_after(self, steps: int, timeout_s: float = 200) -> None:
        """Start on a Ray of its own, press Ctrl-C when so many steps are done, and wait until nothing of it is left."""
        process = self.start({})
        deadline = time.monotonic() + timeout_s
        while len(self.rows()) < steps:
            assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0]
            time.sleep(0.05)
        family = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 130 and "interrupted; the same command goes on from here" in output, output
        _wait_for_workers_to_end(family)


def test_the_first_step_comes_before_a_fifth_is_packed(tmp_path: Path) -> None:
    """Packing all of this takes minutes; nobody waits for it."""
    both = Overlapping(tmp_path, lines=300_000)
    both.interrupt_after(1)
    assert both.rows()[0]["packed_share"] < 0.2


def test_packing_and_training_stop_and_go_on_together(tmp_path: Path, ray_local: dict[str, str]) -> None:
    both = Overlapping(tmp_path, lines=6_000, workers=2)
    both.interrupt_after(6)
    output, _ = both.start(ray_local).communicate(timeout=200)
    assert "train     goes on where it stopped" in output and "train     done in" in output, output
    assert [r["step"] for r in both.rows()] == list(range(1, 21))
    assert both.consumed() == both.order(), "as when all is packed before"


def test_a_broken_file_ends_the_training_beside_it(tmp_path: Path, ray_local: dict[str, str]) -> None:
    both = Overlapping(tmp_path, lines=8000)
    with open(tmp_path / "zh.txt", "ab") as file:
        file.write(b"\xff\xfe broken\n")
    output, _ = both.start(ray_local, "train.steps=100000").communicate(timeout=150)
    last = output.splitlines()[-1]
    assert last.startswith("zhlm: corpus: ") and "zh.txt" in last, output
    assert not (tmp_path / "runs" / "tiny" / "blocks" / "manifest.json").exists()


def _training_workers(family: list[psutil.Process]) -> list[psutil.Process]:
    own = {p.pid for p in family}
    return [p for p in psutil.process_iter(["cmdline"]) if p.pid in own and "RayTrainWorker" in " ".join(p.info["cmdline"] or [])]


def _wait_for_workers_to_end(family: list[psutil.Process]) -> None:
    """A driver's own Ray notices by itself that it is gone; until then its workers would still write."""
    deadline = time.monotonic() + 60
    while _training_workers(family):
        assert time.monotonic() < deadline, "workers outlive their driver"
        time.sleep(0.2)
