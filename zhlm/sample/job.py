"""The sample stage: generate the corpus, train the tiny base, whichever the config asks for."""

from pathlib import Path
from typing import Any

from zhlm.config.schema import RunConfig, ScratchBaseConfig
from zhlm.corpus.files import find_files
from zhlm.corpus.read import read_documents
from zhlm.records import Report
from zhlm.sample.corpus import write_corpus
from zhlm.storage import SAMPLE_SCHEME, Run


def run(config: RunConfig, report: Report) -> dict[str, Any]:
    """Fill the run's sample folder; the facts of the corpus and of the base."""
    assert config.sample is not None, "the pipeline runs this stage only where the config has a sample section"
    facts: dict[str, Any] = {}
    run = Run.of(config)
    with run.sample.staged() as folder:
        if config.sample.corpus is not None:
            facts["corpus"] = write_corpus(config.sample.corpus, folder, report)
        if config.sample.base is not None:
            # Only here: torch is not needed for a corpus alone.
            from zhlm.sample.base import train_base

            texts = read_texts(config.sample.base, run, folder)
            facts["base"] = train_base(texts, config.sample.base, folder / "base", seed=config.seed, report=report)
    return facts


def read_texts(config: ScratchBaseConfig, run: Run, folder: Path) -> list[str]:
    """The base's documents, copies and blank ones left out; sample://... is still in the folder being filled."""
    paths = [str(folder / p.removeprefix(SAMPLE_SCHEME)) if p.startswith(SAMPLE_SCHEME) else run.resolve(p) for p in config.paths]
    batches = (batch for file in find_files(paths) for batch in read_documents(file, config.field))
    return list(dict.fromkeys(d.text for batch in batches for d in batch if d.text.strip()))
