"""Where a plan's numbers come from: facts of finished stages, else the files and settings at hand."""

import json
import math
import os
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from zhlm.config.prompts import check_masks
from zhlm.config.schema import RunConfig, ScratchBaseConfig, StreamConfig
from zhlm.config.stages import Stage, reads
from zhlm.corpus.files import SourceFile, find_files
from zhlm.corpus.word_list import word_lines
from zhlm.errors import BaseModelError
from zhlm.model.files import TOKENIZER_FILES, check_hub_name
from zhlm.model.shape import ModelShape, shape_of
from zhlm.storage import MANIFEST, SAMPLE_SCHEME, Run, is_remote

HUB_TIMEOUT_S = 8.0
SAMPLE_STORY_BYTES = 430
"""Mean of the two languages; used only until the sample corpus is there."""
SMALL_VOCABULARY = 8192
TOKENS_PER_BYTE = 0.3
"""Assumption for text in a language that the tokenizer knows; English and Chinese both lie between 0.2 and 0.35."""
TOKENS_PER_BYTE_SMALL = 0.45
"""The same below SMALL_VOCABULARY entries."""
TEXT_BYTES_PER_FILE_BYTE = {"gzip": 3.0, "zstd": 3.0, "parquet": 2.0}
"""Assumption: how much text a byte on the disk stands for, by compression or format; 1 for the others."""


def tokenizer_entries(tokenizer: Mapping[str, Any]) -> int:
    """One more than the highest id in a tokenizer.json: ids decide what the embedding must hold, and they may have gaps."""
    vocabulary = tokenizer.get("model", {}).get("vocab", {})
    # Unigram lists its pieces in id order, the other kinds map them to ids.
    ids = list(vocabulary.values()) if isinstance(vocabulary, dict) else [len(vocabulary) - 1]
    ids += [added["id"] for added in tokenizer.get("added_tokens", [])]
    return max(ids, default=-1) + 1


@dataclass(frozen=True)
class StreamSize:
    """Training part of one stream; None where nothing short of reading it would tell."""

    tokens: int | None
    blocks: int | None
    documents: int | None
    measured: bool
    """Counted by the pack stage, not estimated."""


def stream_sizes(config: RunConfig, shape: ModelShape) -> dict[str, StreamSize]:
    """Tokens, blocks and documents of each stream: from the pack stage where it is done for this config, else estimated."""
    facts = finished_facts(config, "pack")
    if facts is not None:
        packed = {s.name: facts["streams"][s.name]["train"] for s in config.streams}
        return {name: StreamSize(t["tokens"], t["blocks"], t.get("documents"), True) for name, t in packed.items()}
    return {s.name: _estimate(config, s, shape) for s in config.streams}


def finished_facts(config: RunConfig, stage: Stage) -> dict[str, Any] | None:
    """A stage's facts if it and the stages before it were done with this config; a remote run is not asked, a plan must be quick."""
    run = Run.of(config)
    if run.folder.remote:
        return None
    facts: dict[str, Any] | None = None
    earlier: dict[Stage, tuple[Stage, ...]] = {"sample": ("sample",), "vocab": ("sample", "vocab"), "pack": ("sample", "vocab", "pack")}
    for each in earlier[stage]:
        if (each == "sample" and config.sample is None) or (each == "vocab" and config.vocab is None):
            continue
        path = run.of_stage(each).path / MANIFEST
        if not path.exists():
            return None
        manifest = json.loads(path.read_text(encoding="utf-8"))
        if manifest.get("reads", {}).get("config") != reads(config, each):
            return None
        facts = manifest["facts"]
    return facts


def _estimate(config: RunConfig, stream: StreamConfig, shape: ModelShape) -> StreamSize:
    if stream.dataset is not None:  # its size would have to be asked for
        return StreamSize(None, None, None, False)
    run, documents, text_bytes = Run.of(config), None, 0.0
    paths = [run.resolve(p) for p in stream.paths]
    made = [p for p in stream.paths if p.startswith(SAMPLE_SCHEME)]
    if any(is_remote(p) for p in paths):
        return StreamSize(None, None, None, False)
    corpus = config.sample.corpus if config.sample else None
    if made and corpus and not run.sample.path.joinpath(MANIFEST).exists():
        documents = corpus.documents - corpus.held_out_documents
        text_bytes += documents * SAMPLE_STORY_BYTES
        paths = [p for p in stream.paths if not p.startswith(SAMPLE_SCHEME)]
    text_bytes += sum(_text_bytes(f) for f in find_files(paths, stream.document)) if paths else 0
    if not stream.held_out:
        text_bytes *= 1 - config.pack.validation_share
    tokens = round(text_bytes * (TOKENS_PER_BYTE_SMALL if shape.vocabulary < SMALL_VOCABULARY else TOKENS_PER_BYTE))
    return StreamSize(tokens, max(1, tokens // config.pack.block_tokens), documents, False)


def source_bytes(config: RunConfig) -> float:
    """Of all training files; infinite where only a remote store or a hub could tell, and 0 for the sample."""
    run, total = Run.of(config), 0.0
    for stream in config.streams:
        paths = [run.resolve(p) for p in stream.paths if not p.startswith(SAMPLE_SCHEME)]
        if stream.dataset is not None or any(is_remote(p) for p in paths):
            return math.inf
        total += sum(f.size_bytes for f in find_files(paths, stream.document)) if paths else 0
    return total


def _text_bytes(file: SourceFile) -> float:
    return file.size_bytes * TEXT_BYTES_PER_FILE_BYTE.get(file.format, TEXT_BYTES_PER_FILE_BYTE.get(file.compression, 1.0))


def trained_shape(config: RunConfig) -> tuple[ModelShape, bool]:
    """The model that will be trained, and whether its vocabulary is final (an extension not made yet may add fewer rows).

    Raises: BaseModelError when the base's config.json is not within reach or of no known type, ConfigError for a broken word list.
    """
    if config.vocab is not None and finished_facts(config, "vocab") is not None:
        return shape_of(read_object(Run.of(config).vocab.path / "config.json")), True
    shape = shape_of(base_config(config))
    if config.base.from_scratch and shape.model_type in ("t5", "mt5"):
        shape = replace(shape, tied=True)  # transformers draws them so, whatever the config says
    if config.vocab is None:
        return shape, True
    multiple = config.vocab.pad_to_multiple
    rows = (_own_entries(config) or shape.vocabulary) + added_rows(config)
    return replace(shape, vocabulary=-(-rows // multiple) * multiple), False


def added_rows(config: RunConfig) -> int:
    """Rows for new pieces, words and special tokens: counted where the vocab stage is done, else what the config asks for at most.

    Raises: ConfigError for a word list that cannot be read.
    """
    if config.vocab is None:
        return 0
    facts = finished_facts(config, "vocab")
    if facts is not None:
        return int(facts["added"])
    special = len(config.vocab.special_tokens.texts) if config.vocab.special_tokens else 0
    return config.vocab.add_rows + _listed_words(config.vocab.word_list) + special


def _listed_words(path: str | None) -> int:
    """Words of a list, each a row beside the learned ones; 0 for a remote list, a plan must be quick."""
    return 0 if path is None or is_remote(path) else sum(map(bool, word_lines(path)))


def own_tokenizer(config: RunConfig) -> Path | None:
    """The local folder of the tokenizer that replaces the base's; None without one, for a hub name or a remote folder.

    Raises: BaseModelError for a path that does not exist, or a folder without a tokenizer.
    """
    name = config.vocab.tokenizer if config.vocab else None
    if name is None or is_remote(name):
        return None
    path = Path(os.path.expanduser(name))
    if not path.is_dir():
        check_hub_name(name, "vocab.tokenizer")
        return None
    if not any((path / file).is_file() for file in TOKENIZER_FILES):
        raise BaseModelError(
            f"vocab: the folder {name} has no tokenizer, expected one of {', '.join(TOKENIZER_FILES)}; correct vocab.tokenizer"
        )
    return path


def _own_entries(config: RunConfig) -> int | None:
    """How many rows such a tokenizer needs, where its tokenizer.json or vocab.txt is here."""
    folder = own_tokenizer(config)
    if folder is not None and (folder / "tokenizer.json").is_file():
        return tokenizer_entries(read_object(folder / "tokenizer.json"))
    if folder is not None and (folder / "vocab.txt").is_file():
        return len((folder / "vocab.txt").read_text(encoding="utf-8").splitlines())
    return None


def check_prompts(config: RunConfig) -> None:
    """The prompts of the evaluation have masks where the model guesses masks, as far as the mask token is known from files here.

    Raises: RunError for one without.
    """
    mask_token = _mask_token(config)
    if mask_token is not None:
        check_masks(config, config.evaluate.prompts, mask_token)


def _mask_token(config: RunConfig) -> str | None:
    vocab = config.vocab
    if vocab and vocab.special_tokens and vocab.special_tokens.mask_token:
        return vocab.special_tokens.mask_token
    folder = own_tokenizer(config) if vocab and vocab.tokenizer else base_folder(config)
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if folder is not None and (folder / name).is_file():
            token = read_object(folder / name).get("mask_token")
            token = token.get("content") if isinstance(token, dict) else token
            if isinstance(token, str):
                return token
    return None


def base_config(config: RunConfig) -> dict[str, Any]:
    """config.json of the base as the user named it: a folder, the sample's (made or not yet), or a hub name.

    Raises: BaseModelError when it is not within reach.
    """
    folder = base_folder(config)
    if folder is not None:
        return read_object(folder / "config.json")
    if config.base.model.startswith(SAMPLE_SCHEME):
        assert config.sample is not None and config.sample.base is not None, "the schema asks for sample.base"
        return _scratch_config(config.sample.base)
    return _hub_config(config.base.model, config.base.revision)


def base_folder(config: RunConfig) -> Path | None:
    """The base's local folder; None for a sample base that is not made yet, a hub name or a remote folder.

    Raises: BaseModelError for a path that does not exist.
    """
    model = config.base.model
    if model.startswith(SAMPLE_SCHEME):
        resolved = Run.of(config).resolve(model)
        return Path(resolved) if not is_remote(resolved) and os.path.isdir(resolved) else None
    if is_remote(model):
        return None
    path = Path(os.path.expanduser(model))
    if path.exists():
        return path
    check_hub_name(model)
    return None


def read_object(path: Path) -> dict[str, Any]:
    """A JSON file of a model's folder. Raises: BaseModelError when it is missing or broken."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BaseModelError(f"base: {path} does not exist, expected a Hugging Face model folder; correct base.model") from None
    except (OSError, ValueError) as error:
        raise BaseModelError(f"base: {path} cannot be read ({error}); copy the model's folder again") from error
    if not isinstance(data, dict):
        raise BaseModelError(f"base: {path} holds {type(data).__name__}, expected an object; copy the model's folder again")
    return data


def _scratch_config(base: ScratchBaseConfig) -> dict[str, Any]:
    """As the sample stage builds it; replaced by the real config.json once it is made."""
    return {
        "model_type": "llama",
        "hidden_size": base.width,
        "num_hidden_layers": base.layers,
        "num_attention_heads": base.heads,
        "intermediate_size": -(-(base.width * 8 // 3) // 32) * 32,
        "vocab_size": base.vocabulary,
        "max_position_embeddings": base.positions,
        "tie_word_embeddings": True,
    }


def _hub_config(name: str, revision: str | None) -> dict[str, Any]:
    """config.json of a hub model, from the local cache or by one request with a deadline: the hub's own client retries for 20 s."""
    from huggingface_hub import constants, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils._headers import build_hf_headers

    try:
        cached = try_to_load_from_cache(name, "config.json", revision=revision)
        if isinstance(cached, str):
            return read_object(Path(cached))
        url = hf_hub_url(name, "config.json", revision=revision)
    except HFValidationError:
        raise BaseModelError(f"base: {name!r} is neither a folder nor a hub name like Qwen/Qwen3-0.6B; correct base.model") from None
    if constants.HF_HUB_OFFLINE:
        raise _not_reachable(name, "HF_HUB_OFFLINE is set and it is not in the cache")
    request = urllib.request.Request(url)
    for key, value in build_hf_headers().items():
        request.add_unredirected_header(key, value)
    try:
        with urllib.request.urlopen(request, timeout=HUB_TIMEOUT_S) as answer:
            data: dict[str, Any] = json.load(answer)
            return data
    except urllib.error.HTTPError as error:
        why = "it does not exist, or is private" if error.code in (401, 403, 404) else f"the hub answered {error.code}"
        raise _not_reachable(name, why) from error
    except (OSError, ValueError) as error:
        raise _not_reachable(name, str(getattr(error, "reason", error))) from error


def _not_reachable(name: str, why: str) -> BaseModelError:
    return BaseModelError(f"base: {name} is not reachable ({why}); check base.model and the network, or name a local folder")
