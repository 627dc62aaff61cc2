"""Bits per byte before any training, for each way to start the new rows: measured on the model itself, whose rows are rewritten each time.

Only for models that predict the next token: the others have no bits per byte by which two vocabularies could be compared.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from zhlm.errors import ConfigError, CorpusError
from zhlm.inference.bits import measure
from zhlm.model.load import model_positions
from zhlm.model.resize import InitRows, add_rows, fill_rows
from zhlm.tokenizer.special import document_token

TEXT_BYTES = 32_768
"""Of each language that is measured at most, which is about 10,000 Chinese characters."""
DOCUMENT_CHARS = 1000
"""Of a document at most, so that there are many."""
WINDOW_TOKENS = 512

Scores = dict[str, float | None]
"""bits_per_byte_new and bits_per_byte_old; None without text of that language."""


@dataclass(frozen=True)
class Comparison:
    """What is written as init.json."""

    base: Scores
    """Before the extension, with the base's own tokenizer."""
    inits: dict[str, Scores]
    best: str
    """Fewest bits per byte of the new language."""
    measured: dict[str, Any]
    """On how much text, and where it is from."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Texts:
    """What is measured on."""

    new: list[str]
    old: list[str]
    origin: str
    """Whether anything was learned from them, in words."""

    def facts(self) -> dict[str, Any]:
        sizes = {f"{role}_bytes": sum(len(t.encode()) for t in texts) for role, texts in (("new", self.new), ("old", self.old))}
        return {"texts": self.origin, **sizes}


def first_texts(documents: Iterable[str], limit_bytes: int = TEXT_BYTES) -> list[str]:
    """The beginnings of documents, up to a number of bytes in all; those without two characters are passed over."""
    texts: list[str] = []
    room = limit_bytes
    for document in documents:
        start = _beginning(document, min(room, 4 * DOCUMENT_CHARS))
        if len(start) > 1:
            texts.append(start)
            room -= len(start.encode())
        if room < 8:
            break
    return texts


def _beginning(document: str, limit_bytes: int) -> str:
    """Whole characters only."""
    return document[:DOCUMENT_CHARS].encode()[:limit_bytes].decode("utf-8", "ignore")


def check_causal(model: PreTrainedModel) -> None:
    """Raises: ConfigError for a model that looks ahead (BERT) or reads with an encoder (T5)."""
    if model.can_generate() and not model.config.is_encoder_decoder and _looks_back_only(model):
        return
    raise ConfigError(
        f"vocab: init: auto and compare_init measure bits per byte, which {type(model).__name__} has not, "
        "expected a causal model (GPT-2, Llama, BLOOM ...); set vocab.init: subword_mean and vocab.compare_init: false"
    )


@torch.inference_mode()
def _looks_back_only(model: PreTrainedModel) -> bool:
    """Whether another last token leaves the logits before it as they were."""
    ids_RT = torch.tensor([[0, 1, 2, 3], [0, 1, 2, 4]], device=model.device)
    logits_RTV = model(input_ids=ids_RT).logits.float()
    return torch.allclose(logits_RTV[0, :3], logits_RTV[1, :3], rtol=1e-3, atol=1e-3)


def compare(
    model: PreTrainedModel,
    before: PreTrainedTokenizerFast,
    after: PreTrainedTokenizerFast,
    first_id: int,
    inits: Mapping[str, InitRows],
    texts: Texts,
    *,
    pad_to_multiple: int = 1,
) -> Comparison:
    """Measure the base, give it its new rows, and measure it with each of `inits`; the rows of the last one stay.

    Text of the old language shows what new rows take from it: each one has a share of the probability.

    Raises: ConfigError for a model that is not causal, CorpusError without text of the new language.
    """
    check_causal(model)
    if not texts.new:
        raise CorpusError("vocab: no document of the new streams has two characters to measure initialisations on; set vocab.init to one")
    num_rows = len(after) - len(before)
    device, home = _device(model), model.device
    model.to(device)
    base = _scores(model, before, texts)
    scores: dict[str, Scores] = {}
    for number, (name, init) in enumerate(inits.items()):
        if number:
            fill_rows(model, first_id, num_rows, init)
        else:
            add_rows(model, first_id, num_rows, init, pad_to_multiple=pad_to_multiple)
        scores[name] = _scores(model, after, texts)
    model.to(home)
    best = min(scores, key=lambda name: scores[name]["bits_per_byte_new"] or math.inf)
    return Comparison(base, scores, best, texts.facts())


def _device(model: PreTrainedModel) -> torch.device:
    """A GPU where one has room for the model and its logits."""
    if torch.cuda.is_available():
        free_bytes, _ = torch.cuda.mem_get_info()
        if free_bytes > 1.2 * sum(p.numel() * p.element_size() for p in model.parameters()) + (2 << 30):
            return torch.device("cuda")
    return torch.device(model.device)


def _scores(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, texts: Texts) -> Scores:
    return {
        "bits_per_byte_new": _bits_per_byte(model, tokenizer, texts.new),
        "bits_per_byte_old": _bits_per_byte(model, tokenizer, texts.old),
    }


def _bits_per_byte(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> float | None:
    """A text begins as the tokenizer itself begins one, and has no end, for it may have been cut there."""
    if not texts:
        return None
    start = document_token(tokenizer, "bos")
    starts = start is not None and tokenizer("a")["input_ids"][:1] == [start.id]
    score = measure(
        model,
        tokenizer,
        texts,
        document_start="bos" if starts else "none",
        document_end="none",
        block_tokens=min(WINDOW_TOKENS, (model_positions(model) or WINDOW_TOKENS)),
        device=model.device,
    )
    return round(score.bits_per_byte, 4)
