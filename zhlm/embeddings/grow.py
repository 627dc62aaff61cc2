"""The model's part of an extension: new rows, started as the config asks, or as measuring on held-out text says is best."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, get_args

from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from zhlm.config.schema import StreamConfig
from zhlm.config.vocabulary import Init, VocabConfig
from zhlm.corpus.read import read_documents
from zhlm.corpus.streams import held_out_of
from zhlm.embeddings.compare import TEXT_BYTES, Comparison, Texts, compare, first_texts
from zhlm.embeddings.growth import Growth, growth
from zhlm.embeddings.initialise import Speller, deviation_of, mean, mean_noise, random, subword_mean
from zhlm.embeddings.similarity import similarity
from zhlm.model.inspect import is_tied
from zhlm.model.resize import InitRows, add_rows
from zhlm.text.normalise import normalise
from zhlm.tokenizer.encode import TokenizersEncoder
from zhlm.tokenizer.load import tokenizer_json

INITS: tuple[Init, ...] = get_args(Init)


@dataclass(frozen=True)
class Extension:
    """A tokenizer before and after, and what its new pieces are made of."""

    before: PreTrainedTokenizerFast
    after: PreTrainedTokenizerFast
    pieces: list[str]
    """In the order of their ids, from `first_id` on."""
    first_id: int
    base: Speller


def grow(
    model: PreTrainedModel, extension: Extension, vocab: VocabConfig, learn_texts: Sequence[str], held_out: Texts
) -> tuple[dict[str, Any], Comparison | None]:
    """Give the model its new rows. Returns the facts for the manifest, and the comparison where one was asked for.

    `learn_texts` are what `similarity` learns its vectors from.

    Raises: ConfigError for a comparison on a model that is not causal.
    """
    facts: dict[str, Any] = {}
    ways = _ways(model, extension, learn_texts, facts)
    comparison: Comparison | None = None
    if vocab.compare_init or vocab.init == "auto":
        comparison = compare(
            model,
            extension.before,
            extension.after,
            extension.first_id,
            {name: ways[name]() for name in INITS},
            held_out,
            pad_to_multiple=vocab.pad_to_multiple,
        )
    chosen = comparison.best if comparison is not None and vocab.init == "auto" else str(vocab.init)
    add_rows(model, extension.first_id, len(extension.pieces), ways[chosen](), pad_to_multiple=vocab.pad_to_multiple)
    return {"init": chosen, "init_asked": vocab.init} | facts, comparison


def growth_of(model: PreTrainedModel, rows_before: int, tokens_share: float) -> Growth:
    """What the rows that a model got cost it."""
    inputs = model.get_input_embeddings()
    rows, width = inputs.weight.shape
    tied, biased = is_tied(model), getattr(model.get_output_embeddings(), "bias", None) is not None
    of_row = width * (1 if tied else 2) + biased
    lookups = (m.weight for m in model.modules() if isinstance(m, nn.Embedding) and m.weight is not inputs.weight)
    return growth(
        parameters=sum(p.numel() for p in model.parameters()) - (rows - rows_before) * of_row,
        width=width,
        rows_before=rows_before,
        rows_after=rows,
        tied=tied,
        biased=biased,
        positions=sum(weight.numel() for weight in lookups),
        value_bytes=inputs.weight.element_size(),
        tokens_share=tokens_share,
    )


def held_out(
    streams: Sequence[StreamConfig], resolve: Callable[[str], str], samples: Mapping[str, Sequence[str]]
) -> tuple[list[str], Texts]:
    """Texts of the new streams to learn vectors from, and texts of all streams to measure on: from the held-out files, or where a stream
    has none, the last documents of its sample, which vectors are then not learned from (pieces were).

    Raises: CorpusError for a held-out file that is missing or broken.
    """
    learn_texts: list[str] = []
    measured: dict[str, list[str]] = {"new": [], "old": []}
    for stream in streams:
        limit_bytes = TEXT_BYTES // sum(s.role == stream.role for s in streams)
        files, sample = held_out_of(stream, resolve), list(samples[stream.name])
        if files:
            skips = stream.skip_non_text
            documents = (d for file in files for batch in read_documents(file, stream.field, 64, skips) for d in batch)
            texts = first_texts((normalise(d.text) for d in documents), limit_bytes)
        else:
            # Of few documents, each is better used for both than for one.
            texts = first_texts(reversed(sample[len(sample) // 2 :]), limit_bytes)
            sample = sample[: -len(texts)] or sample
        measured[stream.role] += texts
        learn_texts += sample if stream.role == "new" else []
    outside = all(s.held_out for s in streams if s.role == "new")
    return learn_texts, Texts(**measured, origin="held-out files" if outside else "documents that pieces were learned from too")


def _ways(
    model: PreTrainedModel, extension: Extension, learn_texts: Sequence[str], facts: dict[str, Any]
) -> dict[str, Callable[[], InitRows]]:
    """How to make each initialisation. Called twice, one that draws draws the same rows."""
    pieces = extension.pieces

    @cache
    def similar() -> InitRows:
        ids_I, offsets = TokenizersEncoder(tokenizer_json(extension.after)).encode_batch(learn_texts)
        mixture, facts["init_unseen_pieces"] = similarity(ids_I, offsets, extension.first_id, extension.base.merge(pieces))
        return mixture

    return {
        "subword_mean": lambda: subword_mean(pieces, extension.base),
        "mean": lambda: mean(len(pieces)),
        "mean_noise": lambda: mean_noise(len(pieces)),
        "similarity": similar,
        "random": lambda: random(len(pieces), deviation_of(model.config)),
    }
