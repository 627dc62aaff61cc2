"""The written corpus: same settings, same bytes; the facts count what the readers find."""

import hashlib
from pathlib import Path

import pytest

from zhlm.config.schema import SampleCorpusConfig
from zhlm.corpus.files import find_files
from zhlm.corpus.read import read_documents
from zhlm.records import Progress
from zhlm.sample.corpus import JUNK, PARTS, stories, write_corpus


def _ignore(progress: Progress) -> None:
    assert progress.stage == "sample"


def _read(folder: Path) -> list[str]:
    return [d.text for file in find_files([str(folder)]) for batch in read_documents(file, None) for d in batch]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, dict[str, float]]]:
    folder = tmp_path_factory.mktemp("corpus")
    return folder, write_corpus(SampleCorpusConfig(documents=2000, held_out_documents=100, seed=3), folder, _ignore)


@pytest.mark.parametrize("language", ["en", "zh"])
def test_every_story_is_read_back(corpus: tuple[Path, dict[str, dict[str, float]]], language: str) -> None:
    folder, facts = corpus
    counted = facts[language]
    assert sorted(p.name for p in (folder / language / "train").iterdir()) == sorted(PARTS)
    held_out, training = _read(folder / language / "held_out"), _read(folder / language / "train")
    assert len(held_out) == counted["held_out_documents"] == 100
    assert len(training) == 1900 + counted["exact_copies"] + counted["junk_documents"]
    genuine = set(training) - set(JUNK)
    assert len(genuine) == 1900
    assert not genuine & set(held_out)
    assert counted["characters"] == sum(map(len, [*genuine, *held_out]))
    assert counted["bytes"] == sum(len(t.encode()) for t in [*genuine, *held_out])
    assert (counted["exact_copies"] + counted["junk_documents"]) / len(training) < 0.02


def test_the_same_settings_give_the_same_bytes(corpus: tuple[Path, dict[str, dict[str, float]]], tmp_path: Path) -> None:
    folder, facts = corpus
    again = write_corpus(SampleCorpusConfig(documents=2000, held_out_documents=100, seed=3), tmp_path, _ignore)
    assert again == facts
    for path in folder.rglob("*.*"):
        twin = tmp_path / path.relative_to(folder)
        assert hashlib.sha256(twin.read_bytes()).digest() == hashlib.sha256(path.read_bytes()).digest(), path.name


def test_languages_and_seeds_draw_apart() -> None:
    assert stories("zh", 20, 1) != stories("zh", 20, 2)
    assert stories("zh", 20, 1) == stories("zh", 25, 1)[:20]


def test_a_tiny_corpus_has_neither_copies_nor_junk(tmp_path: Path) -> None:
    facts = write_corpus(SampleCorpusConfig(documents=20, held_out_documents=5), tmp_path, _ignore)
    assert facts["zh"]["exact_copies"] == facts["zh"]["junk_documents"] == 0
    assert len(_read(tmp_path / "zh" / "train")) == 15
