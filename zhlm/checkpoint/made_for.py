"""What must be the same where a checkpoint is taken up again."""

from pathlib import Path

from zhlm.config.objective import Objective
from zhlm.config.schema import RunConfig
from zhlm.model.files import listing_of_base
from zhlm.storage import Run, digest
from zhlm.tokenizer.load import digest_of, load_tokenizer


def made_for(config: RunConfig, run: Run) -> dict[str, str | int]:
    """Base, tokenizer, block size and objective of a run. A folder counts by what is in it: it may be moved, but not replaced; a hub model
    by its name, and by its revision where that is known."""
    tokenizer = load_tokenizer(run.base_model(config), None if config.vocab else config.base.revision)
    return {
        **_base(config, run),
        "tokenizer": digest_of(tokenizer),
        "block_tokens": config.pack.block_tokens,
        "objective": _objective(config.objective),
    }


def _objective(objective: Objective) -> str:
    """Its name with its settings, as `masked (mask_share 0.15, ...)`; `causal` has none."""
    settings = ", ".join(f"{name} {value}" for name, value in objective.model_dump(mode="json", exclude={"name"}).items())
    return f"{objective.name} ({settings})" if settings else objective.name


def _base(config: RunConfig, run: Run) -> dict[str, str]:
    source = run.original_model(config)
    weights = listing_of_base(source, ["weights"])
    if not weights:  # of the hub
        return {"base": source} | ({"revision": config.base.revision} if config.base.revision else {})
    return {"base": f"{Path(source).name} ({digest(sorted(fingerprint for fingerprint, *_ in weights.values()))})"}
