"""A training whose number of steps changed goes on from where both would have come the same way."""

import re
from collections.abc import Mapping
from typing import Any

from zhlm.config.schema import TrainConfig
from zhlm.storage import MANIFEST, STARTED, TRACKER_IDS, Place
from zhlm.train.schedule import rate_factor


def keep_what_serves(checkpoints: Place, before: Mapping[str, Any], now: Mapping[str, Any]) -> int:
    """Empty the folder of a training but for the checkpoints that the other one would have come to as well, by what their manifests read.

    Returns the step of the newest that stays; 0 when none does, and nothing is deleted then.
    """
    most = steps_in_common(before, now)
    names = checkpoints.names()
    kept = [name for name in names if re.fullmatch(r"step_\d{8,}", name) and int(name.removeprefix("step_")) <= most]
    if not kept:
        return 0
    for name in sorted(
        {*names} - {*kept, STARTED, TRACKER_IDS}, key=lambda name: name != MANIFEST
    ):  # first of all it is no longer finished
        (checkpoints / name).delete()
    return int(kept[-1].removeprefix("step_"))


def steps_in_common(before: Mapping[str, Any], now: Mapping[str, Any]) -> int:
    """How many steps at the start of two trainings are the same: those with the same rates, where nothing but `train.steps` differs."""
    old, new = (reads["config"]["train"] for reads in (before, now))
    if old["steps"] is None or new["steps"] is None or {**old, "steps": new["steps"]} != new:
        return 0
    if {**before, "config": {**before["config"], "train": new}} != now:
        return 0
    names = ("schedule", "warmup_share", "warmup_steps", "decay_share", "final_rate_share")
    train = TrainConfig(steps=new["steps"], **{name: new[name] for name in names})
    rates = zip(*([rate_factor(s, steps, train) for s in range(steps)] for steps in (old["steps"], new["steps"])), strict=False)
    same = [a == b for a, b in rates]
    return same.index(False) if False in same else len(same)
