"""Loading the tokenizer of a base model, from the hub or a folder, with one-line errors."""

import hashlib
import os
from pathlib import Path

import transformers
from huggingface_hub import HfApi, constants
from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError, RevisionNotFoundError
from transformers import PreTrainedTokenizerFast

from zhlm.errors import BaseModelError

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "vocab.json", "vocab.txt")
"""A tokenizer folder has at least one of these."""
HUB_TIMEOUT_S = 10


def load_tokenizer(source: str, revision: str | None = None) -> PreTrainedTokenizerFast:
    """The tokenizer of a hub model or a local folder.

    Raises: BaseModelError for a folder that does not exist or has no tokenizer, an unknown or unreachable hub name, a slow-only tokenizer.
    """
    offline = use_cache_only(source, revision)
    if os.path.isdir(source) and not any((Path(source) / name).exists() for name in TOKENIZER_FILES):
        raise BaseModelError(
            f"tokenizer: the folder {source} has none of {', '.join(TOKENIZER_FILES)}; "
            "copy the base model's tokenizer there or name another base.model",
            path=source,
        )
    try:
        # By its full name: importing it imports torch, which processes that only encode have no use for.
        tokenizer = transformers.AutoTokenizer.from_pretrained(source, revision=revision, local_files_only=offline)
    except Exception as error:  # transformers lets errors of many libraries through, pickling and Rust ones among them
        raise BaseModelError(
            f"tokenizer: {source} cannot be loaded: {_first_line(error)}; {_remedy(source, offline)}", path=source
        ) from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        kind = type(tokenizer).__name__
        raise BaseModelError(
            f"tokenizer: {source} has only a slow tokenizer ({kind}); convert it to tokenizer.json or name another base.model"
        )
    return tokenizer


def use_cache_only(source: str, revision: str | None = None) -> bool:
    """Whether a base must come from the local cache, because it is a hub name and the hub does not answer now.

    One request with a short deadline: the hub client's own retries take most of a minute when there is no network.

    Raises: BaseModelError for a folder or a hub name that does not exist.
    """
    if os.path.isdir(source) or constants.HF_HUB_OFFLINE:
        return True
    if source.startswith(("/", "./", "../", "~")) or source.count("/") > 1:
        raise BaseModelError(f"base: the folder {source} does not exist; correct base.model", path=source)
    at = f" at revision {revision}" if revision else ""
    try:
        HfApi().model_info(source, revision=revision, timeout=HUB_TIMEOUT_S)
    except HFValidationError:
        raise BaseModelError(f"base: {source!r} is neither a folder nor a hub name; correct base.model") from None
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise BaseModelError(
            f"base: {source}{at} does not exist on the hub, or is private; correct base.model or base.revision, or set HF_TOKEN"
        ) from error
    except Exception:  # no answer; which class says so depends on the hub client's HTTP library
        return True
    return False


def tokenizer_json(tokenizer: PreTrainedTokenizerFast) -> str:
    """The whole tokenizer as text: what encoders are made from, in this process or in another."""
    return str(tokenizer.backend_tokenizer.to_str())


def digest_of(tokenizer: PreTrainedTokenizerFast) -> str:
    """A hash of everything that decides which ids a text gets."""
    return hashlib.sha256(tokenizer_json(tokenizer).encode()).hexdigest()[:16]


def vocabulary_of(tokenizer: PreTrainedTokenizerFast) -> int:
    """One more than the largest id that encoding can give."""
    return int(max(tokenizer.get_vocab().values())) + 1


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__


def _remedy(source: str, offline: bool) -> str:
    if os.path.isdir(source):
        return "its tokenizer files are damaged or need a package that is not installed, save a tokenizer.json there"
    if offline:
        return "the hub does not answer and the local cache lacks it, download it first or name a local folder in base.model"
    return "check base.model and base.revision"
