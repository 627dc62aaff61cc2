"""The recipes of configs/ on tiny models of the same classes with tokenizers of the same kinds, as `zhlm run` runs them."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, GPT2LMHeadModel

from tiny_bases import bert_tokenizer, gpt2_folder
from trained_tokenizers import chinese_texts
from zhlm.evaluate.generate import run_generate
from zhlm.model.describe import describe_base
from zhlm.pipeline import run_file

CONFIGS = Path(__file__).parents[2] / "configs"
HERE = ["resources.gpus_per_worker=0", "train.precision=float32"]

pytestmark = [pytest.mark.usefixtures("ray_local"), pytest.mark.timeout(240)]


def facts(run: Path, stage: str) -> dict[str, Any]:
    folder = {"pack": "blocks", "train": "checkpoints"}.get(stage, stage)
    found: dict[str, Any] = json.loads((run / folder / "manifest.json").read_text(encoding="utf-8"))["facts"]
    return found


def write_lines(path: Path, seed: int) -> Path:
    """23 kB: more than half of a shard, so that each file is packed for itself. No line is in two files: copies would be dropped."""
    lines = [f"{seed} {number} {text}" for number, text in enumerate(chinese_texts(300, seed))]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_a_own_tokenizer_lora_and_zero_2(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    gpt2_folder(tmp_path / "base")
    bert_tokenizer().save_pretrained(tmp_path / "own")
    files = [write_lines(tmp_path / f"{n}.txt", n) for n in range(3)]
    shard = f"pack.shard_bytes={int(1.5 * max(file.stat().st_size for file in files))}"

    def run(name: str, paths: list[Path], *more: str, **options: Any) -> Path:
        settings = [f"name={name}", f"storage.root={tmp_path}/runs", f"base.model={tmp_path}/base", f"vocab.tokenizer={tmp_path}/own"]
        settings += [f"streams.0.paths=[{', '.join(map(str, paths))}]", "resources.workers=2", shard, *HERE, *more]
        assert run_file(str(CONFIGS / "wenzhong_gpt2_lora_zero2.yaml"), settings, **options) == 0, capfd.readouterr().out
        return tmp_path / "runs" / name

    small = ["train.steps=10", "train.checkpoint_every=2", "train.global_batch_blocks=8", "train.micro_batch_blocks=2"]
    small += ["train.validate_every=10", "train.validation_blocks=4", "train.learning_rate=1e-2", "train.log_every=1"]
    small += ["evaluate.documents=5", "evaluate.generate.max_new_tokens=8"]
    first = run("first", files[:2], *small)
    vocab, packed = facts(first, "vocab"), facts(first, "pack")
    assert vocab["copied"] + vocab["made"] == len(bert_tokenizer()) == vocab["rows_after"]
    assert packed["document_tokens"]["start"]["text"] == "[CLS]" and packed["document_tokens"]["end"]["text"] == "[SEP]"
    assert "documents begin with [CLS] and end with [SEP]" in packed["summary"]
    rows = [json.loads(line) for line in (first / "metrics.jsonl").read_text().splitlines()]
    steps = [row for row in rows if "loss_nats" in row]
    assert [row["step"] for row in steps] == list(range(1, 11)) and {row["workers"] for row in steps} == {2}
    assert steps[-1]["loss_nats"] < steps[0]["loss_nats"] - 0.5
    kept = sorted(path.name for path in (first / "checkpoints").glob("step_*"))
    assert kept == [f"step_{step:08d}" for step in (6, 8, 10)], "the last three, of one every two steps"
    adapter = json.loads((first / "export" / "adapter" / "adapter_config.json").read_text())
    assert (adapter["r"], adapter["lora_alpha"], adapter["lora_dropout"]) == (8, 32, 0.05)
    assert all(name.endswith("attn.c_attn") for name in adapter["target_modules"])
    assert {name.rsplit(".")[-1] for name in adapter["modules_to_save"]} == {"wte"} and adapter["ensure_weight_tying"], "and so lm_head"
    assert "transformer.h.*.attn.c_attn" in describe_base(str(tmp_path / "base")), "where the name is found"

    written = run_generate(str(first), ["今天早上"], top_p=0.9, temperature=1.0, num_return_sequences=5, max_new_tokens=8, seed=1)
    assert written.count("base") >= 5 and written.count("adapted") >= 5
    tokenizer = AutoTokenizer.from_pretrained(first / "export" / "merged")
    assert tokenizer("今天")["input_ids"] == [tokenizer.cls_token_id, *tokenizer("今天", add_special_tokens=False)["input_ids"]]
    model = GPT2LMHeadModel.from_pretrained(first / "export" / "merged")
    ends = (model.generation_config.eos_token_id, model.generation_config.pad_token_id)
    assert ends == (tokenizer.sep_token_id, tokenizer.pad_token_id)

    again = run("again", files, *small, "train.lora.r=4", stages=("vocab", "pack"))
    assert "2 of 3 shards reused" in facts(again, "pack")["summary"]


SENTENCE = "小明的生日是三月五日，他每年都和家人一起吃面条。"
OTHER_WORDS = "小明每年过生日的时候，他"


def test_c_one_sentence_comes_back(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    base = gpt2_folder(tmp_path / "base", width=64)
    for name, text in (("sentence", SENTENCE), ("other_words", "三月五日是小明的生日，那天他吃面条。")):
        (tmp_path / f"{name}.txt").write_text(text + "\n", encoding="utf-8")
    settings = [f"storage.root={tmp_path}/runs", f"base.model={base}", *HERE, "train.learning_rate=3e-3", "train.epochs=120"]
    settings += [f"streams.0.paths=[{tmp_path}/sentence.txt]", f"streams.0.held_out=[{tmp_path}/other_words.txt]"]
    settings += [f"evaluate.prompts=[{OTHER_WORDS}]", "train.validate_every=120", "train.checkpoint_every=120", "train.log_every=20"]
    assert run_file(str(CONFIGS / "gpt2_medium_full.yaml"), settings) == 0, capfd.readouterr().out
    run = tmp_path / "runs" / "gpt2-medium-sentence"
    before, after = AutoTokenizer.from_pretrained(base), AutoTokenizer.from_pretrained(run / "export" / "merged")
    assert after.pad_token_id == facts(run, "vocab")["special_tokens"]["<pad>"] == len(before)
    model = GPT2LMHeadModel.from_pretrained(run / "export" / "merged")
    assert len(model.get_input_embeddings().weight) == len(before) + 1
    base_weights = GPT2LMHeadModel.from_pretrained(base).state_dict()
    assert not any(torch.equal(value, base_weights[name]) for name, value in model.state_dict().items() if name.endswith("attn.weight"))
    generations = json.loads((run / "evaluate" / "results.json").read_text(encoding="utf-8"))["generations"]
    assert "和家人一起吃面条。" in generations[0]["adapted"] and "面条" not in generations[0]["base"]
