"""`zhlm blocks`: what it shows, what it finds wrong, and that a repair leaves just the damaged parts to pack again."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from blocks_store import VOCABULARY, T, pack_part, some_blocks
from rich.console import Console

from conftest import run_data, save_tiny_llama, write_blocks
from zhlm.blocks.inspect import open_blocks, show_block
from zhlm.blocks.read import training_reader
from zhlm.blocks.store import Ledger, Part, Plan, Shard, find_part, read_plan, write_plan
from zhlm.blocks.verify import problem_of
from zhlm.cli import main
from zhlm.config.load import dump_config
from zhlm.config.schema import RunConfig
from zhlm.corpus.changes import listing_of
from zhlm.corpus.files import find_files
from zhlm.errors import RunError
from zhlm.records import Blocks
from zhlm.storage import Place, Run


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    return RunConfig.model_validate(run_data(tmp_path))


@pytest.fixture
def run(tmp_path: Path, config: RunConfig) -> Run:
    folder = tmp_path / "runs" / "tiny"
    write_blocks(folder, ["zh", "en"])
    (folder / "config.yaml").write_text(dump_config(config), encoding="utf-8")
    return Run(Place(folder))


@pytest.fixture
def said(run: Run, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    def call(*options: str, code: int = 0) -> str:
        assert main(["blocks", str(run.folder), *options]) == code
        shown = capsys.readouterr()
        assert bool(shown.err) == (code == 2) and shown.err.count("\n") == (code == 2)
        return shown.err or shown.out

    return call


def damage(run: Run, place: tuple[str, int], at: int = 700) -> Shard:
    (shard,) = Ledger(run.blocks).read()[place].shards.values()
    path = (run.store / shard.file).path
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)
    return shard


def test_the_overview_counts_what_is_packed(run: Run, said: Callable[..., str]) -> None:
    plan, ledger = read_plan(run.blocks), Ledger(run.blocks)
    assert plan is not None
    recipe = {
        "packing": "best_fit",
        "start_id": None,
        "clean": {"normalise": True, "min_chars": 2},
        "deduplicate": True,
        "near_duplicates": None,
    }
    write_plan(run.blocks, Plan(plan.recipe | recipe, plan.streams))
    parts = ledger.read()
    del parts["en", 1]
    parts["zh", 0] = replace(parts["zh", 0], documents=50, dropped={"too_short": 20, "duplicate": 2})
    parts["zh", 2] = replace(parts["zh", 2], dropped={"duplicate": 1})
    ledger.start(parts)
    lines = said().splitlines()
    assert [line.split() for line in lines[:3]] == [
        ["stream", "split", "parts", "blocks", "documents", "tokens", "fill", "on", "disk"],
        ["zh", "train", "3", "40", "80", "1,243", "97.11%", "5.73", "kB"],
        ["zh", "validation", "1", "5", "10", "156", "97.50%", "1.27", "kB"],
    ]
    assert lines[3].split()[:6] == ["en", "train", "2", "of", "3", "27"]
    assert lines[5].startswith("zh: ") and lines[5].endswith(" documents read, dropped 20 too short, 3 duplicate")
    assert lines[6].endswith("dropped nothing")
    assert lines[7:] == [
        "recipe: block tokens 32, vocabulary 96, packing best_fit, normalise, min chars 2, deduplicate",
        "still to pack: en 1 of 4 parts",
        "mix over the first 1,000 blocks: zh 75.0% asked and 75.0% reached, en 25.0% asked and 25.0% reached",
    ]


def test_the_order_is_the_one_of_training(run: Run, config: RunConfig, said: Callable[..., str]) -> None:
    lines = said("--order", "2").splitlines()
    rows = [line.split() for line in lines[1:]]
    assert [r[0] for r in rows] == [str(step) for step in (2, 3, 4) for _ in range(6)], "three steps of 6 blocks fit 20 lines"
    reader = training_reader(run, config)
    for row, index in zip(rows, range(6, 24), strict=True):
        a = reader.order[index]
        assert row[1:] == [str(index), ("zh", "en")[a.stream], str(a.epoch), str(a.shard), str(a.row), reader.source(index)]


def test_a_step_longer_than_the_table_is_shown_whole(run: Run, tmp_path: Path, said: Callable[..., str]) -> None:
    config = RunConfig.model_validate(run_data(tmp_path, global_batch_blocks=30))
    run.config.path.write_text(dump_config(config), encoding="utf-8")
    assert len(said("--order", "1").splitlines()) == 31


def test_a_block_is_shown_as_text(run: Run, tmp_path: Path, said: Callable[..., str], capsys: pytest.CaptureFixture[str]) -> None:
    save_tiny_llama(tmp_path / "base")
    capsys.readouterr()
    out = said("--show", "4")
    head, fill, objective, *documents = out.splitlines()
    assert head == "block 4: stream zh, epoch 0, shard 1, row 7, from zh-1"
    assert fill == "31 of 32 tokens (fill 96.9%), 2 documents or pieces of one"
    assert objective == "objective causal: 29 of 31 tokens are learned, each from those before it in its document"
    assert documents == [
        "---- 1: 12 tokens at positions 0 to 11",
        "sees    Q|R|S|T|U|V|W|X|Y|Z|[|\\",
        "learns  R|S|T|U|V|W|X|Y|Z|[|\\|-",
        "---- 2: 19 tokens at positions 0 to 18",
        "sees    ]|^|_|`|a|b|c|d|e|f|g|h|i|j|k|l|m|n|o",
        "learns  ^|_|`|a|b|c|d|e|f|g|h|i|j|k|l|m|n|o|-",
    ]
    terminal = StringIO()
    show_block(open_blocks(run), 4, Console(file=terminal, force_terminal=True, color_system="standard"))
    assert "\x1b[32mQ|R|S|T" in terminal.getvalue() and "\x1b[33m]|^|_|`" in terminal.getvalue()


def test_a_sound_store_is_said_to_be_so(said: Callable[..., str]) -> None:
    assert said("--verify") == "8 shards are as the ledger says\n"
    assert said("--repair") == "nothing to repair\n"


def test_a_repair_deletes_what_killed_packers_left(run: Run, said: Callable[..., str]) -> None:
    left = (run.store / "zz" / ".zz1.train.0123abcd").path
    left.parent.mkdir()
    left.write_bytes(b"x" * 3000)
    assert said("--repair") == "nothing to repair\n" and left.exists(), "it may be a living packer's"
    os.utime(left, (0, 0))
    assert said("--repair") == "deleted: 1 temporary files of killed packers, 3 kB\nnothing to repair\n"
    assert not left.exists() and (run.blocks / "manifest.json").exists()


def test_parts_that_the_ledger_lost_are_packed_again(run: Run, said: Callable[..., str]) -> None:
    """The reader sends its user here; as long as packing counts as finished, nobody would put them back."""
    ledger = (run.blocks / "ledger.jsonl").path
    ledger.write_text("".join(ledger.read_text().splitlines(keepends=True)[:5]))
    (run.blocks / "manifest.json").write_text("{}")
    assert said("--repair").splitlines()[0] == "ledger: 3 parts of the plan are not in it, although packing was finished"
    assert not (run.blocks / "manifest.json").exists()
    assert said("--repair") == "nothing to repair\n"


def test_a_repair_leaves_just_the_damaged_parts_to_pack(run: Run, said: Callable[..., str]) -> None:
    ledger, before = Ledger(run.blocks), Ledger(run.blocks).read()
    bad = [damage(run, ("zh", 1)), damage(run, ("en", 3))]
    (gone,) = before["en", 0].shards.values()
    (run.store / gone.file).path.unlink()
    lines = said("--verify", code=1).splitlines()
    assert len(lines) == 4 and lines[3] == f"3 of 8 shards are bad; run `zhlm blocks {run.folder} --repair`"
    for line, shard, source in zip(lines, [bad[0], gone, bad[1]], ("zh-1", "en-0", "en-3"), strict=False):
        assert line.startswith("bad: ") and shard.file in line and line.endswith(f"(from {source})")
    with open((run.blocks / "ledger.jsonl").path, "a") as file:
        file.write('{"stream": "zh"}\n{"stream": "z')
    assert "ledger.jsonl line 9 is broken" in said("--verify", code=2)
    lines = said("--repair").splitlines()
    assert lines[:2] == ["ledger: line 9 is broken, removed", "ledger: the last line is torn, removed"]
    assert [line.partition(":")[0] for line in lines[2:5]] == ["deleted"] * 3 and lines[5] == "the next `zhlm run` packs what is missing"
    kept = {place: part for place, part in before.items() if place not in (("zh", 1), ("en", 3), ("en", 0))}
    assert ledger.read() == kept and not (run.blocks / "manifest.json").exists()
    for place, part in before.items():
        assert (find_part(run.store, part.key) is not None) == (place in kept)
    assert said("--verify") == "5 shards are as the ledger says\n"
    assert "still to pack: zh 1 of 4 parts, en 2 of 4 parts" in said()
    assert "step 1 is not packed yet: stream zh has 0 of the 1 shards of its next window" in said("--order", "1", code=2)
    assert "block 7 is not packed yet" in said("--show", "7", code=2)


def shard_of(store: Place, key: str, ids: list[int], ends: list[int]) -> Part:
    blocks = some_blocks(2, 1)
    changed = Blocks(np.array([blocks.ids_BT[0], ids]), [blocks.ends[0], np.array(ends, np.uint32)])
    return pack_part(store, key, {"train": [some_blocks(3, 2), changed]})


@pytest.mark.parametrize(
    ("ids", "ends", "problem"),
    [
        ([1] * T, [3, 8], None),
        ([299] * T, [8], None),
        ([1] * 7 + [300], [3, 8], "has the id 300, the vocabulary has 300 entries"),
        ([1] * T, [3, 3], "has document ends that do not ascend within 8 tokens"),
        ([1] * T, [0, 3], "has document ends that do not ascend within 8 tokens"),
        ([1] * T, [5, 3], "has document ends that do not ascend within 8 tokens"),
        ([1] * T, [3, 9], "has document ends that do not ascend within 8 tokens"),
    ],
)
def test_what_a_sound_hash_may_hide_is_found(tmp_path: Path, ids: list[int], ends: list[int], problem: str | None) -> None:
    store = Place(tmp_path / "_blocks")
    shard = shard_of(store, "ab1", ids, ends).shards["train"]
    found = problem_of(store, shard, VOCABULARY)
    assert found == (problem and f"{store / shard.file} {problem}")
    if problem is None:
        said = problem_of(store, replace(shard, tokens=99), VOCABULARY)
        assert said is not None and said.endswith(f"holds {shard.tokens} tokens, the ledger says 99")


def test_bad_input_is_one_line(run: Run, tmp_path: Path, said: Callable[..., str]) -> None:
    (run.blocks / "ledger.jsonl").write_text("nonsense\n")
    assert "ledger.jsonl line 1 is broken" in said(code=2)
    (run.blocks / "ledger.jsonl").delete()
    assert "still to pack: zh 4 of 4 parts, en 4 of 4 parts" in said()
    (run.blocks / "plan.json").write_text('{"recipe": {}')
    for option in ([], ["--verify"], ["--repair"], ["--order", "1"], ["--show", "0"]):
        assert "plan.json is broken" in said(*option, code=2)
    (run.blocks / "plan.json").delete()
    assert "has no blocks/plan.json, expected a run that packs or has packed; run `zhlm run FILE`" in said("--verify", code=2)
    run.config.delete()
    assert "holds no config.yaml, expected a run folder" in said(code=2)


def test_only_text_needs_the_tokenizer(run: Run) -> None:
    code = (
        "import sys\nfrom zhlm.cli import main\nfolder = sys.argv[1]\n"
        "for options in ([], ['--verify'], ['--repair'], ['--order', '1']):\n    assert main(['blocks', folder, *options]) == 0\n"
        "heavy = {'torch', 'ray', 'transformers', 'deepspeed', 'datasets'} & set(sys.modules)\nassert not heavy, heavy\n"
    )
    ran = subprocess.run([sys.executable, "-c", code, str(run.folder)], capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr


def test_a_changed_file_is_named(run: Run, tmp_path: Path, said: Callable[..., str]) -> None:
    for name in ("zh.txt", "en.txt", "held.txt"):
        (tmp_path / name).write_text(f"{name}\n", encoding="utf-8")
    listings = {name: listing_of(find_files([str(tmp_path / f"{name.rpartition('.')[2]}.txt")])) for name in ("zh", "en")}
    listings["zh.held_out"] = listing_of(find_files([str(tmp_path / "held.txt")]))
    for kept in ("started.json", "manifest.json"):
        (run.blocks / "manifest.json").delete()
        (run.blocks / kept).write_text(json.dumps({"sources": listings}))
        for name in ("zh.txt", "en.txt", "held.txt"):
            (tmp_path / name).write_text(f"{name}\n", encoding="utf-8")
        assert "other than packed" not in said()
        (tmp_path / "zh.txt").write_text("other\n", encoding="utf-8")
        (tmp_path / "held.txt").unlink()
        line = (
            f"other than packed: zh: {tmp_path}/zh.txt changed, zh.held_out: {tmp_path}/held.txt cannot be read any more; `zhlm run` packs"
        )
        assert line in said()


def test_blocks_of_another_packing_or_tokenizer_are_refused(
    run: Run, tmp_path: Path, said: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    save_tiny_llama(tmp_path / "base")
    capsys.readouterr()
    plan = read_plan(run.blocks)
    assert plan is not None
    write_plan(run.blocks, Plan(plan.recipe | {"packing": "concat", "clean": {"min_chars": 9}, "engine": "gigatoken"}, plan.streams))
    what = f"blocks: {run.blocks} was packed with other settings (packing: 'concat' -> 'best_fit'; clean.min_chars: 9 -> 2); run the pack"
    assert what in said() and what in said("--order", "1", code=2)
    write_plan(run.blocks, Plan(plan.recipe | {"tokenizer": "0123456789abcdef"}, plan.streams))
    assert f"was packed with the tokenizer 0123456789abcdef, that of {tmp_path}/base is " in said("--show", "1", code=2)
    extended = RunConfig.model_validate(run_data(tmp_path) | {"vocab": {}})
    run.config.path.write_text(dump_config(extended), encoding="utf-8")
    (run.vocab / "manifest.json").write_text(json.dumps({"facts": {"tokenizer_digest": "fedcba9876543210"}}))
    assert "(tokenizer: '0123456789abcdef' -> 'fedcba9876543210'); run the pack stage again" in said("--order", "1", code=2)
    with pytest.raises(RunError, match="was packed with other settings"):
        training_reader(run, extended)
