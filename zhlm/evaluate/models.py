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
from zhlm.storage import MANIFEST, Place, Run
from zhlm.tokenizer.load import load_tokenizer


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
    seed = config.seed if config.base.from_scratch else None
    named = (run.original_model(config), config.base.revision, seed)
    return {"base": (run.base_model(config), None, None) if _needs_added(config) else named, "adapted": (merged_model(run), None, None)}


def _needs_added(config: RunConfig) -> bool:
    """Whether a base cannot be measured before the vocab stage gave it special tokens: it is then measured behind it."""
    added = config.vocab.special_tokens if config.vocab else None
    if added is None:
        return False
    masked, spans = config.objective.name == "masked", config.objective.name == "span_corruption"
    start, end = config.pack.document_start == "bos", config.pack.document_end == "eos"
    return bool((masked and added.mask_token) or (spans and added.sentinels) or (start and added.bos_token) or (end and added.eos_token))


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
