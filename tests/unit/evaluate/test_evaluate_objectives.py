"""The evaluate stage for every objective: results.json and report.html say what is measured."""

import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from conftest import run_data
from tiny_bases import bert_folder, gpt2_folder, t5_folder
from zhlm.config.schema import RunConfig
from zhlm.errors import RunError
from zhlm.evaluate import job
from zhlm.evaluate.measure import explained
from zhlm.storage import Run

TEXTS = [f"今天{time}，老师去图书馆借了三本书，然后给朋友写信。" for time in ("早上", "下午", "晚上")]
PREFIX = {"name": "prefix", "min_share": 0.2, "max_share": 0.6}


def finished_run(folder: Path, make: Any, **settings: Any) -> tuple[RunConfig, Run]:
    make(folder / "base")
    config = RunConfig.model_validate(run_data(folder) | settings)
    run = Run.of(config)
    make(run.export.path / "merged")
    (run.export / "manifest.json").write_text("{}")
    for stream in config.streams:
        place = run.blocks / stream.name / "held_out.parquet"
        place.path.parent.mkdir(parents=True)
        pq.write_table(pa.table({"text": TEXTS}), place.path)
    return config, run


@pytest.mark.parametrize(
    ("make", "objective", "prompt", "measure", "words"),
    [
        (gpt2_folder, PREFIX, "今天", "continuation", "bits per byte of what follows a prefix of 40%"),
        (t5_folder, "span_corruption", "今天<extra_id_0>", "targets", "bits per byte of what the spans hide"),
        (bert_folder, "masked", "今天[MASK]上", "pseudo_likelihood", "bits per byte by pseudo-likelihood"),
    ],
)
def test_results_and_report_say_what_is_measured(tmp_path: Path, make: Any, objective: Any, prompt: str, measure: str, words: str) -> None:
    evaluate = {"prompts": [prompt], "generate": {"max_new_tokens": 4}}
    config, run = finished_run(tmp_path, make, objective=objective, evaluate=evaluate)
    facts = job.run(config, lambda progress: None)
    results = json.loads((run.evaluate / "results.json").read_text())
    assert results["measure"] == facts["measure"] == measure and words in facts["summary"]
    for stream in ("zh", "en"):
        base, adapted = results["base"][stream], results["adapted"][stream]
        assert base == adapted and 0 < base["bits_per_byte"] <= base["bits_per_character"]
        assert ("masked_accuracy" in base) == ("right" in facts["summary"]) == (measure == "pseudo_likelihood")
    (sample,) = results["generations"]
    assert sample["base"] == sample["adapted"]
    page = re.sub("<[^>]+>", "", (run.evaluate / "report.html").read_text())
    assert f"B{words[1:]} on held-out documents" in page and explained(config)[:60] in page
    assert config.objective.name.replace("_", " ") in page
    if measure == "pseudo_likelihood":
        assert len(sample["guesses"]["adapted"][0]) == 5 and sample["guesses"]["adapted"][0][0]["token"] in sample["adapted"]
        assert "accuracy" in page and "the likeliest tokens for each mask" in page
    assert results["entropy_bits_per_byte"] is None


def test_a_prompt_without_a_mask_is_named_before_anything_is_measured(tmp_path: Path) -> None:
    config, run = finished_run(tmp_path, bert_folder, objective="masked", evaluate={"prompts": ["今天"]})
    (run.export.path / "merged" / "model.safetensors").unlink()
    with pytest.raises(RunError, match=r"put \[MASK\] into the prompt '今天'"):
        job.run(config, lambda progress: None)
