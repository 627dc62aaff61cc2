"""What a vocabulary is made from and where to, and what all ways of making one share."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from zhlm.config.schema import StreamConfig
from zhlm.config.vocabulary import VocabConfig
from zhlm.corpus.read import read_documents
from zhlm.corpus.streams import files_of
from zhlm.errors import StorageError, VerificationError
from zhlm.model.load import draw_model, load_model, local_folder
from zhlm.model.resize import check_heads
from zhlm.storage import Place, storage_errors
from zhlm.text.normalise import normalise
from zhlm.tokenizer.load import load_tokenizer

SAMPLE_CHARS = 500_000
"""Of each stream, for tokens per character, where no piece is learned from it."""
SAMPLE_FILES = 16


@dataclass(frozen=True)
class Order:
    """What to extend, on which text, and where to."""

    base: str
    """Hub name or folder."""
    revision: str | None
    streams: Sequence[StreamConfig]
    resolve: Callable[[str], str]
    """A path of a stream -> a real one."""
    vocab: VocabConfig
    out: Place
    """Becomes a folder with tokenizer, model and verify.json, in one move at the end."""
    tasks: int
    """Files counted, or proved, at the same time."""
    draw_seed: int | None = None
    """Of random weights in place of the base's own. None: its own."""
    only_new_rows: bool = False
    """Of the tables, training will change the new rows only, so that old ids must stay."""

    @property
    def new(self) -> list[str]:
        """Names of the streams to learn."""
        return [stream.name for stream in self.streams if stream.role == "new"]

    def folder(self) -> str:
        """The base's local folder, fetched if need be."""
        return str(local_folder(self.base, self.revision, weights=self.draw_seed is None))

    def model(self, folder: str) -> PreTrainedModel:
        """The base in its own precision. Raises: BaseModelError when it has a head that would not change with its embeddings."""
        model = load_model(folder, dtype="auto") if self.draw_seed is None else draw_model(folder, self.draw_seed)
        check_heads(model)
        return model

    def samples(self) -> dict[str, list[str]]:
        """Of each stream, the beginnings of some of its files."""
        return {stream.name: _beginnings(stream, self.resolve) for stream in self.streams}


def _beginnings(stream: StreamConfig, resolve: Callable[[str], str]) -> list[str]:
    files = files_of(stream, resolve)
    chosen = files[:: -(-len(files) // SAMPLE_FILES)]
    texts: list[str] = []
    for file in chosen:
        left = SAMPLE_CHARS // len(chosen)
        batches = read_documents(file, stream.field, 64, stream.skip_non_text)
        for text in (normalise(document.text) for batch in batches for document in batch):
            texts.append(text[:left])
            left -= len(text)
            if left <= 0:
                break
    return texts


def save(tokenizer: PreTrainedTokenizerFast, model: PreTrainedModel, folder: Path) -> None:
    """Write both. Raises: StorageError."""
    with storage_errors("writing the extended model to", folder):
        try:
            tokenizer.save_pretrained(folder)
            model.save_pretrained(folder)
        except SafetensorError as error:  # what safetensors makes of a full disk
            raise StorageError(
                f"storage: writing the extended model to {folder} failed: {error}; free some space", path=str(folder)
            ) from error


def load_again(tokenizer: PreTrainedTokenizerFast, folder: Path) -> PreTrainedTokenizerFast:
    """A tokenizer from the folder that it was saved into. Raises: VerificationError when it is another one."""
    loaded, expected = load_tokenizer(str(folder)), tokenizer.get_vocab()
    changed = sorted({*loaded.get_vocab().items()} ^ {*expected.items()})
    if changed:
        raise VerificationError(
            f"vocab: the saved tokenizer has {len(changed)} other entries when it is loaded again, such as {changed[0]}"
        )
    return loaded


def size_of(model: PreTrainedModel) -> tuple[int, int]:
    """Rows of the embedding, and parameters of the whole model."""
    return int(model.get_input_embeddings().weight.shape[0]), sum(p.numel() for p in model.parameters())
