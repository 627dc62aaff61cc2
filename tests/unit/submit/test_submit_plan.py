"""The plan: estimates before a run, facts after it, memory under each ZeRO stage."""

import json
from pathlib import Path
from typing import Any

import pytest

from zhlm.config.schema import RunConfig
from zhlm.config.stages import reads
from zhlm.errors import BaseModelError, ConfigError, RunError
from zhlm.model.shape import parameters, shape_of
from zhlm.submit.memory import count_parameters, worker_memory
from zhlm.submit.plan import format_plan, make_plan
from zhlm.submit.sources import base_folder, trained_shape

LLAMA = {
    "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 128,
    "vocab_size": 1000, "max_position_embeddings": 512,
}  # fmt: skip


def config(folder: Path, **changes: Any) -> RunConfig:
    base = folder / "base"
    base.mkdir(exist_ok=True)
    (base / "config.json").write_text(json.dumps(LLAMA))
    (folder / "zh.txt").write_bytes(b"z" * 100_000)
    (folder / "en.txt").write_bytes(b"e" * 10_000)
    data: dict[str, Any] = {
        "name": "tiny",
        "storage": {"root": str(folder / "runs")},
        "base": {"model": str(base)},
        "streams": [
            {"name": "zh", "role": "new", "paths": [str(folder / "zh.txt")], "weight": 3.0},
            {"name": "en", "role": "old", "paths": [str(folder / "en.txt")], "weight": 1.0},
        ],
        "pack": {"block_tokens": 100, "validation_share": 0.0},
        "train": {"epochs": 1.0, "global_batch_blocks": 10},
    }
    for section, values in changes.items():
        data[section] = (data.get(section) or {}) | values if isinstance(values, dict) else values
    return RunConfig.model_validate_json(json.dumps(data))


def write_manifest(run: RunConfig, stage: str, folder: str, facts: dict[str, Any]) -> None:
    place = Path(run.storage.root) / run.name / folder
    place.mkdir(parents=True)
    manifest = {"reads": {"config": reads(run, stage)}, "facts": facts}  # type: ignore[arg-type]
    (place / "manifest.json").write_text(json.dumps(manifest))


def test_estimate_from_file_sizes(tmp_path: Path) -> None:
    plan = make_plan(config(tmp_path))
    zh, en = plan.streams
    assert (zh.available.tokens, zh.available.blocks) == (45_000, 450)  # 100 kB at 0.45 tokens, for a small vocabulary
    assert plan.steps == 60 and plan.blocks == 600 and plan.tokens == 60_000
    assert zh.seen_times == pytest.approx(1.0) and en.seen_times == pytest.approx(150 / 45)
    text = format_plan(plan)
    assert "~uses 100%" in text and "~repeats 3.3x" in text and "~60 of ~600 blocks" in text
    assert text.isascii()


def test_facts_of_the_pack_stage_replace_the_estimate(tmp_path: Path) -> None:
    run = config(tmp_path)
    counted = {"zh": {"train": {"tokens": 29_900, "blocks": 300, "documents": 50}}, "en": {"train": {"tokens": 9_990, "blocks": 100}}}
    write_manifest(run, "pack", "blocks", {"streams": counted})
    plan = make_plan(run)
    assert plan.steps == 40 and plan.streams[0].available.documents == 50
    assert "repeats" not in (line := format_plan(plan).splitlines()[3]) and "29,900" in line and "~" not in line
    # Another block size makes them the facts of another run.
    assert make_plan(config(tmp_path, pack={"block_tokens": 50})).streams[0].available.tokens == 45_000


def test_sources_of_every_kind(tmp_path: Path) -> None:
    (tmp_path / "zh.jsonl.zst").write_bytes(b"z" * 1000)
    (tmp_path / "zh.arrow").write_bytes(b"z" * 1000)
    streams = [
        {"name": "zh", "role": "new", "paths": [str(tmp_path / "zh.jsonl.zst"), str(tmp_path / "zh.arrow")], "document": "file"},
        {"name": "en", "role": "old", "dataset": "nobody/nothing"},
    ]
    plan = make_plan(config(tmp_path, streams=streams, train={"epochs": None, "steps": 5}))
    zh, en = plan.streams
    assert zh.available.tokens == 1800 and en.available.tokens is None and en.seen_times is None
    assert "size unknown until packed" in format_plan(plan)


def test_sample_before_it_is_made(tmp_path: Path) -> None:
    sample = {"corpus": {"documents": 1000, "held_out_documents": 100}, "base": {"paths": ["sample://en"], "vocabulary": 512}}
    streams = [{"name": "zh", "role": "new", "paths": ["sample://zh"], "held_out": ["sample://zh_held_out"]}]
    plan = make_plan(config(tmp_path, sample=sample, base={"model": "sample://base"}, streams=streams, vocab={"add_rows": 88}))
    assert plan.streams[0].available.documents == 900
    assert plan.vocabulary == 600 and not plan.vocabulary_final
    assert "~600 vocabulary rows" in format_plan(plan)


def test_extended_base_is_read_once_it_is_there(tmp_path: Path) -> None:
    run = config(tmp_path, vocab={"add_rows": 100, "pad_to_multiple": 64})
    assert trained_shape(run)[0].vocabulary == 1152
    write_manifest(run, "vocab", "vocab", {})
    (Path(run.storage.root) / "tiny" / "vocab" / "config.json").write_text(json.dumps(LLAMA | {"vocab_size": 1088}))
    shape, final = trained_shape(run)
    assert (shape.vocabulary, final) == (1088, True)


def test_words_of_a_list_are_rows(tmp_path: Path) -> None:
    words = tmp_path / "words.txt"
    words.write_bytes("\ufeff\u4eba\u5de5\u667a\u80fd\r\n\n\u5927\u6a21\u578b\r\n\u5317\u4eac".encode())
    listed = config(tmp_path, vocab={"add_rows": 0, "word_list": str(words)})
    assert trained_shape(listed)[0].vocabulary == 1003 and "~1,003 vocabulary rows" in format_plan(make_plan(listed))
    both = config(tmp_path, vocab={"add_rows": 100, "word_list": str(words), "pad_to_multiple": 2})
    assert trained_shape(both)[0].vocabulary == 1104
    plain, base = make_plan(config(tmp_path, vocab={"add_rows": 100, "pad_to_multiple": 2})).counts, make_plan(both).counts
    assert base.frozen - plain.frozen == 2 * 4 * 64 == base.trainable - plain.trainable  # input and output rows
    assert trained_shape(config(tmp_path, vocab={"add_rows": 100, "word_list": "s3://bucket/words"}))[0].vocabulary == 1100


def test_a_word_list_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.txt does not exist; correct vocab\.word_list"):
        make_plan(config(tmp_path, vocab={"word_list": str(tmp_path / "none.txt")}))
    (tmp_path / "words.txt").write_bytes("\u4eba".encode("gb18030"))
    with pytest.raises(ConfigError, match=r"is not UTF-8 at byte 0; save it as UTF-8"):
        make_plan(config(tmp_path, vocab={"word_list": str(tmp_path / "words.txt")}))


def test_trainable_and_frozen(tmp_path: Path) -> None:
    shape = shape_of(LLAMA)
    parts = parameters(shape)
    total = sum(parts.values())
    full = count_parameters(config(tmp_path, train={"lora": None}), shape)
    assert (full.trainable, full.frozen) == (total, 0)
    lora = 4 * 8 * (4 * (64 + 64) + 3 * (64 + 128))
    frozen = count_parameters(config(tmp_path, train={"lora": {"r": 8}, "embeddings": "none"}), shape)
    assert (frozen.trainable, frozen.frozen) == (lora, total)  # as peft counts: the originals stay
    new = {"train": {"lora": {"r": 8}, "embeddings": "new_rows"}, "vocab": {"add_rows": 100}}
    assert count_parameters(config(tmp_path, **new), shape).trainable == lora + 100 * 2 * 64
    write_manifest(config(tmp_path, **new), "vocab", "vocab", {"added": 88})
    assert count_parameters(config(tmp_path, **new), shape).trainable == lora + 88 * 2 * 64
    rows = count_parameters(config(tmp_path, train={"lora": {"r": 8}}), shape)
    assert rows.trainable == lora + parts["embeddings"] + parts["head"]
    assert rows.checkpoint_bytes == 12 * rows.trainable


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    "train",
    [
        {"lora": None},
        {"lora": None, "freeze": {"first_layers": 2, "embeddings": True}},
        {"embeddings": "none"},
        {"embeddings": "all", "lora": {"r": 4, "targets": ["q_proj"]}},
        {"embeddings": "new_rows"},
        {"embeddings": "new_rows", "lora": {"dora": True, "targets": r".*\.[12]\.mlp.*", "modules_to_save": ["norm"]}},
    ],
)
def test_counts_are_those_of_training(tmp_path: Path, tied: bool, train: dict[str, Any]) -> None:
    from transformers import AutoModelForCausalLM, LlamaConfig

    from zhlm.adapt import lora

    sizes = LLAMA | {"tie_word_embeddings": tied}
    run = config(tmp_path, train=train, vocab={"add_rows": 30} if train.get("embeddings") == "new_rows" else None)
    model = lora.make_trainable(AutoModelForCausalLM.from_config(LlamaConfig(**sizes)), run.train, 1, range(970, 1000))
    counted = count_parameters(run, shape_of(sizes))
    assert lora.count_parameters(model) == {"trained": counted.trainable, "frozen": counted.frozen}


@pytest.mark.parametrize(
    ("stage", "weights", "gradients", "states"), [(0, 4, 4, 8), (1, 4, 4, 12 / 4), (2, 4, 4 / 4, 12 / 4), (3, None, 4 / 4, 12 / 4)]
)
def test_memory_by_stage(tmp_path: Path, stage: int, weights: float | None, gradients: float, states: float) -> None:
    shape = shape_of(LLAMA)
    total = sum(parameters(shape).values())
    run = config(tmp_path, train={"lora": None, "zero_stage": stage})
    parts = {p.name: p.size_bytes for p in worker_memory(run, shape, 4)}
    gathered = total + 1000 * 64 * 4  # a quarter of 4 bytes each, and the embedding whole
    assert parts["weights"] == (gathered if weights is None else total * weights)
    assert parts["gradients"] == pytest.approx(total * gradients, abs=4)
    assert parts["optimizer states"] == pytest.approx(total * states, abs=4)
    assert parts["logits"] == 3 * 100 * 1000 * 12, "ten blocks for four workers are three at a time"


def test_precision_offload_and_checkpointing(tmp_path: Path) -> None:
    shape = shape_of(LLAMA)
    plain = {p.name: p for p in worker_memory(config(tmp_path), shape, 1)}
    settings = {"precision": "bfloat16", "offload": "optimizer", "gradient_checkpointing": True}
    small = {p.name: p for p in worker_memory(config(tmp_path, train=settings), shape, 1)}
    assert small["weights"].size_bytes * 2 == plain["weights"].size_bytes
    assert small["optimizer states"].on_host and not plain["optimizer states"].on_host
    assert small["activations"].size_bytes < plain["activations"].size_bytes / 4
    away = {p.name: p for p in worker_memory(config(tmp_path, train={"zero_stage": 3, "offload": "all"}), shape, 2)}
    assert away["offloaded weights"].on_host and away["optimizer states"].on_host and not away["weights"].on_host
    assert away["offloaded weights"].size_bytes * 2 == plain["weights"].size_bytes > away["weights"].size_bytes * 2


def test_hub_name_that_is_not_cached(tmp_path: Path) -> None:
    with pytest.raises(BaseModelError, match=r"nobody/nothing is not reachable .*; check base\.model and the network"):
        make_plan(config(tmp_path, base={"model": "nobody/nothing"}))


def test_missing_folder_is_not_taken_for_a_hub_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path)
    for missing in ("./models/x", str(tmp_path / "x"), "a/b/c", "./x", "runs/x"):
        with pytest.raises(BaseModelError, match="does not exist"):
            base_folder(config(tmp_path, base={"model": missing}))
    assert base_folder(config(tmp_path, base={"model": "nobody/nothing"})) is None


def test_remote_corpus_leaves_sizes_open(tmp_path: Path) -> None:
    streams = [{"name": "zh", "role": "new", "paths": ["s3://bucket/zh"]}]
    text = format_plan(make_plan(config(tmp_path, streams=streams)))
    assert "size unknown until packed" in text and "? of ? blocks" in text
    text = format_plan(make_plan(config(tmp_path, streams=streams, train={"epochs": None, "steps": 5})))
    assert "  5 of 50 blocks in all" in text


BERT = {
    "model_type": "bert", "architectures": ["BertForMaskedLM"], "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4,
    "intermediate_size": 128, "vocab_size": 1000, "max_position_embeddings": 512,
}  # fmt: skip
T5 = {
    "model_type": "t5", "architectures": ["T5ForConditionalGeneration"], "d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2,
    "num_decoder_layers": 2, "num_heads": 4, "vocab_size": 1000,
}  # fmt: skip


def planned(folder: Path, base: dict[str, Any], **changes: Any) -> str:
    run = config(folder, **changes)
    (folder / "base" / "config.json").write_text(json.dumps(base))
    return format_plan(make_plan(run))


def line_of(text: str, name: str) -> str:
    return next((line for line in text.splitlines() if line.startswith(f"  {name} ")), "")


@pytest.mark.parametrize(
    ("base", "objective", "said"),
    [
        (LLAMA, "causal", "  objective    causal"),
        (LLAMA, {"name": "prefix", "min_share": 0.2}, "  objective    prefix, 20% to 90% of a document"),
        (BERT, {"name": "masked", "whole_words": True}, "  objective    masked, 15% of the tokens, whole words"),
        (
            T5,
            "span_corruption",
            "  objective    span_corruption, of a block 90 tokens to read and 22 to write where it is one document, at most 100 and 100",
        ),
    ],
)
def test_the_plan_says_what_is_learned(base: dict[str, Any], objective: Any, said: str, tmp_path: Path) -> None:
    text = planned(tmp_path, base, objective=objective)
    assert line_of(text, "objective").split() == said.split()
    assert bool(line_of(text, "attention mask")) == (said.split()[1].strip(",") in ("masked", "prefix"))


def test_a_dense_mask_takes_memory_where_blocks_are_packed(tmp_path: Path) -> None:
    """8 rows of 100 x 100 pairs: a byte and a number each. Made ahead: 10 blocks of a step in 2 passes of 5, twice."""
    train = {"micro_batch_blocks": 8}
    text = planned(tmp_path, BERT, objective="masked", train=train)
    assert line_of(text, "attention mask").endswith(" 244 KiB")  # 5 x 10,000 x (1 + 4)
    assert line_of(text, "masks made ahead").endswith("~195 KiB in CPU memory")
    small = planned(tmp_path, BERT, objective="masked", train=train | {"precision": "bfloat16"})
    assert line_of(small, "attention mask").endswith(" 146 KiB")
    assert "mask" not in planned(tmp_path, BERT, objective="masked", pack={"packing": "none"}).replace("objective    masked", "")


@pytest.mark.parametrize("told", ["own", "saved", "mapped"])
def test_a_prompt_without_a_mask_is_refused_before_anything_starts(told: str, tmp_path: Path) -> None:
    mask = {"own": "<gap>", "saved": "[MASK]", "mapped": "<mask>"}[told]
    vocab = {"add_rows": 0, "special_tokens": {"mask_token": mask}} if told == "own" else None
    asked = {"objective": "masked", "vocab": vocab}
    config(tmp_path)  # makes the folder
    (tmp_path / "base" / "tokenizer_config.json").write_text(json.dumps({"mask_token": "[MASK]"} if told == "saved" else {}))
    (tmp_path / "base" / "special_tokens_map.json").write_text(json.dumps({"mask_token": {"content": "<mask>"}}))
    with pytest.raises(RunError, match=r"which guesses masks and does not continue a text") as caught:
        planned(tmp_path, BERT, evaluate={"prompts": [f"\u4eca{mask}", "\u4eca\u5929"]}, **asked)
    assert f"put {mask} into the prompt '\u4eca\u5929'" in str(caught.value) and "\n" not in str(caught.value)
    assert planned(tmp_path, BERT, evaluate={"prompts": [f"\u4eca{mask}"]}, **asked)
