"""Exactly once, proved by force: packers and trainers are killed again and again, and nothing is lost, doubled or changed.

ZHLM_KILLS says how often in each test; `make chaos` kills more often than `make test`. The same kills in every run: seeds decide after how
much work, and how long after that.
"""

import gzip
import hashlib
import itertools
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from transformers import AutoTokenizer

from conftest import run_data, save_tiny_llama
from zhlm import pipeline
from zhlm.blocks.order import WINDOW_SHARDS
from zhlm.blocks.read import training_reader
from zhlm.blocks.store import LEDGER, PLAN, SPLITS, Ledger, open_shard, read_plan
from zhlm.cli import main
from zhlm.config.load import load_config
from zhlm.config.stages import Stage
from zhlm.storage import Place, Run

KILLS = int(os.environ.get("ZHLM_KILLS", "2"))
WORKERS = (1, 2, 3)
"""Of the trainer's starts, in turn."""
BATCH = 20
"""Blocks of a step: 3 workers do not divide it."""
EOS = 1

T = TypeVar("T")

pytestmark = pytest.mark.timeout(180 + 60 * KILLS)


def wait_for(what: str, get: Callable[[], T], limit_s: float) -> T:
    """The first truthy answer."""
    deadline = time.monotonic() + limit_s
    while not (found := get()):
        assert time.monotonic() < deadline, f"waited {limit_s:g} s for {what}"
        time.sleep(0.01)
    return found


class Job:
    """A stage in a process of its own, on a Ray that outlives it, as a cluster does."""

    def __init__(self, stage: str, arguments: list[str], ray: dict[str, str]) -> None:
        command = [sys.executable, "-m", f"ray_jobs.{stage}", *arguments]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ | ray)

    def runs(self) -> bool:
        """Always: a job that ended is an error."""
        assert self._process.poll() is None, f"the job ended with {self._process.returncode}: {self._process.communicate()[0]}"
        return True

    def finish(self, limit_s: float = 180) -> str:
        output, _ = self._process.communicate(timeout=limit_s)
        assert self._process.returncode == 0, output
        return output

    def kill(self) -> None:
        """The driver alone. Ray notices by itself, and until it has, the workers still write."""
        assert self.runs()
        os.kill(self._process.pid, signal.SIGKILL)
        self._process.communicate(timeout=60)
        wait_for("the killed driver's workers to end", lambda: not workers("on_row") + workers("RayTrainWorker"), 60)

    def kill_a_worker(self, chance: random.Random) -> None:
        found = wait_for("a training worker to kill", lambda: self.runs() and workers("RayTrainWorker"), 60)
        os.kill(chance.choice(sorted(found)), signal.SIGKILL)


def workers(name: str) -> list[int]:
    """The processes of this Ray that do this work now."""
    own = {p.pid for p in psutil.Process().children(recursive=True)}
    return [p.pid for p in psutil.process_iter(["cmdline"]) if p.pid in own and name in " ".join(p.info["cmdline"] or [])]


# ---- corpus and config


@dataclass(frozen=True)
class Corpus:
    config: Path
    base: Path
    ray: dict[str, str]
    """The environment that leads to the Ray of all jobs."""
    left: dict[str, list[str]]
    """What cleaning and deduplication leave of each stream."""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory, ray_local: dict[str, str]) -> Corpus:
    """Two streams in four formats with copies and rubbish, cut into more than 30 parts."""
    folder = tmp_path_factory.mktemp("chaos")
    phrases = ["今天天气很好，我们去公园散步。", "臺灣的繁體字：龍、龜、鬱。", "生僻字𠮷𪚥𬺰在基本平面之外。", "他在家看书。"]
    zh = [f"文{i}：" + phrases[i % 4] * (1 + i % 3) for i in range(420)]
    en = [f"She reads {i} books about the rain" + " and the sea" * (i % 5) + "." for i in range(140)]
    held = [f"It rained for {i} days." for i in range(20)]
    (folder / "zh").mkdir()
    (folder / "zh" / "a.txt").write_text("\n".join([*zh[:140], "短", *zh[5:25]]), encoding="utf-8")
    lines = [json.dumps({"text": t}, ensure_ascii=False) + "\n" for t in [*zh[140:260], *zh[100:110], *zh[140:150]]]
    (folder / "zh" / "b.jsonl").write_text("".join(lines), encoding="utf-8")
    pq.write_table(pa.table({"text": [*zh[260:380], *zh[:9]]}), folder / "zh" / "c.parquet", row_group_size=16)
    (folder / "zh" / "d.txt.gz").write_bytes(gzip.compress("\n".join([*zh[380:], *zh[300:303]]).encode()))
    (folder / "en.txt").write_text("\n".join([*en, *held[3:6], *en[40:60]]))
    (folder / "en_held.txt").write_text("\n".join([*held, held[0]]))
    width = 32 if KILLS < 5 else 512  # many kills need steps of a second, or the training ends before the last of them
    save_tiny_llama(folder / "base", vocabulary=259, positions=128, width=width)  # a token is a byte

    data = run_data(folder, trace_blocks=True, global_batch_blocks=BATCH, micro_batch_blocks=BATCH, checkpoint_every=3, validate_every=50)
    data["streams"][0] |= {"paths": [str(folder / "zh")]}
    data["streams"][1] |= {"held_out": [str(folder / "en_held.txt")]}
    data["pack"] |= {"block_tokens": 128, "packing": "concat", "shard_bytes": 1500, "validation_share": 0.1}
    data["resources"] |= {"cpus_per_worker": 0.5, "max_failures": KILLS + 2}
    (folder / "config.yaml").write_text(yaml.safe_dump(data), encoding="utf-8")
    return Corpus(folder / "config.yaml", folder / "base", ray_local, {"zh": zh, "en": [*en, *held]})


class Root:
    """A storage root with the run in it."""

    def __init__(self, corpus: Corpus, name: str, run: str = "tiny") -> None:
        self.corpus, self.folder = corpus, corpus.config.parent / name
        self.run = Run(Place(self.folder / run))

    def start(self, stage: str, *overrides: str) -> Job:
        return Job(stage, self._arguments(*overrides), self.corpus.ray)

    def finish(self, stage: Stage, *overrides: str) -> None:
        """The same in this process, which has imported everything: nobody will kill it."""
        assert pipeline.main((stage,), self._arguments(*overrides)) == 0

    def _arguments(self, *overrides: str) -> list[str]:
        sets = (f"storage.root={self.folder}", f"name={self.run.folder.name}", *overrides)
        return ["--config", str(self.corpus.config), *(part for o in sets for part in ("--set", o))]

    def store(self) -> dict[str, Path]:
        """The files that count: names that begin with a dot are those of a writer at work, or of a dead one."""
        files = (p for p in (self.folder / "_blocks").rglob("*") if p.is_file() and not p.name.startswith("."))
        return {str(p.relative_to(self.folder)): p for p in files}

    def hashes(self) -> dict[str, str]:
        return {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in self.store().items()}

    def ledger(self) -> dict[tuple[str, int], Any]:
        return Ledger(self.run.blocks).read()

    def finished(self) -> dict[str, int]:
        """The files of committed parts and surveys, and when they were written."""
        files = self.store()
        committed = {path.stem for path in files.values() if path.suffix == ".json"}
        return {name: p.stat().st_mtime_ns for name, p in files.items() if p.name.partition(".")[0] in committed or "survey" in p.name}

    def work_done(self) -> int:
        """Parts surveyed and parts packed."""
        return sum(path.suffix == ".json" or "survey" in path.name for path in self.store().values())

    def texts(self, stream: str) -> list[str]:
        """Every document of the blocks of both splits, decoded."""
        plan, parts = read_plan(self.run.blocks), self.ledger()
        assert plan is not None and set(parts) == {(name, n) for name, planned in plan.streams.items() for n in range(len(planned))}
        documents: list[list[int]] = []
        for split, number in [(s, n) for s in SPLITS for n in plan.of_split(stream, s)]:
            rows = open_shard(self.run.store, parts[stream, number].shards[split]).to_pylist()
            tape = list(itertools.chain.from_iterable(r["input_ids"][: r["document_ends"][-1]] for r in rows))
            ends = [at + 1 for at, token in enumerate(tape) if token == EOS]
            assert ends[-1:] == [len(tape)] * bool(tape), "a shard ends with a document"
            documents += [tape[a : b - 1] for a, b in itertools.pairwise([0, *ends])]
        tokenizer = AutoTokenizer.from_pretrained(self.corpus.base)
        return [tokenizer.decode(ids) for ids in documents]

    def last_step(self) -> int:
        rows = [json.loads(line) for line in self.run.metrics.read_text().splitlines()] if self.run.metrics.exists() else []
        return max((row["step"] for row in rows), default=0)


# ---- packing


@pytest.fixture(scope="module")
def calm(corpus: Corpus) -> Root:
    """A run that nothing happens to."""
    root = Root(corpus, "calm")
    root.finish("pack")
    return root


def kill_packers(root: Root, calm: Root) -> int:
    """Start and kill, KILLS times, ever later in the work, and tear the ledger's last line. Returns how often it was torn."""
    chance, work, torn = random.Random(1), calm.work_done(), 0
    part_s = calm.run.manifest("pack")["seconds"] / work
    before: dict[str, int] = {}
    for kill in range(KILLS):
        enough = (kill + 0.5 + chance.random() / 2) / KILLS * 0.8 * work  # the last one among the packing, when there is a ledger
        job = root.start("pack")
        wait_for(f"{enough:.1f} of {work} pieces of work", lambda job=job, enough=enough: job.runs() and root.work_done() >= enough, 90)
        time.sleep(chance.uniform(0, part_s))
        job.kill()
        finished = root.finished()
        assert before.items() <= finished.items(), "what was finished is not done again"
        before = finished
        ledger = (root.run.blocks / LEDGER).path
        size = ledger.stat().st_size if ledger.exists() else 0
        if size:  # as if it had been killed while it wrote a line
            os.truncate(ledger, max(0, size - chance.randint(1, 200)))
            torn += 1
    root.finish("pack")
    assert before.items() <= root.finished().items()
    return torn


@pytest.fixture(scope="module")
def hit(corpus: Corpus, calm: Root) -> Root:
    """The same run, whose packers were killed."""
    root = Root(corpus, "hit")
    assert kill_packers(root, calm) or KILLS < 2, "no ledger was torn"
    return root


def test_killed_packers_leave_the_same_blocks_with_every_document_once(calm: Root, hit: Root) -> None:
    parts = hit.ledger()
    assert len(parts) > 30 and len([s for s, _ in parts if s == "zh"]) > 2 * WINDOW_SHARDS
    assert (hit.run.blocks / PLAN).read_text() == (calm.run.blocks / PLAN).read_text()
    assert parts == calm.ledger() and hit.hashes() == calm.hashes()
    named = {f"_blocks/{shard.file}" for part in parts.values() for shard in part.shards.values()}
    assert named <= set(hit.store()), "every file of the ledger has its name"
    streams = [root.run.manifest("pack")["facts"]["streams"] for root in (calm, hit)]
    assert streams[0] == streams[1]
    for name, left in hit.corpus.left.items():
        assert Counter(hit.texts(name)) == Counter(left)
    assert streams[0]["zh"]["dropped"] == {"duplicate": 52, "too_short": 1}


def test_two_packers_at_once_do_not_harm_each_other(corpus: Corpus, calm: Root, capsys: pytest.CaptureFixture[str]) -> None:
    both = [Root(corpus, "both", run) for run in ("first", "second")]
    for job in [root.start("pack") for root in both]:
        job.finish()
    for root in both:
        assert root.ledger() == calm.ledger() and root.hashes() == calm.hashes()
        assert main(["blocks", str(root.run.folder), "--verify"]) == 0
        assert "shards are as the ledger says" in capsys.readouterr().out


# ---- training


def train_with_kills(root: Root, steps: int) -> None:
    """Kill the driver, and every second time only one of its workers, KILLS times, at ever later steps; then let it finish."""
    chance, counts = random.Random(2), itertools.cycle(WORKERS)
    job: Job | None = None

    def settings() -> tuple[str, str]:
        return f"train.steps={steps}", f"resources.workers={next(counts)}"

    for kill in range(KILLS):
        job = job or root.start("train", *settings())
        target = 1 + int((kill + chance.random()) / KILLS * 0.85 * steps)
        told = root.run.metrics.path.stat().st_mtime_ns if root.run.metrics.exists() else 0

        def reached(job: Job = job, target: int = target, told: int = told) -> bool:
            job.runs()
            return root.last_step() >= target and root.run.metrics.path.stat().st_mtime_ns != told

        wait_for(f"step {target}", reached, 120)
        if kill % 2:
            job.kill_a_worker(chance)
        else:
            job.kill()
            job = None
    if job:
        job.finish()
    else:
        root.finish("train", *settings())


def in_order(root: Root, count: int) -> list[list[Any]]:
    """What a trace says of the first blocks of the order: number, stream, start of the part's key, row, checksum."""
    config = load_config(root.corpus.config, [f"storage.root={root.folder}", f"name={root.run.folder.name}"])
    reader = training_reader(root.run, config, wait=False)
    blocks, streams = reader.read(range(count)), list(reader.weights)
    sums = [zlib.crc32(ids[: ends[-1]].astype("<u4").tobytes()) for ids, ends in zip(blocks.ids_BT, blocks.ends, strict=True)]
    places = zip(reader.addresses(range(count)), sums, strict=True)
    return [[n, streams[a.stream], reader.part(a.stream, a.shard).key[:12], a.row, crc] for n, (a, crc) in enumerate(places)]


def traced(root: Root) -> tuple[dict[int, list[list[Any]]], int]:
    """The blocks of each step, from the attempt that counts, in the order of training; and how many steps were done in vain."""
    whole = re.compile(r"\{.*\]\}")  # a killed worker may leave half a line
    lines = {
        p.stem: [json.loads(line) for line in p.read_text().splitlines() if whole.fullmatch(line)]
        for p in (root.run.folder.path / "trace").iterdir()
    }
    counts = {line["step"]: line for line in lines["rank_0"]}
    consumed: dict[int, list[list[Any]]] = {}
    for step, last in sorted(counts.items()):
        consumed[step] = []
        for rank in range(last["workers"]):
            same = [own for own in lines[f"rank_{rank}"] if {**own, "blocks": 0} == {**last, "blocks": 0}]
            consumed[step] += same[-1]["blocks"]
        consumed[step].sort()
    return consumed, len(lines["rank_0"]) - len(consumed)


def checksums(root: Root) -> dict[str, dict[tuple[str, int], int]]:
    """Stream -> (start of the part's key, row) -> crc32 of the block's ids, straight from the store."""
    found: dict[str, dict[tuple[str, int], int]] = {name: {} for name in root.corpus.left}
    for (stream, _), part in root.ledger().items():
        for row, block in enumerate(open_shard(root.run.store, part.shards["train"]).to_pylist() if "train" in part.shards else []):
            ids = np.array(block["input_ids"][: block["document_ends"][-1]], "<u4")
            found[stream][part.key[:12], row] = zlib.crc32(ids.tobytes())
    return found


def test_killed_trainers_consume_every_block_once_and_in_order(calm: Root, hit: Root) -> None:
    stored = checksums(calm)
    steps = max(-(-2 * len(stored[name]) // int(BATCH * share)) for name, share in (("zh", 0.75), ("en", 0.25)))
    train_with_kills(hit, steps)

    consumed, again = traced(hit)
    assert again > 0, "kills cost steps"
    assert list(consumed) == list(range(1, steps + 1)) and {len(blocks) for blocks in consumed.values()} == {BATCH}
    blocks = list(itertools.chain.from_iterable(consumed.values()))
    assert [b[0] for b in blocks] == list(range(steps * BATCH))
    assert blocks == in_order(calm, steps * BATCH), "as the order is over blocks whose packers nobody killed"
    for name, own in stored.items():
        places = [(key, row) for _, stream, key, row, _ in blocks if stream == name]
        epochs = [places[i : i + len(own)] for i in range(0, len(places), len(own))]
        assert len(epochs) >= 2 and all(sorted(epoch) == sorted(own) for epoch in epochs[: len(places) // len(own)])
        assert len(places) // len(own) >= 2, "two whole epochs"
    assert all(stored[stream][key, row] == checksum for _, stream, key, row, checksum in blocks)
    rows = [json.loads(line) for line in hit.run.metrics.read_text().splitlines()]
    assert [r["step"] for r in rows if "loss_nats" in r] == list(range(1, steps + 1)), "each step is told once"
