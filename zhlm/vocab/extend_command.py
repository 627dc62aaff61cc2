"""`zhlm vocab BASE`: the stage's own function for any base and any corpus, without a run."""

import os
import tempfile
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from zhlm.config.load import make_config
from zhlm.config.schema import RunConfig
from zhlm.display import Display, quiet
from zhlm.errors import AdviceError, ConfigError, StorageError, VerificationError, find_user_error
from zhlm.storage import Place
from zhlm.vocab.job import extend_base
from zhlm.vocab.order import Order
from zhlm.vocab.tables import extension_lines

ORIGIN = "the command line"


def extend_command(
    base: str | None,
    corpus: Sequence[str],
    old: Sequence[str],
    out: str | None,
    settings: Sequence[str],
    word_list: str | None,
    say: Callable[[str], None],
) -> int:
    """Extend a base into a new folder. `settings` are `a.b=value`, as for a config of a run. Returns the exit code.

    Raises: UserErrors, before anything is written, and VerificationError.
    """
    if base is None or not corpus or out is None:
        missing = ", ".join(name for name, given in (("BASE", base), ("--corpus", corpus), ("--out", out)) if not given)
        raise ConfigError(f"vocab: {missing} missing, expected `zhlm vocab BASE --corpus PATHS --out FOLDER`, or --verify FOLDER; add it")
    config = _config(base, corpus, old, settings, word_list)
    place = _empty(out)
    assert config.vocab is not None, "the options make a vocab section"
    order = Order(base, config.base.revision, config.streams, lambda path: path, config.vocab, place, config.resources.pack_tasks)
    try:
        facts = _shown(order)
    except AdviceError as advice:
        say(str(advice))
        return 0
    for line in extension_lines(facts, out):
        say(line)
    return 0


def _config(base: str, corpus: Sequence[str], old: Sequence[str], settings: Sequence[str], word_list: str | None) -> RunConfig:
    """The options as a run's config, so that both are checked by the same rules."""
    streams = [{"name": role, "role": role, "paths": list(paths)} for role, paths in (("new", corpus), ("old", old)) if paths]
    vocab = {"word_list": word_list} if word_list is not None else {}
    data = {"name": "vocab", "base": {"model": base}, "streams": streams, "vocab": vocab, "train": {"steps": 1}}
    return make_config(data, settings, ORIGIN)


def _empty(out: str) -> Place:
    place = Place(out)
    if not place.remote and place.path.is_file():
        raise StorageError(f"vocab: {out} is a file, expected a new or empty folder; name another --out", path=out)
    if names := place.names():
        raise StorageError(
            f"vocab: the folder {out} is not empty ({names[0]} is in it), expected a new or empty one; name another --out", path=out
        )
    return place


def _shown(order: Order) -> dict[str, Any]:
    """The work, with a live line; what Ray and transformers print goes to a file, which stays only when it must be read."""
    descriptor, log = tempfile.mkstemp(prefix="zhlm-vocab-", suffix=".log")
    os.close(descriptor)
    try:
        with quiet(Path(log)) as terminal, Display(terminal) as display:
            facts = extend_base(order, display.report)
    except Exception as error:
        mistake = find_user_error(error)
        if mistake is None:
            with open(log, "a", encoding="utf-8") as file:
                traceback.print_exc(file=file)
            reason = (str(getattr(error, "cause", None) or error).strip() or type(error).__name__).splitlines()[0]
            raise VerificationError(f"vocab: failed: {reason}; nothing was written, the whole story is in {log}") from error
        os.unlink(log)
        raise mistake from None
    except BaseException:
        os.unlink(log)
        raise
    os.unlink(log)
    return facts
