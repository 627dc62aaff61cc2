"""Which stages there are, in order, and which part of the config each one reads.

A stage is redone when its part changed or when a stage above it was redone; nothing else decides.
"""

from typing import Any, Literal, get_args

from zhlm.config.schema import RunConfig

Stage = Literal["sample", "vocab", "pack", "train", "export", "evaluate"]
STAGES: tuple[Stage, ...] = get_args(Stage)


def wanted_stages(config: RunConfig) -> tuple[Stage, ...]:
    """The stages this run has: `sample` and `vocab` only where the config asks for them."""
    absent = {name for name, section in (("sample", config.sample), ("vocab", config.vocab)) if section is None}
    return tuple(s for s in STAGES if s not in absent)


def reads(config: RunConfig, stage: Stage) -> dict[str, Any]:
    """The part of the config that decides a stage's output, as plain data.

    Resources are in none of them: more workers give the same blocks and, by the fixed global batch, the same training.
    """
    full = config.model_dump(mode="json")
    base = {"base": full["base"]}
    sources = [{k: v for k, v in s.items() if k != "weight"} for s in full["streams"]]
    if stage == "sample":
        return {"sample": full["sample"], "seed": full["seed"]}
    if stage == "vocab":
        return base | {"vocab": full["vocab"], "streams": [s for s in sources if s["role"] == "new"]}
    if stage == "pack":
        return base | {"streams": sources, "pack": full["pack"], "seed": full["seed"]}
    if stage == "train":
        weights = {s["name"]: s["weight"] for s in full["streams"]}
        # How often to log, check and save changes what is seen on the way, not what comes out.
        rhythm = ("log_every", "validate_every", "validation_blocks", "checkpoint_every", "keep_checkpoints")
        settings = {k: v for k, v in full["train"].items() if k not in rhythm}
        return base | {"train": settings, "weights": weights, "seed": full["seed"]}
    if stage == "export":
        return {}
    return {"evaluate": full["evaluate"]}


def differences(old: Any, new: Any, place: str = "") -> list[str]:
    """Where two plain-data trees differ, as `train.steps: 100 -> 200`."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = [*new, *(k for k in old if k not in new)]
        return [d for k in keys for d in differences(old.get(k), new.get(k), f"{place}.{k}" if place else str(k))]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        return [d for i, (a, b) in enumerate(zip(old, new, strict=True)) for d in differences(a, b, f"{place}.{i}")]
    return [] if old == new else [f"{place}: {old!r} -> {new!r}"]
