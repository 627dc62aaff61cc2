"""The proof that documents see neither each other nor padding, for each objective on the classes that take it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertForMaskedLM, GPTNeoConfig, GPTNeoForCausalLM, PreTrainedModel, T5ForConditionalGeneration

from tiny_bases import bert_folder, bloom_folder, gpt2_folder, roberta_folder, t5_folder
from zhlm.config.objective import CausalConfig, MaskedConfig, PrefixConfig, SpanCorruptionConfig
from zhlm.errors import BaseModelError
from zhlm.model.load import load_model
from zhlm.model.packed import take_documents
from zhlm.objectives.batch import BatchMaker
from zhlm.objectives.causal import Causal
from zhlm.objectives.isolation import check_isolation
from zhlm.objectives.masked import Masked
from zhlm.objectives.prefix import Prefix
from zhlm.objectives.span_corruption import SpanCorruption
from zhlm.tokenizer.load import load_tokenizer

PAIRS = {
    "gpt2 causal": (gpt2_folder, Causal, CausalConfig()),
    "bloom causal": (bloom_folder, Causal, CausalConfig()),
    "gpt2 prefix": (gpt2_folder, Prefix, PrefixConfig()),
    "bert masked": (bert_folder, Masked, MaskedConfig()),
    "roberta masked": (roberta_folder, Masked, MaskedConfig(mask_share=0.01)),
    "t5 span_corruption": (t5_folder, SpanCorruption, SpanCorruptionConfig()),
    "t5 little noise": (t5_folder, SpanCorruption, SpanCorruptionConfig(noise_share=0.01)),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bases")


def pair(name: str, folder: Path) -> tuple[PreTrainedModel, BatchMaker]:
    make, kind, config = PAIRS[name]
    base = folder / make.__name__
    source = str(base if base.exists() else make(base))
    model = load_model(source)
    with torch.no_grad():  # freshly initialised models barely attend, so a leak would hide in rounding
        for parameter in model.parameters():
            parameter.mul_(8.0 if parameter.ndim > 1 else 1.0)
    return model, kind.of(config, load_tokenizer(source), model.config, 7)  # type: ignore[attr-defined]


@pytest.mark.parametrize("packing", ["best_fit", "none"])
@pytest.mark.parametrize("name", PAIRS)
def test_each_objective_keeps_documents_apart_on_its_classes(name: str, packing: str, folder: Path) -> None:
    model, objective = pair(name, folder)
    check_isolation(take_documents(model), objective, packing)
    if isinstance(objective, Causal):
        check_isolation(take_documents(model), Causal(left_padding=True), packing)


@pytest.mark.parametrize(
    ("name", "packing"),
    [
        ("gpt2 causal", "best_fit"),
        ("gpt2 causal", "none"),
        ("gpt2 prefix", "best_fit"),
        ("bert masked", "best_fit"),
        ("bert masked", "none"),
        ("roberta masked", "best_fit"),
    ],
)
def test_a_class_that_ignores_masks_and_positions_is_found_out(name: str, packing: str, folder: Path) -> None:
    model, objective = pair(name, folder)

    class Careless(type(model)):  # type: ignore[misc]
        def forward(self, input_ids: Any = None, attention_mask: Any = None, position_ids: Any = None, **rest: Any) -> Any:
            return super().forward(input_ids=input_ids, **rest)

    model.__class__ = Careless
    left = Causal(left_padding=True) if packing == "none" and isinstance(objective, Causal) else objective
    what = "padding changes a document's" if packing == "none" else "a packed document changes the next one's"
    with pytest.raises(BaseModelError, match=rf"in Careless {what} log-probabilities by \d+\.\d+, expected 0") as caught:
        check_isolation(model, left, packing)
    assert "\n" not in str(caught.value)
    assert ("or set pack.packing: none" in str(caught.value)) is (packing == "best_fit" and isinstance(objective, Masked))


def test_a_t5_that_reads_across_documents_is_found_out(folder: Path) -> None:
    model, objective = pair("t5 span_corruption", folder)

    class Careless(T5ForConditionalGeneration):  # type: ignore[misc]
        def forward(  # type: ignore[override]
            self, input_ids: Any, document_ids: Any, decoder_input_ids: Any, decoder_document_ids: Any, **rest: Any
        ) -> Any:
            return super().forward(input_ids=input_ids, decoder_input_ids=decoder_input_ids, **rest)

    model.__class__ = Careless
    with pytest.raises(BaseModelError, match="in Careless a packed document changes the next one's"):
        check_isolation(model, objective, "best_fit")


def test_inputs_that_a_class_does_not_take_are_named(folder: Path) -> None:
    model, objective = pair("t5 span_corruption", folder)
    with pytest.raises(BaseModelError, match=r"T5ForConditionalGeneration takes no document_ids, so documents .*; choose another base$"):
        check_isolation(model, objective, "best_fit")
    bert, masked = pair("bert masked", folder)

    class NoMask(BertForMaskedLM):  # type: ignore[misc]
        def forward(self, input_ids: Any, position_ids: Any) -> Any:  # type: ignore[override]
            raise AssertionError("never asked")

    bert.__class__ = NoMask
    with pytest.raises(BaseModelError, match=r"takes no attention_mask, so .*; choose another base, or set pack.packing: none$"):
        check_isolation(bert, masked, "best_fit")


@pytest.mark.parametrize("packing", ["best_fit", "none"])
def test_a_decoder_that_hides_what_comes_later_is_no_prefix_model(packing: str) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        sizes = {"vocab_size": 99, "hidden_size": 16, "num_layers": 1, "num_heads": 2, "max_position_embeddings": 64}
        ends = {"bos_token_id": 0, "eos_token_id": 0}
        model = GPTNeoForCausalLM(GPTNeoConfig(attention_types=[[["global"], 1]], intermediate_size=16, **sizes, **ends)).eval()
    check_isolation(model, Causal(), packing)
    with pytest.raises(BaseModelError, match="in GPTNeoForCausalLM a prefix does not see what comes later in it"):
        check_isolation(model, Prefix(0.1, 0.9, 7), packing)
