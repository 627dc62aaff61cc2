import json
import math

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from zhlm.config.load import dump_config
from zhlm.config.schema import GenerateConfig, RunConfig
from zhlm.errors import BaseModelError, RunError
from zhlm.evaluate import job
from zhlm.evaluate.generate import generate, run_generate
from zhlm.inference.bits import StreamScore
from zhlm.storage import Run

EN = [f"Anna met {name} at {hour} in the evening." for name in ("Bob", "Carl", "Dora") for hour in ("seven", "eight", "nine")]
ZH = [f"今天{time}，小明和{name}一起去图书馆。" for name in ("小红", "老师") for time in ("早上", "下午", "晚上")]
GREEDY = GenerateConfig(temperature=0, max_new_tokens=8)


def make_model(folder, texts, vocabulary, seed, positions=128):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    specials = ["<s>", "</s>"]
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=specials, initial_alphabet=alphabet, show_progress=False, min_frequency=1
    )
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    torch.manual_seed(seed)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
    config = LlamaConfig(
        vocab_size=len(fast), max_position_embeddings=positions, initializer_range=0.3, bos_token_id=0, eos_token_id=1, **sizes
    )
    model = LlamaForCausalLM(config).eval()
    model.save_pretrained(folder)
    fast.save_pretrained(folder)
    return model, fast


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("model"), [*EN, *ZH], 320, seed=1)


@pytest.fixture
def whole_run(tmp_path):
    """A run folder as the stages before leave it."""
    make_model(tmp_path / "base", EN, 300, seed=1)
    streams = [{"name": "en", "paths": ["en.txt"], "role": "old"}, {"name": "zh", "paths": ["zh.txt"], "role": "new"}]
    config = RunConfig.model_validate(
        {
            "name": "tiny",
            "storage": {"root": str(tmp_path / "runs")},
            "base": {"model": str(tmp_path / "base")},
            "streams": streams,
            "pack": {"block_tokens": 32, "document_start": "bos"},
            "train": {"steps": 10},
            "evaluate": {"documents": 5, "prompts": ["今天早上，", "Anna "], "generate": {"max_new_tokens": 6}},
        }
    )
    run = Run.of(config)
    run.config.write_text(dump_config(config))
    make_model(run.export.path / "merged", [*EN, *ZH], 340, seed=2)
    (run.export / "manifest.json").write_text("{}")
    for name, texts in (("en", EN), ("zh", ZH)):
        place = run.blocks / name / "held_out.parquet"
        place.path.parent.mkdir(parents=True)
        pq.write_table(pa.table({"text": texts}), place.path)
    run.metrics.write_text(json.dumps({"step": 1, "loss_nats": 3.0}) + "\n")
    return config, run


def test_the_job_writes_results_and_report(whole_run):
    config, run = whole_run
    seen = []
    facts = job.run(config, seen.append)
    results = json.loads((run.evaluate / "results.json").read_text())
    assert set(results) == {"measure", "base", "adapted", "entropy_bits_per_byte", "vocabulary", "change", "generations", "alerts"}
    assert results["measure"] == facts["measure"] == "causal"
    for model in ("base", "adapted"):
        for stream in ("en", "zh"):
            score = results[model][stream]
            assert set(score) == {"bits_per_byte", "bits_per_character", "documents", "tokens"}
            assert score["documents"] == 5
            assert 0 < score["bits_per_byte"] <= score["bits_per_character"]
    assert results["adapted"]["zh"]["tokens"] < results["base"]["zh"]["tokens"]
    assert results["entropy_bits_per_byte"] is None
    assert [g["prompt"] for g in results["generations"]] == ["今天早上，", "Anna "]
    page = (run.evaluate / "report.html").read_text()
    assert f"{results['adapted']['zh']['bits_per_byte']:.3f}" in page
    assert facts["bits_per_byte"]["zh"]["base"] == results["base"]["zh"]["bits_per_byte"]
    assert json.loads(json.dumps(facts)) == facts
    assert [p.done for p in seen] == [*range(8), 8] and {p.total for p in seen} == {8}
    assert job.run(config, seen.append) == facts


def test_the_entropy_comes_from_the_sample_stage(whole_run):
    config, run = whole_run
    with_corpus = RunConfig.model_validate(config.model_dump() | {"sample": {"corpus": {}}})
    facts = {"corpus": {"zh": {"entropy_bits_per_byte": 0.76}, "en": {"entropy_bits_per_byte": 0.70}}}
    (run.sample / "manifest.json").write_text(json.dumps({"facts": facts}))
    assert job.entropy_bits_per_byte(with_corpus, run) == {"en": 0.70, "zh": 0.76}
    assert job.entropy_bits_per_byte(config, run) is None


def test_missing_export_and_empty_streams_are_named(whole_run):
    config, run = whole_run
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), (run.blocks / "zh" / "held_out.parquet").path)
    with pytest.raises(RunError, match="holds no documents; raise"):
        job.run(config, lambda progress: None)
    (run.blocks / "zh" / "held_out.parquet").delete()
    with pytest.raises(RunError, match="run the pack stage first"):
        job.run(config, lambda progress: None)
    (run.export / "manifest.json").delete()
    with pytest.raises(RunError, match="has no finished export"):
        run_generate(str(run.folder), ["a"], top_p=0.9, temperature=0.8, num_return_sequences=1, max_new_tokens=4, seed=1)


def test_forgetting_and_unknown_pieces_raise_alerts(whole_run):
    config, _ = whole_run

    def scores(en, zh, unknown=0):
        return {s: StreamScore(v, v, 1, 1, 1.0, 1, 1, unknown if s == "zh" else 0) for s, v in (("en", en), ("zh", zh))}

    assert job.alerts(config, scores(1.0, 4.0), scores(1.05, 5.0)) == []
    (alert,) = job.alerts(config, scores(1.0, 4.0), scores(1.06, 1.0))
    assert "en rose from 1.000 to 1.060" in alert and "+6.0%" in alert and "5% allowed" in alert
    (alert,) = job.alerts(config, scores(1.0, 4.0, unknown=3), scores(1.0, 1.0))
    assert "base model cannot spell 3 pieces of zh" in alert


def test_generate_repeats_with_its_seed_and_leaves_the_global_one_alone(made):
    model, tokenizer = made
    settings = GenerateConfig(max_new_tokens=12, temperature=1.0, top_p=0.95, seed=5)
    torch.manual_seed(9)
    before = torch.random.get_rng_state()
    first = generate(model, tokenizer, "Anna ", settings, 3)
    assert torch.equal(before, torch.random.get_rng_state())
    assert len(first) == 3 and len(set(first)) > 1
    assert generate(model, tokenizer, "Anna ", settings, 3) == first
    assert generate(model, tokenizer, "Anna ", settings.model_copy(update={"seed": 6}), 3) != first


@pytest.mark.parametrize("start", ["none", "bos"])
def test_greedy_is_the_likeliest_token_each_time(made, start):
    model, tokenizer = made
    ids = [*([tokenizer.bos_token_id] if start == "bos" else []), *tokenizer("今天")["input_ids"]]
    written = []
    while len(written) < GREEDY.max_new_tokens:
        following = model(torch.tensor([ids + written])).logits[0, -1].argmax().item()
        if following == tokenizer.eos_token_id:
            break
        written.append(following)
    expected = tokenizer.decode(ids + written, skip_special_tokens=True)[len("今天") :]
    assert generate(model, tokenizer, "今天", GREEDY, 2, document_start=start) == [expected, expected]


def test_nothing_is_cut_to_the_fifty_likeliest(made):
    """transformers' own default would; a flat model must be able to write any piece."""
    model, tokenizer = made
    weights = model.lm_head.weight.data.clone()
    model.lm_head.weight.data.zero_()
    settings = GenerateConfig(max_new_tokens=30, temperature=1.0, top_p=1.0)
    ids = {i for text in generate(model, tokenizer, "Anna", settings, 20) for i in tokenizer(text)["input_ids"]}
    model.lm_head.weight.data.copy_(weights)
    assert len(ids) > 100


def test_long_and_empty_prompts_are_refused(made):
    model, tokenizer = made
    with pytest.raises(RunError, match=r"has \d+ tokens and the model 128 positions"):
        generate(model, tokenizer, "字" * 200, GREEDY)
    with pytest.raises(RunError, match="the prompt is empty"):
        generate(model, tokenizer, "", GREEDY)
    assert isinstance(generate(model, tokenizer, "", GREEDY, document_start="bos")[0], str)
    room = generate(model, tokenizer, "字" * 42, GREEDY.model_copy(update={"max_new_tokens": 500}))
    assert isinstance(room[0], str)


def test_zhlm_generate_shows_both_models(whole_run, tmp_path):
    _, run = whole_run
    moved = run.folder.path.rename(tmp_path / "elsewhere")
    text = run_generate(str(moved), ["今天早上，", "Anna "], top_p=0.9, temperature=0.8, num_return_sequences=2, max_new_tokens=6, seed=1)
    assert text.count("> ") == 2
    assert text.count("adapted") == 4 and text.count("base") == 4
    with pytest.raises(RunError, match="is not a run folder"):
        run_generate(str(tmp_path), ["a"], top_p=0.9, temperature=0.8, num_return_sequences=1, max_new_tokens=4, seed=1)


def test_a_broken_export_is_named(whole_run):
    config, run = whole_run
    (run.export / "merged" / "model.safetensors").delete()
    with pytest.raises(BaseModelError, match="has no weights"):
        job.run(config, lambda progress: None)


def test_scores_of_short_documents_are_numbers(whole_run):
    config, run = whole_run
    for name in ("en", "zh"):
        pq.write_table(pa.table({"text": ["a", "", "好"]}), (run.blocks / name / "held_out.parquet").path)
    facts = job.run(config, lambda progress: None)
    assert all(math.isfinite(v) for scores in facts["bits_per_byte"].values() for v in scores.values())
