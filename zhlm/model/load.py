"""Find and load a base model: a local folder or a hub name -> a transformers model, with one-line errors for what the user can mend."""

import contextlib
import inspect
import os
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError, RevisionNotFoundError
from safetensors import SafetensorError
from transformers import (
    MODEL_FOR_MASKED_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    PretrainedConfig,
    PreTrainedModel,
)

from zhlm.config.schema import RunConfig
from zhlm.errors import BaseModelError
from zhlm.model.files import TOKENIZER_FILES, check_hub_name
from zhlm.model.kind import Kind, check_fits, kind_of

WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
HUB_FILES = ["*.json", "*.txt", "*.model", "*.safetensors", "*.jinja"]
"""What is fetched of a hub model; pickled weights only where there are no others."""
AUTO_CLASSES: dict[Kind, Any] = {
    "decoder": AutoModelForCausalLM,
    "encoder": AutoModelForMaskedLM,
    "encoder_decoder": AutoModelForSeq2SeqLM,
}


def local_folder(source: str, revision: str | None = None, *, weights: bool = True) -> Path:
    """The folder that holds a base model; a hub model is taken from the local cache, or fetched into it, with its weights or without.

    Everything that reads a base by hub name is quicker from this folder: offline, each look-up by name retries for 20 seconds.

    Raises: BaseModelError when there is no such folder or model, or the hub cannot be reached.
    """
    path = Path(os.path.expanduser(source))
    if path.is_dir():
        return path
    if path.exists():
        raise BaseModelError(f"base: {source} is a file, expected a folder with config.json and weights; set base.model to the folder")
    check_hub_name(source)
    try:
        with contextlib.suppress(FileNotFoundError):  # not in the cache
            cached = Path(snapshot_download(source, revision=revision, local_files_only=True))
            if _has_weights(cached) or (not weights and (cached / "config.json").is_file()):
                return cached
    except HFValidationError:
        raise BaseModelError(f"base: {source!r} is neither a folder here nor a hub name such as org/model; correct base.model") from None
    return _fetch(source, revision, weights)


def _fetch(source: str, revision: str | None, weights: bool) -> Path:
    try:
        wanted = [pattern for pattern in HUB_FILES if weights or pattern != "*.safetensors"]
        folder = Path(snapshot_download(source, revision=revision, allow_patterns=wanted))
        if weights and not _has_weights(folder):
            folder = Path(snapshot_download(source, revision=revision, allow_patterns=[*HUB_FILES, "pytorch_model*.bin"]))
        return folder
    except RevisionNotFoundError:
        raise BaseModelError(f"base: the hub model {source} has no revision {revision!r}; correct base.revision or remove it") from None
    except RepositoryNotFoundError:
        raise BaseModelError(
            f"base: {source} is no folder here and the hub has no such public model; correct base.model, or log in for a gated one"
        ) from None
    except OSError as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise BaseModelError(
            f"base: {source} is no folder here and the hub did not give it ({reason[:120]}); "
            "correct base.model, connect to the network, or copy the model to a folder and name that"
        ) from error


def load_model(source: str, *, revision: str | None = None, dtype: torch.dtype | Literal["auto"] = torch.float32) -> PreTrainedModel:
    """The language model in a folder or of a hub name, of the class for its objective, in evaluation mode;
    "auto" keeps the dtype that it was saved in.

    Raises: BaseModelError when it is missing, incomplete or of a kind that is not supported.
    """
    folder = local_folder(source, revision)
    config = load_model_config(source, revision=revision)
    if not _has_weights(folder):
        raise BaseModelError(f"base: {source} has no weights, expected model.safetensors (or .index.json with its parts); copy them there")
    try:
        model, facts = _auto_class(config).from_pretrained(folder, config=config, dtype=dtype, output_loading_info=True)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:  # unknown class, torn file, shapes other than the config's
        raise BaseModelError(f"base: {source} cannot be loaded: {_one_line(error)}; check config.json and the weights") from error
    missing = sorted(facts["missing_keys"])
    if missing:
        raise BaseModelError(
            f"base: the weights of {source} lack {len(missing)} tensors of {type(model).__name__}, such as {missing[0]}; "
            "copy the model again, or name one with a language model's head"
        )
    loaded: PreTrainedModel = model.eval()
    return loaded


def load_base(config: RunConfig, source: str, *, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """The model of a run before training, from where `Run.base_model` says: as saved, or drawn by the run's seed.

    Raises: BaseModelError as load_model, and where the objective does not fit the base.
    """
    revision = None if config.vocab else config.base.revision
    check_fits(config.objective, load_model_config(source, revision=revision).to_dict(), config.base.model)
    if config.vocab is None and config.base.from_scratch:
        return draw_model(source, config.seed, revision=revision, dtype=dtype)
    return load_model(source, revision=revision, dtype=dtype)


def draw_model(source: str, seed: int, *, revision: str | None = None, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A base's config with random weights; the same seed draws the same, in any precision and on every rank."""
    config = load_model_config(source, revision=revision)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return model_from_config(source, config).to(dtype)


def model_from_config(source: str, config: PretrainedConfig) -> PreTrainedModel:
    """A language model of a base's config with float32 weights as its class starts them, in evaluation mode.

    Raises: BaseModelError for a config of another kind.
    """
    try:
        model: PreTrainedModel = _auto_class(config).from_config(config, dtype=torch.float32)
    except (ValueError, KeyError, ImportError) as error:
        raise BaseModelError(f"base: {source} is no language model: {_one_line(error)}; name another base.model") from error
    return model.eval()


def load_model_config(source: str, *, revision: str | None = None) -> PretrainedConfig:
    """The transformers config of a base, without fetching weights. Raises: BaseModelError when there is none or its class is unknown."""
    folder = local_folder(source, revision, weights=False)
    if not (folder / "config.json").is_file():
        raise BaseModelError(f"base: {source} has no config.json, expected a folder written by save_pretrained; correct base.model")
    try:
        return AutoConfig.from_pretrained(folder)
    except (OSError, ValueError, KeyError) as error:
        raise BaseModelError(f"base: the config.json of {source} cannot be read: {_one_line(error)}; copy the model again") from error


def check_base(source: str, revision: str | None, tokenizer_len: int) -> None:
    """Refuse a base without tokenizer files, or whose tokenizer has ids that the embedding has no row for. Reads no weights."""
    folder = local_folder(source, revision, weights=False)
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise BaseModelError(
            f"base: {source} has no tokenizer, expected tokenizer.json beside config.json; save the model's tokenizer into the folder"
        )
    rows = embedding_rows(load_model_config(source, revision=revision))
    if tokenizer_len > rows:
        raise BaseModelError(
            f"base: the tokenizer of {source} has {tokenizer_len} entries but the embedding only {rows} rows; "
            "use the tokenizer that the model was trained with, or resize the model to it first"
        )


def embedding_rows(config: PretrainedConfig) -> int:
    """Rows of the input embedding, by the config."""
    return int(config.get_text_config().vocab_size)


def model_positions(model_or_config: PreTrainedModel | PretrainedConfig) -> int | None:
    """Longest sequence the model can take, in tokens; None where positions have no limit (ALiBi as in BLOOM, distances as in T5)."""
    config: Any = model_or_config.config if isinstance(model_or_config, PreTrainedModel) else model_or_config
    config = config.get_text_config()
    if config.is_encoder_decoder and hasattr(config, "relative_attention_num_buckets"):
        return None  # T5's n_positions is what it was trained on
    # GPT-2 maps the first name to n_positions by itself.
    for name in ("max_position_embeddings", "n_positions", "max_seq_len"):
        value = getattr(config, name, None)
        if isinstance(value, int):
            return value - first_position(config)
    return None


def first_position(config: PretrainedConfig) -> int:
    """Where a model counts positions from: behind the padding's, in RoBERTa and the classes that number them as it does."""
    kind = MODEL_FOR_MASKED_LM_MAPPING.get(type(config), None)
    module = vars(inspect.getmodule(kind)) if kind else {}
    counter = "create_position_ids_from_input_ids"
    after_padding = counter in module or any(hasattr(part, counter) for part in module.values())
    return int(config.pad_token_id or 0) + 1 if after_padding else 0


def _auto_class(config: PretrainedConfig) -> Any:
    return AUTO_CLASSES[kind_of(config.to_dict())]


def _has_weights(folder: Path) -> bool:
    return any((folder / name).is_file() for name in WEIGHTS)


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else f"{text[:200]}..."
