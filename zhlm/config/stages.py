"""Which stages there are, in order, and which part of the config each one reads.

A stage is redone when its part changed or when a stage above it was redone; nothing else decides.
"""

from collections.abc import Mapping
from typing import Any, Literal, get_args

from zhlm.config.schema import RunConfig
from zhlm.errors import ClusterError, ConfigError, UserError

Stage = Literal["sample", "vocab", "pack", "train", "export", "evaluate"]
STAGES: tuple[Stage, ...] = get_args(Stage)
WORTH_OVERLAPPING_BYTES = 256 << 20
"""Of source files: less is packed before the training workers are up."""
CHECKPOINTS = ("checkpoint_every", "keep_checkpoints", "keep_best")
RHYTHM = ("start", "trace_blocks", "log_every", "trackers", "validate_every", "validation_blocks", "fused_loss", *CHECKPOINTS)
"""Of training: when to begin, log, check and save changes what is seen on the way, not what comes out."""


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
    sources = [_source(s) for s in full["streams"]]
    if stage == "sample":
        return {"sample": full["sample"], "seed": full["seed"]}
    if stage == "vocab":
        drawn = {"seed": full["seed"]} if config.base.from_scratch else {}
        # What is not asked for is left out: vocabularies from before there was such a thing stay finished.
        vocab = {k: v for k, v in full["vocab"].items() if v is not None or k not in ("special_tokens", "tokenizer")}
        return base | {"vocab": vocab, "streams": [s for s in sources if s["role"] == "new"]} | drawn
    if stage == "pack":
        pack = {k: v for k, v in full["pack"].items() if v or k != "truncate"}
        return base | {"streams": sources, "pack": pack, "seed": full["seed"]}
    if stage == "train":
        weights = {s["name"]: s["weight"] for s in full["streams"]}
        measured = ("validate_every", "validation_blocks") if config.train.early_stop else ()  # these decide then where it ends
        settings = {k: v for k, v in full["train"].items() if k not in RHYTHM or k in measured}
        # Not where it is causal: what was trained before there were others stays finished.
        objective = {} if config.objective.name == "causal" else {"objective": full["objective"]}
        return base | {"train": settings, "weights": weights, "seed": full["seed"]} | objective
    if stage == "export":  # written into generation_config.json
        return {"evaluate": {"generate": {"max_new_tokens": full["evaluate"]["generate"]["max_new_tokens"]}}}
    return {"evaluate": full["evaluate"]}


def _source(stream: Mapping[str, Any]) -> dict[str, Any]:
    """What decides a stream's documents. `max_repeats` only refuses; `skip_non_text: false` is what was before there was the setting."""
    ignored = {"weight", "max_repeats"} | ({"skip_non_text"} if not stream["skip_non_text"] else set())
    return {name: value for name, value in stream.items() if name not in ignored}


def trains_while_packing(config: RunConfig, source_bytes: float, most: Mapping[str, float] | None) -> bool:
    """Whether training begins on the first packed blocks, given its source bytes and what the cluster can have at most (None: unknown).

    Raises: ConfigError or ClusterError when the config asks for it and it cannot be.
    """
    if config.train.start == "after_packing":
        return False
    obstacle = _obstacle(config, most)
    if config.train.start == "with_packing":
        if obstacle is not None:
            raise obstacle
        return True
    return obstacle is None and source_bytes >= WORTH_OVERLAPPING_BYTES


def _obstacle(config: RunConfig, most: Mapping[str, float] | None) -> UserError | None:
    """Why training cannot begin before packing ends."""
    asked = "train: start is with_packing, but"
    if config.train.steps is None:
        return ConfigError(f"{asked} epochs are counted when all is packed; set train.steps instead of train.epochs")
    if config.pack.packing == "none":
        return ConfigError(f"{asked} pack.packing is none, where weights are known when all is packed; set best_fit or concat")
    limited = next((s.name for s in config.streams if s.max_repeats is not None), None)
    if limited is not None:
        return ConfigError(f"{asked} the repeats of stream {limited} are known when all is packed; remove its max_repeats")
    if most is None or packing_cpus(config, most) >= 1:
        return None
    needs = config.resources
    return ClusterError(
        f"{asked} the cluster can have {most.get('CPU', 0.0):g} CPU and the workers take {_most_workers(config, most)} x "
        f"{needs.cpus_per_worker:g}, expected 1 more for packing; lower resources.workers or resources.cpus_per_worker"
    )


def packing_cpus(config: RunConfig, most: Mapping[str, float]) -> int:
    """Whole CPUs that all training workers together leave to packing."""
    return int(most.get("CPU", 0.0) - _most_workers(config, most) * config.resources.cpus_per_worker)


def _most_workers(config: RunConfig, most: Mapping[str, float]) -> int:
    """An elastic run takes what is there, and where workers have GPUs those are the limit."""
    each = config.resources.gpus_per_worker
    return min(config.resources.max_workers, int(most.get("GPU", 0.0) / each)) if each else config.resources.max_workers


def differences(old: Any, new: Any, place: str = "") -> list[str]:
    """Where two plain-data trees differ, as `train.steps: 100 -> 200`."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = [*new, *(k for k in old if k not in new)]
        return [d for k in keys for d in differences(old.get(k), new.get(k), f"{place}.{k}" if place else str(k))]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        return [d for i, (a, b) in enumerate(zip(old, new, strict=True)) for d in differences(a, b, f"{place}.{i}")]
    return [] if old == new else [f"{place}: {old!r} -> {new!r}"]
