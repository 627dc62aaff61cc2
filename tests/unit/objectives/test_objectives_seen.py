"""A block as the model sees it: what `zhlm blocks --show` prints is what the feed of training makes of it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conftest import run_data, write_blocks
from tiny_bases import bert_folder, bloom_folder, gpt2_folder, t5_folder
from zhlm.blocks.inspect import open_blocks
from zhlm.blocks.read import training_reader
from zhlm.cli import main
from zhlm.config.load import dump_config
from zhlm.config.schema import RunConfig
from zhlm.model.load import load_model_config
from zhlm.objectives.batch import IGNORED, Batch, filled_up
from zhlm.objectives.choose import objective_of
from zhlm.objectives.seen import SeenBlock, see
from zhlm.records import Blocks
from zhlm.storage import Place, Run
from zhlm.tokenizer.load import load_tokenizer, vocabulary_of

MAKERS: dict[str, Callable[[Path], Path]] = {"gpt2": gpt2_folder, "bloom": bloom_folder, "bert": bert_folder, "t5": t5_folder}
OWN = {"gpt2": "causal", "bloom": "causal", "bert": "masked", "t5": "span_corruption"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """A packed run of each class."""
    return {name: packed_run(tmp_path_factory.mktemp(name), name) for name in MAKERS}


def packed_run(folder: Path, name: str, **changes: Any) -> Run:
    base = str(MAKERS[name](folder / "base"))
    config = RunConfig.model_validate(run_data(folder) | {"objective": OWN[name], **changes})
    run = folder / "runs" / "tiny"
    write_blocks(run, ["zh", "en"], vocabulary=vocabulary_of(load_tokenizer(base)))
    (run / "config.yaml").write_text(dump_config(config), encoding="utf-8")
    return Run(Place(run))


def trained_on(run: Run, index: int) -> Batch:
    """What training gets of a block, in a batch with others."""
    opened = open_blocks(run)
    base = opened.config.base.model
    objective = objective_of(opened.config, load_tokenizer(base), load_model_config(base))
    keys = [index, index + 1]
    return filled_up(objective, training_reader(run, opened.config).read(keys), keys, 3)


def shown(run: Run, capsys: pytest.CaptureFixture[str], *options: str) -> list[str]:
    capsys.readouterr()
    assert main(["blocks", str(run.folder), "--show", *options]) == 0
    return capsys.readouterr().out.splitlines()


def test_causal_shows_tokens_and_labels(runs: dict[str, Run], capsys: pytest.CaptureFixture[str]) -> None:
    lines = shown(runs["bert"], capsys, "4", "--objective", "causal")
    assert lines[2] == "objective causal: 29 of 31 tokens are learned, each from those before it in its document"
    assert lines[3:6] == [
        "---- 1: 12 tokens at positions 0 to 11",
        "sees    朋|本|来|校|样|没|注|点|然|王|生|用",
        "learns  本|来|校|样|没|注|点|然|王|生|用|-",
    ]
    assert lines[7].count("|") == lines[8].count("|") == 18 and lines[8].endswith("|-")


def test_masked_marks_what_is_seen_in_place_of_what(runs: dict[str, Run], capsys: pytest.CaptureFixture[str]) -> None:
    batch, tokenizer = trained_on(runs["bert"], 4), load_tokenizer(open_blocks(runs["bert"]).config.base.model)
    lines = shown(runs["bert"], capsys, "4")
    assert lines[2].startswith("objective masked: 5 of 31 tokens are learned, shown as {seen=learned}: 4 seen as [MASK], 1 as random")
    assert lines[3:] == [
        "---- 1: 12 tokens at positions 0 to 11",
        "朋本来校样没{[MASK]=注}点然王生用",
        "---- 2: 19 tokens at positions 0 to 18",
        "的{[MASK]=看}第给{[MASK][MASK]=老能}自茶行见说起車车{random 張=辆}过还这那",
    ]
    at = (batch.targets_BT[0] != IGNORED).nonzero().flatten().tolist()
    assert tokenizer.convert_ids_to_tokens(batch.targets_BT[0, at]) == [*"注看老能辆"]
    assert tokenizer.convert_ids_to_tokens(batch.inputs["input_ids"][0, at]) == ["[MASK]"] * 4 + ["張"]


def test_tokens_that_are_kept_are_marked(tmp_path: Path) -> None:
    kept = {"name": "masked", "mask_share": 0.5, "mask_token_share": 0.0, "random_share": 0.0}
    tokenizer = load_tokenizer(str(bert_folder(tmp_path / "base")))
    ids = tokenizer.convert_tokens_to_ids([*"的一是不了人", "[SEP]"])
    seen = seen_of(tmp_path, kept, tokenizer, ids)
    assert seen.summary.endswith("0 seen as [MASK], 0 as random tokens, 2 kept as they are")
    assert seen.documents[0].lines == [[("的一是", False), ("{kept 不了}", True), ("人[SEP]", False)]]


def test_cut_characters_are_written_as_bytes_and_line_breaks_stay_in_their_line(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(gpt2_folder(tmp_path / "base")))
    ids = [i for text in ("今", "\n") for i in tokenizer(text)["input_ids"]]
    (document,) = seen_of(tmp_path, "causal", tokenizer, [*ids, tokenizer.eos_token_id]).documents
    assert [text for text, _ in document.lines[0]] == ["sees    ", "\\xe4|\\xbb|\\x8a|\\n|<|endoftext|>"]


def seen_of(folder: Path, objective: Any, tokenizer: Any, ids: list[int]) -> SeenBlock:
    config = RunConfig.model_validate(run_data(folder) | {"objective": objective})
    blocks = Blocks(np.array([ids]), [np.array([len(ids)], np.uint32)])
    return see(config, tokenizer, str(folder / "base"), None, blocks, 0)


def test_prefix_shows_where_it_ends_and_what_is_learned(runs: dict[str, Run], capsys: pytest.CaptureFixture[str]) -> None:
    lines = shown(runs["bert"], capsys, "4", "--objective", "prefix")
    assert lines[2].startswith("objective prefix: 22 of 31 tokens are learned, from all before them")
    assert lines[3:] == [
        "---- 1: 12 tokens at positions 0 to 11, a prefix of 3",
        "prefix  朋本来",
        "learns  校样没注点然王生用",
        "---- 2: 19 tokens at positions 0 to 18, a prefix of 6",
        "prefix  的看第给老能",
        "learns  自茶行见说起車车辆过还这那",
    ]


def test_span_corruption_shows_both_sides(runs: dict[str, Run], capsys: pytest.CaptureFixture[str]) -> None:
    batch, tokenizer = trained_on(runs["t5"], 4), load_tokenizer(open_blocks(runs["t5"]).config.base.model)
    lines = shown(runs["t5"], capsys, "4")
    assert lines[2] == "objective span_corruption: 11 tokens to write, from 28 to read, of 31; no document sees another"
    assert lines[3:6] == [
        "---- 1: 12 tokens, 11 to read and 5 to write",
        "reads   如妹子学學<extra_id_0>小师年張当",
        "writes  <extra_id_0>家对<extra_id_1></s>",
    ]
    written = batch.targets_BT[0][batch.targets_BT[0] != IGNORED].tolist()
    assert "".join(tokenizer.convert_ids_to_tokens(written)) == lines[5].split()[1] + lines[8].split()[1]


def test_a_document_too_short_to_hide_some_is_said_to_be_so(runs: dict[str, Run]) -> None:
    config = open_blocks(runs["t5"]).config
    blocks = Blocks(np.array([[20, 21, 22, 23]]), [np.array([2, 4], np.uint32)])
    documents = see(config, load_tokenizer(config.base.model), config.base.model, None, blocks, 0).documents
    assert [d.lines[1][1][0] for d in documents] == ["nothing: too short to hide some"] * 2


def test_rows_that_are_padded_in_front_are_shown_from_their_first_token(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = packed_run(tmp_path, "bloom", pack={"block_tokens": 32, "packing": "none"})
    padded, packed = shown(run, capsys, "4"), shown(packed_run(tmp_path / "packed", "bloom"), capsys, "4")
    assert packed[3:] == padded[3:] and "|" in padded[4]
    batch = trained_on(run, 4)
    assert batch.inputs["position_ids"][0, 0] == 0 and batch.fills_B[0] == 31


@pytest.mark.parametrize(
    ("base", "options", "says"),
    [
        ("gpt2", ["--show", "4", "--objective", "masked"], "has no mask token, which masked needs"),
        ("bert", ["--show", "4", "--objective", "span_corruption"], "has no <extra_id_0>; add them with vocab"),
        ("gpt2", ["--objective", "masked"], "--objective says how to show a block; name one with --show N"),
    ],
)
def test_what_cannot_be_shown_is_one_line(
    base: str, options: list[str], says: str, runs: dict[str, Run], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["blocks", str(runs[base].folder), *options]) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1
