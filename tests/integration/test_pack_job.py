"""Packing on a real local Ray: nothing lost, the same bytes whatever the tasks, and mistakes that reach the driver as one line."""

import gzip
import json
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from transformers import AutoTokenizer

from conftest import run_data, save_tiny_llama
from zhlm.blocks.store import open_shard, read_ledger
from zhlm.config.schema import RunConfig
from zhlm.errors import CorpusError
from zhlm.pack.job import run
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


def ledgers(config: RunConfig) -> dict[str, list[Any]]:
    blocks = Run.of(config).blocks
    return {f"{s}/{split}": read_ledger(blocks / s / split) for s in ("zh", "en") for split in ("train", "validation")}


def pieces(config: RunConfig, stream: str, split: str) -> list[list[int]]:
    """The ids of every document piece in the blocks, in order."""
    folder = Run.of(config).blocks / stream / split
    out = []
    for shard in read_ledger(folder):
        for row in open_shard(folder, shard).to_pylist():
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
    assert all(isinstance(p, Progress) and p.total == 5 for p in seen)
    assert [p.done for p in seen] == sorted(p.done for p in seen) and seen[-1].done == 5


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
    assert len(zh_held) == sum(s.documents for s in read_ledger(blocks / "zh" / "validation"))
    assert not {t + "<eos>" for t in zh_held} & set(decoded(config, pieces(config, "zh", "train")))


def test_the_same_bytes_with_one_task_or_two_and_in_any_order_of_paths(sources: Path) -> None:
    two, one = config_for(sources, root="two", tasks=2), config_for(sources, root="one", tasks=1)
    shuffled = [str(sources / "zh" / n) for n in ("c.parquet", "a.jsonl", "b.txt.gz", "a.jsonl")]
    one = one.model_copy(update={"streams": [one.streams[0].model_copy(update={"paths": shuffled}), one.streams[1]]})
    assert run(two, lambda _: None) == run(one, lambda _: None)
    assert ledgers(two) == ledgers(one)


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


def test_a_second_attempt_leaves_nothing_of_the_first(sources: Path) -> None:
    config = config_for(sources, root="again")
    leftover = Run.of(config).blocks / "zh" / "train" / "shard-00099.arrow"
    leftover.path.parent.mkdir(parents=True)
    leftover.write_text("torn")
    run(config, lambda _: None)
    assert not leftover.exists()


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
