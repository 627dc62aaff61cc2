"""Nothing that any stream validates on, nor anything like it, is trained on: random corpora with planted near copies, surveyed for real."""

import json
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from conftest import run_data
from zhlm.config.schema import RunConfig
from zhlm.pack.dedup import hashes_of
from zhlm.pack.near import signatures
from zhlm.pack.planning import find_stream, pack_tasks, survey_tasks
from zhlm.pack.split import Fate
from zhlm.pack.tasks import survey

HAN = [chr(c) for c in range(0x4E00, 0x5A00)]
RECIPE = {k: None for k in ("version", "tokenizer", "engine", "block_tokens", "packing", "start_id", "end_id")}
THRESHOLD = 0.8


def near_copy(text: str, random: Random) -> str:
    """At similarities from 1 down to about 0.65, so on both sides of the threshold."""
    characters = list(text)
    for place in random.sample(range(len(characters)), random.randrange(8)):
        characters[place] = random.choice(HAN)
    return "".join(characters)


def corpus(seed: int) -> dict[str, list[str]]:
    """Documents by file: few families of near copies, spread over everything, and documents of no family."""
    random = Random(seed)
    families = ["".join(random.choices(HAN, k=180)) for _ in range(12)]
    files = ("zh_a", "zh_b", "en_a", "en_b", "held_zh", "held_en")
    alone = {name: ["".join(random.choices(HAN, k=random.randrange(5, 200))) for _ in range(4)] for name in files}
    return {name: alone[name] + [near_copy(random.choice(families), random) for _ in range(14)] for name in files}


def name_of(file: str, swap: bool) -> str:
    return f"{file[::-1] if swap else file}.txt"


def decided(folder: Path, documents: dict[str, list[str]], held_out: tuple[str, ...], *, swap: bool = False, **pack: Any) -> dict[str, Any]:
    """By stream, its documents' texts with their fates, sorted. `swap`: streams and files the other way round, under other names."""
    for file, texts in documents.items():
        (folder / name_of(file, swap)).write_text("\n".join(texts), encoding="utf-8")
    streams: list[dict[str, Any]] = []
    for name, role in (("zh", "new"), ("en", "old")):
        paths = [str(folder / name_of(f"{name}_{letter}", swap)) for letter in "ab"]
        held = {"held_out": [str(folder / name_of(f"held_{name}", swap))]} if name in held_out else {}
        streams.append({"name": name, "role": role, "paths": paths[::-1] if swap else paths} | held)
    data = run_data(folder) | {"streams": streams[::-1] if swap else streams}
    data["pack"] = {"near_duplicates": THRESHOLD, "validation_share": 0.2, "shard_bytes": 6000, "clean": {"min_chars": 1}, **pack}
    config = RunConfig.model_validate_json(json.dumps(data))
    found = [find_stream(stream, config, str) for stream in config.streams]
    for stream in found:
        for task in survey_tasks(stream, config.pack, str(folder / "store")):
            stream.surveys[task.source.part.key] = survey(task)
    tasks = pack_tasks(found, config.pack, RECIPE)
    text_of = {row.tobytes(): text for texts in documents.values() for text, row in zip(texts, hashes_of(texts), strict=True)}
    fates: dict[str, Any] = {}
    for stream in found:
        rows = np.concatenate([s.hashes_N2 for s in stream.surveyed([*stream.training, *stream.held_out])])
        every = np.concatenate([t.fates for t in tasks[stream.name] if t.fates is not None])
        fates[stream.name] = sorted((text_of[row.tobytes()], int(fate)) for row, fate in zip(rows, every, strict=True))
    return fates


def most_alike(texts: list[str], others: list[str]) -> Any:
    """Per text, its largest similarity to one of the others: all pairs compared."""
    return (signatures(texts)[:, None] == signatures(others)[None]).mean(axis=2).max(axis=1)


def of_fate(fates: dict[str, Any], *wanted: Fate) -> list[str]:
    return [text for each in fates.values() for text, fate in each if fate in wanted]


@pytest.mark.parametrize("held_out", [("zh", "en"), ("en",), ()])
@pytest.mark.parametrize("deduplicate", [True, False])
@settings(max_examples=6)
@given(seed=st.integers(0, 1 << 30))
@example(seed=1)
def test_nothing_like_a_validation_document_is_trained_on(
    tmp_path_factory: pytest.TempPathFactory, held_out: tuple[str, ...], deduplicate: bool, seed: int
) -> None:
    documents, folder = corpus(seed), tmp_path_factory.mktemp("sides")
    fates = decided(folder, documents, held_out, deduplicate=deduplicate)
    training, validation = of_fate(fates, Fate.TRAIN), of_fate(fates, Fate.VALIDATION)
    assert len(training) > 10 and len(validation) > 4
    assert (most_alike(training, validation) < THRESHOLD).all()
    kept_out = of_fate(fates, Fate.IN_HELD_OUT)
    candidates = validation + of_fate(fates, Fate.NEAR_DUPLICATE, Fate.DUPLICATE)
    assert kept_out and (most_alike(kept_out, candidates) >= THRESHOLD).all(), "nothing is dropped without a reason"
    assert decided(tmp_path_factory.mktemp("swapped"), documents, held_out, deduplicate=deduplicate, swap=True) == fates


def test_each_side_keeps_the_other_out(tmp_path: Path) -> None:
    """A near copy of what one stream holds out is dropped from the other's training, both ways, and nothing else is."""
    random = Random(3)
    one, other, *rest = ("".join(random.choices(HAN, k=400)) for _ in range(8))
    documents = {
        "zh_a": [one[:-1] + "\u4e00", rest[0]], "zh_b": [rest[1]], "held_zh": [other],
        "en_a": [other[:-1] + "\u4e00", rest[2]], "en_b": [rest[3]], "held_en": [one, rest[4]],
    }  # fmt: skip
    fates = decided(tmp_path, documents, ("zh", "en"))
    assert of_fate(fates, Fate.IN_HELD_OUT) == [documents["zh_a"][0], documents["en_a"][0]]
    assert sorted(of_fate(fates, Fate.VALIDATION)) == sorted([one, other, rest[4]])
    assert len(of_fate(fates, Fate.TRAIN)) == 4
