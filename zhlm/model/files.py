"""Which files of a base model decide what comes of it, by content: a base that is replaced in its place is another one."""

import json
import os
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Literal

from zhlm.corpus.changes import Listing
from zhlm.corpus.open import content_hash
from zhlm.errors import BaseModelError
from zhlm.storage import Place, digest, is_remote

Kind = Literal["weights", "tokenizer"]

_FILES: dict[Kind, Sequence[str]] = {
    "weights": ("config.json", "*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin", "pytorch_model.bin.index.json"),
    "tokenizer": (
        "tokenizer.json", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "vocab.json", "vocab.txt", "merges.txt",
        "added_tokens.json", "special_tokens_map.json", "tokenizer_config.json",
    ),
}  # fmt: skip
"""A model card or a setting for generation may change without harm."""
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "sentencepiece.bpe.model")
"""Any one of these makes a folder loadable as a tokenizer."""


def check_hub_name(source: str, setting: str = "base.model") -> None:
    """Refuse the name of a base (or of what `setting` names) that is nowhere here, where it means a folder and not a model of the hub: by
    its form, or because it starts with a folder that is here.

    Raises: BaseModelError.
    """
    first, _, rest = source.partition("/")
    if source.startswith((".", "~", "/")) or source.endswith("/") or "/" in rest:
        or_else = "name a model of the hub"
    elif rest and Path(first).is_dir():
        or_else = f"for the hub's model start where no folder is named {first}"
    else:
        return
    path = Path(os.path.expanduser(source))
    looked = "" if path.is_absolute() else f" (looked for {path.absolute()})"
    raise BaseModelError(f"{setting.split('.')[0]}: the folder {source} does not exist{looked}; correct {setting}, or {or_else}")


def listing_of_base(source: str, kinds: Sequence[Kind]) -> Listing:
    """Of the files of a base folder, local or remote; empty for a model of the hub, which its name and revision stand for.

    By content and not by time, so that a copy, or the working directory of a job, is the same base; of weights as `content_hash` takes
    it, up to 64 MiB of each file, spread over it: a new training changes all of them. Remote ones go by size and time.
    Raises: CorpusError when a file cannot be read, StorageError when a remote folder cannot.
    """
    patterns = [pattern for kind in kinds for pattern in _FILES[kind]]
    if is_remote(source):
        infos = [i for i in Place(source).infos() if any(fnmatch(i.base_name, p) for p in patterns)]
        return {f"{source}/{i.base_name}": [digest([i.base_name, i.size, str(i.mtime)])] for i in infos}
    folder = Path(source.removeprefix("file://")).expanduser()
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    return {str(f): [_fingerprint(f)] for f in files if f.is_file() and any(fnmatch(f.name, p) for p in patterns)}


def _fingerprint(file: Path) -> str:
    if file.name == "tokenizer_config.json":  # its special tokens count, its chat template does not
        try:
            settings = json.loads(file.read_text(encoding="utf-8"))
            return digest({name: value for name, value in settings.items() if name.endswith("_token")})
        except (ValueError, AttributeError):
            pass
    return content_hash(str(file), file.name)
