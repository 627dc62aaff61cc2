"""The tiny base: packing keeps documents whole and apart, training learns, and plain transformers loads what was saved."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from zhlm.config.schema import RunConfig, ScratchBaseConfig
from zhlm.errors import CorpusError
from zhlm.records import Progress
from zhlm.sample import job
from zhlm.sample.base import NOT_A_LABEL, batch_of, bits_per_byte, pack_rows, rate_share, train_base, train_tokenizer
from zhlm.sample.corpus import stories
from zhlm.storage import Run

TINY = ScratchBaseConfig(
    paths=["unused"], vocabulary=400, layers=1, width=32, heads=2, positions=256, block_tokens=128, steps=12, batch_tokens=512
)


def test_rows_hold_every_token_once_and_short_documents_whole() -> None:
    rng = np.random.default_rng(0)
    documents = [np.arange(n) + 1000 * i for i, n in enumerate(rng.integers(2, 150, 200))]
    rows = pack_rows(documents, 100)
    assert all(sum(map(len, row)) <= 100 for row in rows)
    pieces = [piece for row in rows for piece in row]
    assert sorted(np.concatenate(pieces).tolist()) == sorted(np.concatenate(documents).tolist())
    assert len(pieces) == sum(-(-len(d) // 100) for d in documents)


def test_positions_restart_and_first_tokens_are_no_labels() -> None:
    batch = batch_of([[np.array([1, 5, 2]), np.array([1, 6, 7, 2])]], 9)
    assert batch["input_ids"].tolist() == [[1, 5, 2, 1, 6, 7, 2, 0, 0]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1, 2, 3, 0, 1]]
    no = NOT_A_LABEL
    assert batch["labels"].tolist() == [[no, 5, 2, no, 6, 7, 2, no, no]]


def test_the_tokenizer_spells_any_text() -> None:
    tokenizer = train_tokenizer(stories("en", 50, 1), 400, 128)
    text = "\u6c49\u5b57\uff0c \U00020bb7 \x00 caf\u00e9 \n\t  x"
    ids = tokenizer(text).input_ids
    assert ids[0] == tokenizer.bos_token_id
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_rates_warm_up_and_fall() -> None:
    rates = [rate_share(step, 100) for step in range(100)]
    assert rates[0] == pytest.approx(0.2)
    assert max(rates) == pytest.approx(1.0)
    assert rates[-1] < 0.06


def test_training_learns_and_saves_what_transformers_loads(tmp_path: Path) -> None:
    seen: list[Progress] = []
    texts = stories("en", 300, 1)
    facts = train_base(texts, TINY, tmp_path, seed=1, report=seen.append)
    assert seen[-1].done == seen[-1].total == TINY.steps
    assert facts["final_loss_nats"] < 6.0
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert len(tokenizer) == facts["vocabulary"] == model.config.vocab_size == 400
    assert tokenizer("Anna").input_ids[0] == model.config.bos_token_id
    assert bits_per_byte(model, tokenizer, texts[:20], 128) < 4.0


def test_training_is_deterministic(tmp_path: Path) -> None:
    texts = stories("en", 100, 1)
    for name in ("a", "b"):
        train_base(texts, TINY, tmp_path / name, seed=1, report=lambda progress: None)
    one, two = (AutoModelForCausalLM.from_pretrained(tmp_path / name).state_dict() for name in ("a", "b"))
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_no_documents_is_an_error_that_says_where(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"sample\.base\.paths"):
        train_base([], TINY, tmp_path, seed=1, report=lambda progress: None)


def test_the_job_makes_corpus_and_base(tmp_path: Path) -> None:
    base = TINY.model_dump(mode="json") | {"paths": ["sample://en/train"]}
    config = RunConfig.model_validate(
        {
            "name": "tiny",
            "storage": {"root": str(tmp_path)},
            "sample": {"corpus": {"documents": 120, "held_out_documents": 20}, "base": base},
            "base": {"model": "sample://base"},
            "streams": [{"name": "zh", "paths": ["sample://zh/train"], "role": "new"}],
            "train": {"steps": 1},
        }
    )
    facts = job.run(config, lambda progress: None)
    sample = Run.of(config).sample.path
    assert facts["base"]["documents"] == facts["corpus"]["en"]["documents"] - 20
    assert {p.name for p in sample.iterdir()} == {"en", "zh", "base"}
    assert (sample / "base" / "model.safetensors").exists()
