"""One commit of a hub model for a whole run: a branch such as main may move between its stages, its restarts and its machines.

<run>/base.json    {"model": "org/model", "revision": null, "commit": "0a1b..."}    what the config says, and what that was at first
"""

import json
import os
import re
from collections.abc import Callable

from zhlm.config.schema import RunConfig
from zhlm.storage import Run, is_remote

BASE = "base.json"
HUB_TIMEOUT_S = 10

_COMMIT = re.compile(r"[0-9a-f]{40}")


def recorded(config: RunConfig, run: Run) -> RunConfig:
    """The config with the commit that this run began with. Without one, or for another base or revision, as it is."""
    place = run.folder / BASE
    if not _may_move(config) or not place.exists():
        return config
    known = json.loads(place.read_text())
    return _at(config, known["commit"]) if {**known, **_asked(config)} == known else config


def settled(config: RunConfig, run: Run, find: Callable[[str, str | None], str | None] | None = None) -> RunConfig:
    """The config with one commit of a hub model, found now by `find` and noted in the run's folder where it was not yet.

    A model that is nowhere to be found stays as it is named: who loads it says what is wrong.
    """
    known = recorded(config, run)
    if known is not config or not _may_move(config):
        return known
    commit = (find or commit_of)(config.base.model, config.base.revision)
    if commit is None:
        return config
    (run.folder / BASE).write_text(json.dumps(_asked(config) | {"commit": commit}))
    return _at(config, commit)


def commit_of(model: str, revision: str | None) -> str | None:
    """What a branch or a tag of a hub model is now: in the local cache, from which everything is read first, else on the hub. None where
    neither knows."""
    from huggingface_hub import HfApi, constants, try_to_load_from_cache  # half a second, which only runs with a hub model wait for

    try:
        cached = try_to_load_from_cache(model, "config.json", revision=revision)
        if isinstance(cached, str):  # .../snapshots/<commit>/config.json
            return os.path.basename(os.path.dirname(cached))
        return None if constants.HF_HUB_OFFLINE else HfApi().model_info(model, revision=revision, timeout=HUB_TIMEOUT_S).sha
    except Exception:  # no such model, or no answer; which class says so depends on the hub client's HTTP library
        return None


def _asked(config: RunConfig) -> dict[str, str | None]:
    return {"model": config.base.model, "revision": config.base.revision}


def _may_move(config: RunConfig) -> bool:
    """Whether the base is a hub model that is not named by its commit."""
    model, revision = config.base.model, config.base.revision
    return not is_remote(model) and not os.path.exists(os.path.expanduser(model)) and not _COMMIT.fullmatch(revision or "")


def _at(config: RunConfig, commit: str) -> RunConfig:
    return config.model_copy(update={"base": config.base.model_copy(update={"revision": commit})})
