"""`zhlm vocab --verify`: the proof of a tokenizer folder, whoever made it."""

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from zhlm.corpus.files import SourceFile, find_files
from zhlm.corpus.read import read_documents
from zhlm.display import Display, quiet
from zhlm.errors import VerificationError
from zhlm.model.load import embedding_rows, load_model_config
from zhlm.records import Progress, Report
from zhlm.storage import storage_errors
from zhlm.text.normalise import normalise
from zhlm.tokenizer.load import load_tokenizer
from zhlm.vocab.prove import as_json, prove
from zhlm.vocab.tables import proof_lines


@contextmanager
def _shown() -> Iterator[Report]:
    """With a live line, and without what libraries print about a tokenizer that they load."""
    with (
        tempfile.TemporaryDirectory(prefix="zhlm-vocab-") as folder,
        quiet(Path(folder) / "log") as terminal,
        Display(terminal) as display,
    ):
        yield display.report


def _texts(files: Sequence[SourceFile], report: Report) -> Iterator[str]:
    for number, file in enumerate(files):
        for batch in read_documents(file):
            yield from (normalise(document.text) for document in batch)
        report(Progress("verify", number + 1, len(files), "files"))


def verify_command(folder: str, base: str | None, corpus: Sequence[str], out: str | None, say: Callable[[str], None]) -> int:
    """Prove a tokenizer folder or hub name, print what was found, write verify.json into it or into `out`. Returns 0.

    Raises: VerificationError, when all is printed and written, with what failed; UserErrors for a folder or a base without a tokenizer, or
        of a kind that cannot be taken apart.
    """
    with _shown() as report:
        tokenizer = load_tokenizer(folder)
        before = load_tokenizer(base) if base is not None else None
        files = find_files(corpus) if corpus else []
        here = Path(folder) if os.path.isdir(folder) else None
        rows = embedding_rows(load_model_config(folder)) if here and (here / "config.json").is_file() else None
        found = prove(tokenizer, before, _texts(files, report), here, rows)
    for line in proof_lines(found):
        say(line)
    target = Path(out) if out is not None else here
    if target is not None:
        with storage_errors("writing the proof to", target):
            target.mkdir(parents=True, exist_ok=True)
            (target / "verify.json").write_text(as_json(found), encoding="utf-8")
        say(f"{'written':22}{target / 'verify.json'}")
    if found.problems:
        more = f" (and {len(found.problems) - 1} more)" if len(found.problems) > 1 else ""
        raise VerificationError(f"vocab: not proved: {found.problems[0]}{more}")
    return 0
