"""Find and load a base model: a local folder or a hub name -> a transformers model, with one-line errors for what the user can mend."""

import contextlib
import os
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError, RevisionNotFoundError
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from zhlm.config.schema import RunConfig
from zhlm.errors import BaseModelError
from zhlm.model.files import check_hub_name

WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
HUB_FILES = ["*.json", "*.txt", "*.model", "*.safetensors", "*.jinja"]
"""What is fetched of a hub model; pickled weights only where there are no others."""


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
    """The causal language model in a folder or of a hub name, in evaluation mode; "auto" keeps the dtype that it was saved in.

    Raises: BaseModelError when it is missing, incomplete or of a kind that is not supported.
    """
    folder = local_folder(source, revision)
    config = load_model_config(source, revision=revision)
    if not _has_weights(folder):
        raise BaseModelError(f"base: {source} has no weights, expected model.safetensors (or .index.json with its parts); copy them there")
    try:
        model, facts = AutoModelForCausalLM.from_pretrained(folder, config=config, dtype=dtype, output_loading_info=True)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:  # unknown class, torn file, shapes other than the config's
        raise BaseModelError(f"base: {source} cannot be loaded: {_one_line(error)}; check config.json and the weights") from error
    missing = sorted(facts["missing_keys"])
    if missing:
        raise BaseModelError(
            f"base: the weights of {source} lack {len(missing)} tensors of {type(model).__name__}, such as {missing[0]}; "
            "copy the model again, or name one of a causal class"
        )
    loaded: PreTrainedModel = model.eval()
    return loaded


def load_base(config: RunConfig, source: str, *, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """The model of a run before training, from where `Run.base_model` says: as saved, or drawn by the run's seed.

    Raises: BaseModelError as load_model.
    """
    if config.vocab is None and config.base.from_scratch:
        return draw_model(source, config.seed, revision=config.base.revision, dtype=dtype)
    return load_model(source, revision=None if config.vocab else config.base.revision, dtype=dtype)


def draw_model(source: str, seed: int, *, revision: str | None = None, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A base's config with random weights; the same seed draws the same, in any precision and on every rank."""
    config = load_model_config(source, revision=revision)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return model_from_config(source, config).to(dtype)


def model_from_config(source: str, config: PretrainedConfig) -> PreTrainedModel:
    """A causal model of a base's config with float32 weights as its class starts them, in evaluation mode.

    Raises: BaseModelError for a config of another kind.
    """
    try:
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    except (ValueError, KeyError, ImportError) as error:
        raise BaseModelError(f"base: {source} is no causal model: {_one_line(error)}; name another base.model") from error
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
    if not any((folder / name).is_file() for name in TOKENIZERS):
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
    """Longest sequence the model can take, in tokens; None where positions have no limit (ALiBi, as in BLOOM)."""
    config: Any = model_or_config.config if isinstance(model_or_config, PreTrainedModel) else model_or_config
    config = config.get_text_config()
    # GPT-2 maps the first name to n_positions by itself.
    for name in ("max_position_embeddings", "n_positions", "max_seq_len"):
        value = getattr(config, name, None)
        if isinstance(value, int):
            return value
    return None


def _has_weights(folder: Path) -> bool:
    return any((folder / name).is_file() for name in WEIGHTS)


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else f"{text[:200]}..."
