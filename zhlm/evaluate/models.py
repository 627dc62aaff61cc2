"""The two models that are compared, and where they are."""

from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig

from zhlm.config.load import load_config
from zhlm.config.schema import RunConfig
from zhlm.errors import RunError
from zhlm.model.load import draw_model, load_model
from zhlm.model.packed import take_documents
from zhlm.objectives.span_corruption import sentinel_ids
from zhlm.storage import MANIFEST, Place, Run
from zhlm.tokenizer.load import load_tokenizer
from zhlm.tokenizer.special import document_token


def best_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def load(source: str, device: torch.device, revision: str | None = None, draw_seed: int | None = None) -> tuple[Any, Any]:
    """A model in evaluation mode, and its tokenizer, from a folder or the hub; with a seed, the base that was drawn by it.

    On a CPU in float32, so that a measurement does not depend on how the weights were stored; on a GPU as they were stored. What the base
    says about generation is left out, such as a penalty for repetition: both models write by the run's settings alone.
    Raises: BaseModelError when one of the two is missing or broken.
    """
    if draw_seed is not None:
        model: Any = draw_model(source, draw_seed, revision=revision)
    else:
        model = load_model(source, revision=revision, dtype=torch.float32 if device.type == "cpu" else "auto")
    model = take_documents(model)
    model.generation_config = GenerationConfig()
    return model.to(device), load_tokenizer(source, revision)


def both_models(config: RunConfig, run: Run) -> dict[str, tuple[str, str | None, int | None]]:
    """Source, revision and seed (where its weights are drawn) of the base and of the adapted model, as `load` takes them.

    Raises: RunError when the run has no finished export.
    """
    named = (run.original_model(config), config.base.revision, config.seed if config.base.from_scratch else None)
    adapted = merged_model(run)
    behind = config.vocab is not None and _lacks_tokens(config, load_tokenizer(*named[:2]), load_tokenizer(adapted))
    return {"base": (run.base_model(config), None, None) if behind else named, "adapted": (adapted, None, None)}


def _lacks_tokens(config: RunConfig, own: Any, now: Any) -> bool:
    """Whether a base cannot be asked what the adapted model is, by their tokenizers, before the vocab stage gave it what it lacks: then it
    is measured behind that."""
    if config.objective.name == "masked" and own.mask_token != now.mask_token:  # prompts have the one or the other
        return True
    if config.objective.name == "span_corruption" and len(sentinel_ids(own)) < len(sentinel_ids(now)):
        return True
    ends = (config.pack.document_start, config.pack.document_end)
    return any(document_token(now, end) and not document_token(own, end) for end in ends)


def merged_model(run: Run) -> str:
    """The local folder of the adapted model. Raises: RunError when the run has no finished export."""
    if not (run.of_stage("export") / MANIFEST).exists():
        raise RunError(f"generate: {run.folder} has no finished export; finish the run with `zhlm run CONFIG` first")
    return str((run.export / "merged").on_disk())


def open_run(folder: str) -> tuple[Run, RunConfig]:
    """A run by its folder, wherever its config says that it was made. Raises: RunError when the folder is no run."""
    run = Run(Place(folder))
    if not run.config.exists():
        raise RunError(f"generate: {folder} has no config.yaml, so it is not a run folder; name one such as runs/sample")
    return run, load_config(Path(run.config.on_disk()))
