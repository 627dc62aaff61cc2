"""The vocab stage on a local Ray: what it writes works in plain transformers, and is the same twice."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, LlamaConfig, PretrainedConfig, PreTrainedTokenizerFast

from conftest import run_data
from zhlm.config.schema import RunConfig
from zhlm.errors import AdviceError, BaseModelError, ConfigError, CorpusError, VerificationError, find_user_error
from zhlm.pieces import count
from zhlm.records import Progress
from zhlm.storage import Run
from zhlm.tokenizer.encode import HARD_TEXTS
from zhlm.tokenizer.load import load_tokenizer
from zhlm.vocab import job

ENGLISH = [
    f"The {who} reads {n} books in the {where}." for who in ("teacher", "doctor") for n in range(2, 30) for where in ("park", "house")
]
CHINESE = [f"{who}在{where}里看了{n}本书。" for who in ("老师", "医生", "小明") for n in range(2, 30) for where in ("公园", "房子")]
LLAMA = LlamaConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2)
GPT2 = GPT2Config(n_embd=32, n_layer=2, n_head=2, n_positions=64)


def save_base(folder: Path, config: PretrainedConfig, dtype: torch.dtype = torch.float32) -> None:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    backend.train_from_iterator(ENGLISH, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>")
    tokenizer.save_pretrained(folder)
    config.vocab_size = len(tokenizer)
    config.bos_token_id = config.eos_token_id = tokenizer.eos_token_id
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).to(dtype).save_pretrained(folder)


def config_at(folder: Path, **vocab: Any) -> RunConfig:
    (folder / "zh.txt").write_text("\n".join(CHINESE) + "\n", encoding="utf-8")
    (folder / "en.txt").write_text("\n".join(ENGLISH) + "\n", encoding="utf-8")
    data = run_data(folder) | {"vocab": {"add_rows": 40, "pad_to_multiple": 8, **vocab}}
    return RunConfig.model_validate_json(json.dumps(data))


def config_with(config: RunConfig, **vocab: Any) -> RunConfig:
    assert config.vocab is not None
    return config.model_copy(update={"vocab": config.vocab.model_copy(update=vocab)})


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


@pytest.mark.usefixtures("ray_local")
@pytest.mark.parametrize("base", [LLAMA, GPT2], ids=["llama", "gpt2_tied"])
def test_the_written_folder(base: PretrainedConfig, tmp_path: Path) -> None:
    save_base(tmp_path / "base", base, torch.bfloat16)
    config = config_at(tmp_path)
    seen: list[Progress] = []
    facts = job.run(config, seen.append)
    folder = Run.of(config).vocab.path

    before, after = AutoTokenizer.from_pretrained(tmp_path / "base"), AutoTokenizer.from_pretrained(folder)
    old = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype="auto")
    new = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    assert (folder / "model.safetensors").exists() and (folder / "generation_config.json").exists()
    assert new.dtype == torch.bfloat16
    assert torch.equal(new.get_input_embeddings().weight[: len(before)], old.get_input_embeddings().weight)
    assert new.config.vocab_size == facts["rows_after"] == -(-(len(before) + 40) // 8) * 8
    assert len(after) == len(before) + 40
    assert facts["added"] == facts["reachable"] == 40
    assert (facts["rows_before"], facts["parameters_before"]) == (len(before), old.num_parameters())
    assert facts["parameters_after"] == new.num_parameters()
    per_character = sum(len(after.encode(t)) for t in CHINESE) / sum(map(len, CHINESE))
    assert facts["tokens_per_character"]["zh"]["after"] == pytest.approx(per_character)
    assert facts["tokens_per_character"]["zh"]["before"] > 2 > 2 * per_character
    assert facts["tokens_per_character"]["en"]["before"] == facts["tokens_per_character"]["en"]["after"]
    assert facts["learned_from"]["documents"] == len(CHINESE)
    assert (facts["stopped_by"], facts["chosen_rows"], facts["learned_from"]["dropped_pre_tokens"]) == ("limit", 40, 0)
    ends = [facts["tokens_per_character"]["zh"][when] for when in ("before", "after")]
    assert [facts["curve"][0][1], facts["curve"][-1][1]] == [pytest.approx(value, abs=1e-4) for value in ends]
    assert "advice" not in facts
    proof = json.loads((folder / "verify.json").read_text(encoding="utf-8"))
    assert proof["unreachable"] == [] and proof["old_texts_same"] == len(ENGLISH)
    assert {p.unit for p in seen} == {"files", "rows", "files proved"}
    json.dumps(facts)


@pytest.mark.usefixtures("ray_local")
def test_twice_gives_the_same_bytes_and_leaves_nothing_else(tmp_path: Path) -> None:
    save_base(tmp_path / "base", LLAMA)
    config = config_at(tmp_path)
    facts = [job.run(config, lambda progress: None)]
    first = digests(Run.of(config).vocab.path)
    facts.append(job.run(config, lambda progress: None))
    assert digests(Run.of(config).vocab.path) == first
    assert facts[0] == facts[1]
    assert [path.name for path in Run.of(config).folder.path.iterdir()] == ["vocab"]


@pytest.mark.usefixtures("ray_local")
def test_more_rows_than_the_corpus_gives_and_advice(tmp_path: Path) -> None:
    save_base(tmp_path / "base", LLAMA)
    config = config_at(tmp_path, add_rows=5000, init="mean", force=True)
    (tmp_path / "zh.txt").write_text("The teacher reads qq qq books.\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"add_rows is 5,000, but the new streams give only \d pieces") as caught:
        job.run(config, lambda progress: None)
    most = int(re.findall(r"only (\d)", str(caught.value))[0])
    facts = job.run(config_with(config, add_rows=most), lambda progress: None)
    assert 0 < facts["added"] <= facts["asked"] == most < 5
    assert "vocab: null" in facts["advice"] and "zh" in facts["advice"]
    with pytest.raises(CorpusError, match=r"has a token for each letter of zh \(.*set vocab.force: true"):
        job.run(config_with(config, force=False), lambda progress: None)
    (tmp_path / "zh.txt").write_text("The teacher reads " * 50 + "好\n", encoding="utf-8")
    with pytest.raises(AdviceError, match=r"nothing was extended: the base needs only 0\.\d\d tokens per character of zh \(below 0.9\)"):
        job.run(config_with(config, force=False), lambda progress: None)


@pytest.mark.usefixtures("ray_local")
def test_a_broken_corpus_file_is_the_users_mistake_and_writes_nothing(tmp_path: Path) -> None:
    save_base(tmp_path / "base", LLAMA)
    config = config_at(tmp_path)
    (tmp_path / "zh.txt").write_bytes("好\n".encode() + b"\xff\xfe bad\n")
    with pytest.raises(Exception, match="not UTF-8") as caught:
        job.run(config, lambda progress: None)
    mistake = find_user_error(caught.value)
    assert mistake is not None and "zh.txt line 2" in str(mistake)
    assert not Run.of(config).vocab.exists()


def test_a_tokenizer_longer_than_the_embedding(tmp_path: Path) -> None:
    save_base(tmp_path / "base", LLAMA)
    LLAMA.vocab_size = 100
    AutoModelForCausalLM.from_config(LLAMA).save_pretrained(tmp_path / "base")
    with pytest.raises(BaseModelError, match=r"entries but the embedding only 100 rows"):
        job.run(config_at(tmp_path), lambda progress: None)


@pytest.mark.usefixtures("ray_local")
def test_all_that_was_learned_from_is_proved_and_as_much_old_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_base(tmp_path / "base", LLAMA)
    config = config_at(tmp_path)
    monkeypatch.setattr(count, "SAMPLE_CHARS", 10)
    monkeypatch.setattr(count, "PIECE_BYTES", 2000)
    facts = job.run(config, lambda progress: None)
    texts = [*HARD_TEXTS, *CHINESE, *ENGLISH]
    assert facts["proved"] == {"texts": len(texts), "characters": sum(map(len, texts)), "engine": "gigatoken"}
    assert 0 < facts["on_corpus"] <= facts["added"]
    monkeypatch.setattr(count, "LEARN_CHARS", 500)
    facts = job.run(config_with(config, add_rows=10), lambda progress: None)
    read = facts["proved"]["characters"] - sum(map(len, HARD_TEXTS))
    assert facts["learned_from"]["characters"] >= 500 and 1000 <= read < 2000


@pytest.mark.usefixtures("ray_local")
def test_a_text_far_behind_the_sample_can_refuse_the_extension(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A merge of the base is lost between memory and disk; of the words that it makes, the sample has none."""

    def damaged(folder: str) -> PreTrainedTokenizerFast:
        tokenizer = load_tokenizer(folder)
        if Path(folder) == tmp_path / "base":
            return tokenizer
        spec = json.loads(tokenizer.backend_tokenizer.to_str())
        spec["model"]["merges"] = [merge for merge in spec["model"]["merges"] if "doc" not in "".join(merge)]
        return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(spec)))

    save_base(tmp_path / "base", LLAMA)
    config = config_at(tmp_path)
    monkeypatch.setattr(count, "SAMPLE_CHARS", 10)
    monkeypatch.setattr(job, "load_tokenizer", damaged)
    with pytest.raises(VerificationError, match=r"^vocab: the extended tokenizer cuts text in other places .*: 'The doctor reads 2 books"):
        job.run(config, lambda progress: None)
    assert not Run.of(config).folder.path.exists() or not list(Run.of(config).folder.path.iterdir())


@pytest.mark.usefixtures("ray_local")
def test_the_best_start_of_new_rows_is_measured_and_taken(tmp_path: Path) -> None:
    save_base(tmp_path / "base", LLAMA)
    config = config_at(tmp_path, init="auto")
    facts = job.run(config, lambda progress: None)
    table = json.loads((Run.of(config).vocab.path / "init.json").read_text(encoding="utf-8"))
    assert facts["init_asked"] == "auto" and facts["init"] == table["best"]
    assert set(table["inits"]) == {"subword_mean", "mean", "mean_noise", "similarity", "random"}
    assert all(score["bits_per_byte_new"] > 0 and score["bits_per_byte_old"] > 0 for score in (table["base"], *table["inits"].values()))
    assert table["measured"]["texts"] == "documents that pieces were learned from too"
    assert facts["growth"]["rows"] == facts["rows_after"] - facts["rows_before"]
    assert facts["growth"]["parameters"] == facts["parameters_after"] - facts["parameters_before"]
    json.dumps(facts)


@pytest.mark.usefixtures("ray_local")
def test_pieces_that_save_too_little_get_no_row(tmp_path: Path) -> None:
    save_base(tmp_path / "base", LLAMA)
    facts = job.run(config_at(tmp_path, add_rows=5000, min_gain=0.02), lambda progress: None)
    assert facts["stopped_by"] == "gain" and 0 < facts["added"] == facts["chosen_rows"] < facts["curve"][-1][0] < 50
    with pytest.raises(ConfigError, match=r"min_gain 0\.9 .* the first one saves 0\.\d+; lower vocab\.min_gain"):
        job.run(config_at(tmp_path, add_rows=5000, min_gain=0.9), lambda progress: None)


@pytest.mark.usefixtures("ray_local")
def test_special_tokens_beside_learned_pieces(tmp_path: Path) -> None:
    save_base(tmp_path / "base", GPT2)
    facts = job.run(config_at(tmp_path, special_tokens={"pad_token": "<|pad|>", "sentinels": 2}), lambda progress: None)
    folder = tmp_path / "runs" / "tiny" / "vocab"
    before, after = AutoTokenizer.from_pretrained(tmp_path / "base"), AutoTokenizer.from_pretrained(folder)
    first = len(before) + 40
    assert facts["special_tokens"] == {"<|pad|>": first, "<extra_id_0>": first + 1, "<extra_id_1>": first + 2}
    assert (facts["added"], facts["reachable"], len(after)) == (43, 40, first + 3) and "3 special tokens" in facts["summary"]
    model = AutoModelForCausalLM.from_pretrained(folder)
    rows = model.get_input_embeddings().weight
    torch.testing.assert_close(rows[first : first + 3], rows[: len(before)].mean(0).expand(3, -1))
    assert model.config.pad_token_id == after.pad_token_id == first
    assert json.loads((folder / "verify.json").read_text(encoding="utf-8"))["special"] == 3
