"""The recipes of configs/ on tiny models of the same classes with tokenizers of the same kinds, as `zhlm run` runs them."""

import json
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer, BloomForCausalLM, GPT2LMHeadModel, pipeline

from conftest import save_tiny_llama
from tiny_bases import bert_folder, bert_tokenizer, bloom_folder, gpt2_folder, t5_folder
from trained_tokenizers import chinese_texts
from zhlm.blocks.read import training_reader
from zhlm.evaluate.generate import run_generate
from zhlm.evaluate.models import open_run
from zhlm.model.describe import describe_base
from zhlm.objectives.batch import IGNORED
from zhlm.objectives.choose import objective_of
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


TEXTS = [f"{number}{text}" for number, text in enumerate(chinese_texts(300))]


@pytest.fixture
def wiki(tmp_path: Path) -> Path:
    """A folder of `datasets` as the recipes read it, with rows that are empty or null, and lines of JSON with numbers in place of texts."""
    datasets.disable_progress_bars()
    (tmp_path / "wiki").mkdir()
    datasets.Dataset.from_dict({"completion": [*TEXTS[:150], None, "", None, *TEXTS[150:]]}).save_to_disk(tmp_path / "wiki" / "saved")
    lines = [json.dumps({"completion": value}) for value in (7, None, 0.5, "")]
    (tmp_path / "wiki" / "numbers.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return tmp_path / "wiki"


def run_on_wiki(recipe: str, base: Path, wiki: Path, *more: str, steps: int = 12) -> Path:
    """A few steps of a recipe with two workers; the loss falls, and the rows without text are counted."""
    settings = [f"storage.root={wiki.parent}/runs", f"base.model={base}", f"streams.0.paths=[{wiki}]", "resources.workers=2", *HERE]
    settings += [f"train.steps={steps}", "train.global_batch_blocks=8", "train.micro_batch_blocks=4", "train.learning_rate=1e-2"]
    settings += ["train.log_every=1", "train.validate_every=12", "train.validation_blocks=4", "train.checkpoint_every=12"]
    settings += ["pack.block_tokens=64", "evaluate.documents=5", "evaluate.generate.max_new_tokens=8", *more]
    assert run_file(str(CONFIGS / f"{recipe}.yaml"), settings) == 0
    run = wiki.parent / "runs" / recipe.replace("_", "-")
    stream = facts(run, "pack")["streams"]["wiki"]
    kept = stream["train"]["documents"] + stream["validation"]["documents"]
    assert stream["dropped"] == {"empty": 2, "not_text": 5}
    assert (stream["documents_in"], kept) == (len(TEXTS) + 7, len(TEXTS)), "in = kept + dropped"
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss_nats"] for row in rows if "loss_nats" in row]
    assert len(losses) == steps and sum(losses[-3:]) / 3 < losses[0] - 0.3
    return run


def results_of(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "evaluate" / "results.json").read_text(encoding="utf-8"))
    return found


def test_b_bert_fills_masks(tmp_path: Path, wiki: Path) -> None:
    prompt = "今天早上，小王在公园里看[MASK]。"
    run = run_on_wiki(
        "bert_base_chinese_mlm", bert_folder(tmp_path / "base"), wiki, f"evaluate.prompts=['{prompt}']", "evaluate.documents=20"
    )
    assert "documents begin with [CLS] and end with [SEP]" in facts(run, "pack")["summary"]
    results = results_of(run)
    before, after = results["base"]["wiki"], results["adapted"]["wiki"]
    assert results["measure"] == "pseudo_likelihood" and after["bits_per_byte"] < before["bits_per_byte"]
    assert after["masked_tokens"] == before["masked_tokens"] > 20 and after["masked_accuracy"] > before["masked_accuracy"]
    (guesses,) = results["generations"][0]["guesses"]["adapted"]
    assert len(guesses) == 5 and [g["score"] for g in guesses] == sorted((g["score"] for g in guesses), reverse=True)
    plain = pipeline("fill-mask", str(run / "export" / "merged"))(prompt)
    assert [g["token"] for g in plain] == [g["token_id"] for g in guesses]
    assert [g["score"] for g in plain] == pytest.approx([g["score"] for g in guesses], abs=1e-4)
    assert guesses[0]["token"] in run_generate(str(run), [prompt], **WRITING)


WRITING: dict[str, Any] = {"top_p": 0.9, "temperature": 0.8, "num_return_sequences": 1, "max_new_tokens": 8, "seed": 1}


def test_d_bloom_pads_on_the_left_and_writes(tmp_path: Path, wiki: Path) -> None:
    run = run_on_wiki("bloom_causal", bloom_folder(tmp_path / "base"), wiki, "evaluate.prompts=[今天早上]")
    (opened, config), merged = open_run(str(run)), run / "export" / "merged"
    tokenizer, model = AutoTokenizer.from_pretrained(merged), BloomForCausalLM.from_pretrained(merged)
    assert tokenizer.padding_side == "left"
    blocks = training_reader(opened, config).read(list(range(8)))
    batch = objective_of(config, tokenizer, model.config).make_batch(blocks, list(range(8)))
    padded = [64 - fill for fill in batch.fills_B.tolist()]
    assert any(padded)
    for ids_T, targets_T, left in zip(batch.inputs["input_ids"], batch.targets_BT, padded, strict=True):
        assert (targets_T[:left] == IGNORED).all() and (targets_T[left:-1] != IGNORED).all(), "padding is on the left and no label"
        assert not left or ids_T[-1] == targets_T[-2] == tokenizer.eos_token_id, "a text ends with eos"
    assert results_of(run)["adapted"]["wiki"]["bits_per_byte"] < results_of(run)["base"]["wiki"]["bits_per_byte"]

    greedy = run_generate(str(run), ["今天早上"], **WRITING | {"temperature": 0.0})
    assert greedy == run_generate(str(run), ["今天早上"], **WRITING | {"temperature": 0.0, "seed": 2}), "greedy writes the same"
    sampled = run_generate(str(run), ["今天早上"], **WRITING | {"num_return_sequences": 3})
    assert sampled.count("adapted") == 3
    prompts = tokenizer(["今天", "今天早上，小王"], return_tensors="pt", padding=True)
    written = model.generate(**prompts, do_sample=False, max_new_tokens=4)
    alone = model.generate(**tokenizer(["今天"], return_tensors="pt"), do_sample=False, max_new_tokens=4)
    assert written[0, -4:].tolist() == alone[0, -4:].tolist(), "padding on the left is not seen"


def test_mt5_fills_sentinels(tmp_path: Path, wiki: Path) -> None:
    prompt, base = "今天<extra_id_0>，小王喝茶。", t5_folder(tmp_path / "base", tied=False)
    run = run_on_wiki("mt5_span_corruption", base, wiki, f"evaluate.prompts=['{prompt}']", "train.embeddings=all", steps=30)
    results = results_of(run)
    assert results["measure"] == "targets" and results["adapted"]["wiki"]["bits_per_byte"] < results["base"]["wiki"]["bits_per_byte"]
    filled = results["generations"][0]["adapted"]
    assert filled.startswith("今天") and filled.endswith("，小王喝茶。") and "<extra_id_0>" not in filled
    merged = run / "export" / "merged"
    model, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(merged), AutoTokenizer.from_pretrained(merged)
    written = model.generate(**tokenizer(prompt, return_tensors="pt"), max_new_tokens=4, do_sample=False)
    assert tokenizer.convert_tokens_to_ids("<extra_id_0>") in written[0].tolist()


def test_a_prefix_is_seen_both_ways_by_a_llama(tmp_path: Path, wiki: Path) -> None:
    base = save_tiny_llama(tmp_path / "base", vocabulary=259, positions=128)
    run = run_on_wiki("prefix_lm", base, wiki, "evaluate.prompts=[今天早上]", "train.embeddings=all")
    results = results_of(run)
    assert results["measure"] == "continuation" and results["adapted"]["wiki"]["bits_per_byte"] < results["base"]["wiki"]["bits_per_byte"]
    merged = run / "export" / "merged"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(merged), AutoTokenizer.from_pretrained(merged)
    opened, config = open_run(str(run))
    batch = objective_of(config, tokenizer, model.config).make_batch(training_reader(opened, config).read([0]), [0])
    seen_TT, targets_T = batch.inputs["attention_mask"][0, 0], batch.targets_BT[0]
    first = int((targets_T != IGNORED).nonzero()[0])
    assert seen_TT[0, : first + 1].all() and not seen_TT[0, first + 1 :].any(), "the first token sees its prefix and nothing behind it"
    written = run_generate(str(run), ["今天早上"], **WRITING)
    assert written.count("今天早上") == 3, "as asked, by the base and adapted"
