"""Packing on a real local Ray: nothing lost, the same bytes whatever the tasks, and mistakes that reach the driver as one line."""

import gzip
import json
import os
import signal
import threading
import time
import zlib
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from transformers import AutoTokenizer

from conftest import run_data, s3_account, save_tiny_llama
from zhlm.blocks.read import training_reader
from zhlm.blocks.store import Ledger, Part, Split, open_shard, read_heartbeat, read_plan
from zhlm.config.schema import RunConfig
from zhlm.errors import ClusterError, CorpusError
from zhlm.pack.job import run
from zhlm.pack.tasks import PackTask, Settings
from zhlm.pipeline import main
from zhlm.records import Progress
from zhlm.storage import Run

pytestmark = pytest.mark.usefixtures("ray_local")

EOS = 1

PHRASES = [
    "今天天气很好，我们去公园散步。",
    "臺灣的繁體字：龍、龜、鬱。",
    "生僻字𠮷𪚥𬺰在基本平面之外。",
    "全角ＡＢＣ１２３（括号）",
    "👨‍👩‍👧 一家人 🇨🇳",
    'def 函数(x): return "值"',
]


def texts(count: int, mark: str) -> list[str]:
    return [f"{mark}{i}：" + PHRASES[i % len(PHRASES)] * (1 + i % 4) for i in range(count)]


def write_sources(folder: Path) -> None:
    """A new stream in three formats with duplicates and rubbish, and an old one with held-out files of its own."""
    zh = folder / "zh"
    zh.mkdir(parents=True)
    own = texts(150, "文")
    (zh / "a.jsonl").write_text("".join(json.dumps({"completion": t}) + "\n" for t in [*own[:50], own[3], "短", "  "]), encoding="utf-8")
    (zh / "b.txt.gz").write_bytes(gzip.compress(("\n".join([*own[50:100], own[7], own[60]]) + "\n").encode()))
    pq.write_table(pa.table({"id": range(51), "text": [*own[100:], own[100]]}), zh / "c.parquet", row_group_size=20)
    en = [f"She reads {i} books." for i in range(80)]
    (folder / "en.txt").write_text("\n".join([*en, "It rains today."]) + "\n")
    (folder / "en_held.txt").write_text("It rains today.\nIt snows today.\nIt snows today.\n")


def save_base(folder: Path) -> None:
    """A base whose tokenizer knows every byte, so that decoding gives the text back."""
    save_tiny_llama(folder / "base", vocabulary=259)


def config_for(folder: Path, *, tasks: int = 2, root: str = "runs", **pack: Any) -> RunConfig:
    data = run_data(folder)
    data["storage"]["root"] = str(folder / root)
    data["streams"][0] |= {"paths": [str(folder / "zh")]}
    data["streams"][1] |= {"held_out": [str(folder / "en_held.txt")]}
    data["pack"] |= {"validation_share": 0.1, **pack}
    data["resources"]["pack_tasks"] = tasks
    return RunConfig.model_validate_json(json.dumps(data))


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pack")
    write_sources(folder)
    save_base(folder)
    return folder


def ledger(config: RunConfig) -> dict[tuple[str, int], Part]:
    return Ledger(Run.of(config).blocks).read()


def pieces(config: RunConfig, stream: str, split: Split) -> list[list[int]]:
    """The ids of every document piece in the blocks, in order."""
    run, parts = Run.of(config), ledger(config)
    plan = read_plan(run.blocks)
    assert plan is not None and set(parts) == {(name, n) for name, planned in plan.streams.items() for n in range(len(planned))}
    out = []
    for number in plan.of_split(stream, split):
        for row in open_shard(run.store, parts[stream, number].shards[split]).to_pylist():
            out += [row["input_ids"][a:b] for a, b in pairwise([0, *row["document_ends"]])]
    return out


def decoded(config: RunConfig, documents: list[list[int]]) -> list[str]:
    tokenizer = AutoTokenizer.from_pretrained(config.base.model)
    return [tokenizer.decode(ids) for ids in documents]


def test_every_document_is_in_a_block_held_out_or_counted(sources: Path) -> None:
    config = config_for(sources, block_tokens=64)
    seen: list[Progress] = []
    facts = run(config, seen.append)
    zh, en = facts["streams"]["zh"], facts["streams"]["en"]
    assert facts["conservation"] == "checked" and facts["vocabulary"] == 259
    assert facts["engine"]["engine"] in ("gigatoken", "tokenizers")
    assert zh["documents_in"] == 156 and zh["kept"] == 150
    assert zh["dropped"] == {"duplicate": 4, "empty": 1, "too_short": 1}
    assert zh["train"]["documents"] + zh["validation"]["documents"] == 150
    assert zh["validation"]["documents"] > 5
    assert en["documents_in"] == 84 and en["dropped"] == {"duplicate": 1, "in_held_out": 1}
    assert en["train"]["documents"] == 80 and en["validation"]["documents"] == 2
    assert 0.9 < zh["train"]["fill"] <= 1

    found = decoded(config, pieces(config, "zh", "train") + pieces(config, "zh", "validation"))
    fitting = [t + "<eos>" for t in texts(150, "文") if len(t.encode()) < 64]  # a token is a byte here
    assert len(fitting) > 30 and all(found.count(t) == 1 for t in fitting)
    assert all(isinstance(p, Progress) and p.unit == "shards" for p in seen)
    assert [p.done for p in seen] == sorted(p.done for p in seen) and seen[-1].done == seen[-1].total == len(ledger(config))
    sign = read_heartbeat(Run.of(config).blocks)
    assert sign is not None and sign.state == "done"


def test_every_text_comes_back_whole_and_once_from_concat_blocks(sources: Path) -> None:
    config = config_for(sources, root="concat", packing="concat", document_start="bos", document_end="eos")
    facts = run(config, lambda _: None)
    tape = [i for split in ("train", "validation") for piece in pieces(config, "zh", split) for i in piece]
    ends = [n + 1 for n, i in enumerate(tape) if i == EOS]
    documents = [tape[a:b] for a, b in pairwise([0, *ends])]
    assert sorted(decoded(config, documents)) == sorted(f"<bos>{t}<eos>" for t in texts(150, "文"))
    assert facts["streams"]["zh"]["train"]["fill"] > 0.95


def test_held_out_texts_and_rejects_are_kept_for_reading(sources: Path) -> None:
    config = config_for(sources, root="held")
    run(config, lambda _: None)
    blocks = Run.of(config).blocks
    held = pq.read_table((blocks / "en" / "held_out.parquet").path).column("text").to_pylist()
    assert held == ["It rains today.", "It snows today."]
    rejects = [json.loads(line) for line in (blocks / "zh" / "rejects.jsonl").read_text().splitlines()]
    assert sorted(r["reason"] for r in rejects) == ["duplicate"] * 4 + ["empty", "too_short"]
    assert {(Path(r["path"]).name, r["row"], r["text"]) for r in rejects if r["reason"] == "too_short"} == {("a.jsonl", 52, "短")}
    zh_held = pq.read_table((blocks / "zh" / "held_out.parquet").path).column("text").to_pylist()
    assert len(zh_held) == sum(p.shards["validation"].documents for (name, _), p in ledger(config).items() if name == "zh")
    assert not {t + "<eos>" for t in zh_held} & set(decoded(config, pieces(config, "zh", "train")))


def test_the_same_blocks_whatever_the_tasks_and_the_names_and_order_of_files(sources: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"shard_bytes": 1500, "near_duplicates": 0.9}
    two = config_for(sources, root="two", tasks=2, **settings)
    facts = run(two, lambda _: None)
    assert facts["streams"]["zh"]["train"]["shards"] > 5
    renamed = tmp_path / "renamed"
    renamed.mkdir()
    for old, new in (("a.jsonl", "z.jsonl"), ("b.txt.gz", "0.txt.gz"), ("c.parquet", "k.parquet")):
        (renamed / new).write_bytes((sources / "zh" / old).read_bytes())
    for tasks in (1, 4):
        other = config_for(sources, root=f"with_{tasks}", tasks=tasks, **settings)
        paths = [str(renamed / n) for n in ("k.parquet", "z.jsonl", "0.txt.gz", "z.jsonl")]
        other = other.model_copy(update={"streams": [other.streams[0].model_copy(update={"paths": paths}), other.streams[1]]})
        assert timeless(run(other, lambda _: None)) == timeless(facts)
        assert contents(other) == contents(two)
        assert training_order(other) == training_order(two)


def training_order(config: RunConfig) -> list[int]:
    """Checksums of the blocks of the first passes, as training reads them."""
    blocks = training_reader(Run.of(config), config).read(range(1000))
    return [zlib.crc32(ids[: ends[-1]].astype("<u4").tobytes()) for ids, ends in zip(blocks.ids_BT, blocks.ends, strict=True)]


def timeless(facts: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in facts.items() if k != "summary"}


def contents(config: RunConfig) -> dict[tuple[str, int], Any]:
    """What the ledger says, but for the names of the corpus files."""
    return {place: (part.key, part.shards, part.dropped) for place, part in ledger(config).items()}


def test_another_run_takes_the_blocks_from_the_store(sources: Path) -> None:
    first = config_for(sources, root="shared", shard_bytes=1500)
    run(first, lambda _: None)
    second = first.model_copy(update={"name": "second"})
    files = {p: p.stat().st_mtime_ns for p in Path(Run.of(first).store.uri).rglob("*.arrow")}
    facts = run(second, lambda _: None)
    assert contents(second) == contents(first)
    assert {p: p.stat().st_mtime_ns for p in files} == files
    assert f"{len(ledger(first))} of {len(ledger(first))} shards reused" in facts["summary"]


def test_a_changed_file_packs_its_own_shards_again_and_no_others(sources: Path, tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.txt").write_text("\n".join(texts(40, name)), encoding="utf-8")
    config = config_for(sources, root="changed", shard_bytes=1500)
    zh = config.streams[0].model_copy(update={"paths": [str(tmp_path)]})
    config = config.model_copy(update={"streams": [zh, config.streams[1]]})
    run(config, lambda _: None)
    before = {part.key for part in ledger(config).values()}
    with open(tmp_path / "b.txt", "a", encoding="utf-8") as file:
        file.write("\n新的一行，只有这里有。")
    run(config, lambda _: None)
    after = {part.key for part in ledger(config).values()}
    changed = [p for p in ledger(config).values() if p.key in after - before]
    assert changed and {Path(p.source).name for p in changed} == {"b.txt"}


def test_packing_without_a_survey_reads_each_file_once_and_keeps_copies(sources: Path) -> None:
    config = config_for(sources, root="single", deduplicate=False)
    facts = run(config, lambda _: None)
    zh, en = facts["streams"]["zh"], facts["streams"]["en"]
    assert zh["dropped"] == {"empty": 1, "too_short": 1} and zh["kept"] == 154
    assert en["dropped"] == {"in_held_out": 1} and en["validation"]["documents"] == 3


def test_packing_goes_on_while_something_else_holds_a_cpu(sources: Path) -> None:
    class Busy:
        def ready(self) -> bool:
            return True

    busy: Any = ray.remote(num_cpus=1)(Busy).remote()
    try:
        assert ray.get(busy.ready.remote(), timeout=60)
        facts = run(config_for(sources, root="busy"), lambda _: None)
        assert facts["streams"]["zh"]["kept"] == 150
    finally:
        ray.kill(busy)


def test_an_interruption_leaves_no_thread_that_would_still_ask_ray(sources: Path) -> None:
    """Ray ends the whole program, with exit code 1 and no word, when one does after ray.shutdown()."""

    def interrupt(progress: Progress) -> None:
        if progress.facts.get("tokens"):
            raise KeyboardInterrupt

    before = {*threading.enumerate()}
    config = config_for(sources, root="interrupted", deduplicate=False, shard_bytes=1500)
    with pytest.raises(KeyboardInterrupt) as raised:
        run(config, interrupt)
    assert raised.tb, "an error that is still held holds no thread"
    assert {*threading.enumerate()} <= before


def test_a_part_that_kills_its_worker_each_time_is_named(sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def dies(_: Settings, task: PackTask) -> Part:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("unreachable")

    monkeypatch.setattr("zhlm.pack.job.pack_part", dies)
    with pytest.raises(ClusterError, match=r"4 workers died over .*lower resources\.pack_tasks"):
        run(config_for(sources, root="poison"), lambda _: None)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("broken.jsonl", b'{"text": "ok ok"}\n{"text": "o\n', "line 2"),
        ("broken.txt", b"ok ok\nok ok\n\xff\xfe\n", "line 3"),
        ("broken.txt.gz", gzip.compress(b"ok ok ok\n" * 9000)[:60], "truncated"),
        ("broken.parquet", b"PAR1 not really", "Parquet"),
    ],
    ids=["json", "encoding", "gzip", "parquet"],
)
def test_a_broken_file_reaches_the_driver_as_one_line_and_soon(sources: Path, tmp_path: Path, name: str, content: bytes, said: str) -> None:
    broken = tmp_path / name
    broken.write_bytes(content)
    config = config_for(sources, root=f"broken-{name}")
    zh = config.streams[0].model_copy(update={"paths": [str(sources / "zh"), str(broken)]})
    started = time.monotonic()
    with pytest.raises(CorpusError) as caught:
        run(config.model_copy(update={"streams": [zh, config.streams[1]]}), lambda _: None)
    assert time.monotonic() - started < 30
    assert str(broken) in str(caught.value) and said in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("lines", "pack", "said"),
    [
        (["好", "坏"], {}, "nothing to train on (2 documents read, too_short: 2)"),
        (["\u200d", "English only"], {"clean": {"min_han_share": 0.5}}, "low_han_share: 1"),
        (["第一句话。", "第二句话。"], {"validation_share": 0.001}, "holds out none of the 2 documents of stream zh"),
    ],
)
def test_a_stream_without_usable_documents_says_why(
    sources: Path, tmp_path: Path, lines: list[str], pack: dict[str, Any], said: str
) -> None:
    small = tmp_path / "small.txt"
    small.write_text("\n".join(lines), encoding="utf-8")
    config = config_for(sources, root="small", **pack)
    zh = config.streams[0].model_copy(update={"paths": [str(small)]})
    with pytest.raises(CorpusError) as caught:
        run(config.model_copy(update={"streams": [zh, config.streams[1]]}), lambda _: None)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_corpus_and_store_may_be_on_s3(
    sources: Path, tmp_path: Path, s3_server: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """An interrupted ledger is taken up by a second packer."""
    import boto3

    for name, value in s3_account(s3_server).items():
        monkeypatch.setenv(name, value)
    client = boto3.client("s3")
    client.create_bucket(Bucket="corpus")
    for path in (sources / "zh").iterdir():
        client.upload_file(str(path), "corpus", f"zh/{path.name}")
    data = json.loads(config_for(sources, shard_bytes=1500).model_dump_json())
    data["storage"]["root"] = "s3://corpus/runs"
    data["streams"][0]["paths"] = ["s3://corpus/zh"]
    config = RunConfig.model_validate_json(json.dumps(data))
    (tmp_path / "s3.yaml").write_text(json.dumps(data), encoding="utf-8")

    def packed() -> str:
        assert main(("pack",), ["--config", str(tmp_path / "s3.yaml")]) == 0
        return capfd.readouterr().out

    assert "shards reused" not in packed()
    on_disk = config_for(sources, root="beside_s3", shard_bytes=1500)
    run(on_disk, lambda _: None)
    assert contents(config) == contents(on_disk)
    assert pieces(config, "zh", "train") == pieces(on_disk, "zh", "train")
    blocks = Run.of(config).blocks
    (blocks / "manifest.json").delete()
    (blocks / "ledger.jsonl").write_text("torn")
    assert "shards reused" in packed() and contents(config) == contents(on_disk)
