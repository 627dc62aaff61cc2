"""What prefix, span corruption and masked models are measured by, each against a plain loop or the model's own loss."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM, AutoTokenizer

import zhlm.inference.bits_masked as bits_masked
from tiny_bases import bert_folder, gpt2_folder, roberta_folder, t5_folder
from zhlm.config.objective import MaskedConfig, PrefixConfig, SpanCorruptionConfig
from zhlm.errors import RunError
from zhlm.inference.bits import StreamScore
from zhlm.inference.bits_masked import MASKED_PER_DOCUMENT, measure_masked
from zhlm.inference.bits_pieces import Reading, read, shares
from zhlm.inference.bits_prefix import measure_continuation
from zhlm.inference.bits_spans import measure_targets
from zhlm.model.packed import take_documents
from zhlm.objectives.masked import Masked
from zhlm.objectives.prefix import Prefix
from zhlm.objectives.span_corruption import SpanCorruption
from zhlm.records import Blocks

TEXTS = [
    "昨天我妹妹在公园里看书。",
    "The teacher reads the small book in the library.",
    "今天早上，老师去图书馆借了三本书，然后给朋友写信，下午四点半又回学校喝茶。" * 2,
]
BLOCK = 48
Loaded = tuple[Any, Any]


def loud(model: Any) -> Any:
    """Freshly initialised models barely tell tokens apart."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4.0 if parameter.ndim > 1 else 1.0)
    return model.eval()


@pytest.fixture(scope="module", params=[bert_folder, roberta_folder])
def encoder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    folder = request.param(tmp_path_factory.mktemp("encoder"))
    return loud(AutoModelForMaskedLM.from_pretrained(folder)), AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    folder = t5_folder(tmp_path_factory.mktemp("t5"))
    return take_documents(AutoModelForSeq2SeqLM.from_pretrained(folder).eval()), AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    folder: Path = gpt2_folder(tmp_path_factory.mktemp("gpt2"), wordpiece=True)
    return loud(AutoModelForCausalLM.from_pretrained(folder)), AutoTokenizer.from_pretrained(folder)


def reading(tokenizer: Any, texts: list[str] = TEXTS, end: str = "eos") -> Reading:
    return read(tokenizer, texts, document_start="none", document_end=end)


def test_every_byte_is_counted_once() -> None:
    bytes_T, characters_T = shares("中国人民", [(0, 1), (0, 1), (0, 1), (1, 3)])
    assert bytes_T.tolist() == [1, 1, 1, 9] and sum(characters_T) == pytest.approx(4)
    bytes_T, characters_T = shares(" a  b ", [(1, 2), (4, 5)])  # a space belongs to what follows it
    assert bytes_T.tolist() == characters_T.tolist() == [2, 4]
    # A piece that holds the end of one character and the start of the next ties the two together.
    assert shares("中国a", [(0, 1), (0, 2), (1, 2), (2, 3)])[0].tolist() == [2, 2, 2, 1]
    assert [len(part) for part in shares("", [])] == [0, 0]


def test_the_shares_of_all_tokenizers_sum_to_the_text(encoder: Loaded, t5: Loaded, gpt2: Loaded) -> None:
    for _, tokenizer in (encoder, t5, gpt2):
        for text, document in zip(TEXTS, reading(tokenizer).documents, strict=True):
            assert document.bytes_T.sum() == pytest.approx(len(text.encode()))
            assert document.characters_T.sum() == pytest.approx(len(text))
            assert document.bytes_T[-1] == 0  # eos
            assert sum(len(p.ids_T) for p in reading(tokenizer, [text]).pieces(BLOCK)) == len(document.ids_T)


def masked_one_by_one(model: Any, tokenizer: Any, texts: list[str]) -> float:
    """Every token of every text, each in a forward pass of its own."""
    nats = 0.0
    for text in texts:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"] + [tokenizer.sep_token_id]
        for place, token in enumerate(ids):
            if token not in tokenizer.all_special_ids:
                hidden = torch.tensor([[*ids[:place], tokenizer.mask_token_id, *ids[place + 1 :]]])
                with torch.no_grad():
                    nats -= model(hidden).logits[0, place].double().log_softmax(-1)[token].item()
    return nats


def masked_score(loaded: Loaded, texts: list[str], block_tokens: int = 128, config: MaskedConfig | None = None) -> StreamScore:
    model, tokenizer = loaded
    objective = Masked.of(config or MaskedConfig(), tokenizer, model.config, 7)
    return measure_masked(model, reading(tokenizer, texts), objective, block_tokens)


def test_pseudo_likelihood_equals_a_loop_over_all_tokens(encoder: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bits_masked, "MASKED_PER_DOCUMENT", 1000)
    texts = [text[:9] for text in TEXTS[:2]]
    score = masked_score(encoder, texts)
    nats = masked_one_by_one(*encoder, texts)
    num_bytes = sum(len(text.encode()) for text in texts)
    assert score.nats == pytest.approx(nats, rel=1e-4)
    assert score.bits_per_byte == pytest.approx(nats / math.log(2) / num_bytes, rel=1e-4)
    assert (score.measure, score.utf8_bytes, score.sampled_tokens) == ("pseudo_likelihood", num_bytes, score.tokens)


def test_some_tokens_stand_for_all(encoder: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    score = masked_score(encoder, TEXTS)
    assert score == masked_score(encoder, TEXTS)
    assert MASKED_PER_DOCUMENT < score.sampled_tokens <= 3 * MASKED_PER_DOCUMENT < score.tokens
    monkeypatch.setattr(bits_masked, "MASKED_PER_DOCUMENT", 1000)
    assert score.bits_per_byte == pytest.approx(masked_score(encoder, TEXTS).bits_per_byte, rel=0.3)


def test_a_uniform_masked_model_costs_the_same_whatever_is_sampled(encoder: Loaded) -> None:
    model, tokenizer = encoder

    class Uniform:
        config, dtype, device = model.config, model.dtype, model.device

        def forward(self, input_ids: torch.Tensor, **inputs: Any) -> Any:
            return SimpleNamespace(logits=torch.zeros(*input_ids.shape, len(tokenizer)))

        __call__ = forward

    score = measure_masked(Uniform(), reading(tokenizer), Masked.of(MaskedConfig(), tokenizer, model.config, 7), 16)
    assert score.nats == pytest.approx(score.tokens * math.log(len(tokenizer)), rel=1e-6)


def test_a_long_document_is_read_around_the_masked_token(encoder: Loaded) -> None:
    _, tokenizer = encoder
    document = reading(tokenizer, [TEXTS[2]])
    places = np.arange(len(document.documents[0].ids_T) - 1)
    rows = list(bits_masked._rows(document, [places], tokenizer.mask_token_id, 16))
    assert len(rows) == MASKED_PER_DOCUMENT
    for row in rows:
        assert len(row.ids_T) == 16 and row.ids_T[row.place] == tokenizer.mask_token_id
        assert row.place == 8 or row.ids_T[0] == document.documents[0].ids_T[0] or row.ids_T[-1] == document.documents[0].ids_T[-1]


def test_accuracy_is_at_the_objectives_own_masking(encoder: Loaded) -> None:
    model, tokenizer = encoder
    config = MaskedConfig(mask_share=0.5, mask_token_share=0.0, random_share=0.0)  # all is seen as it is
    score = masked_score(encoder, TEXTS, BLOCK, config)
    assert 0.3 * score.tokens < score.masked_tokens < 0.7 * score.tokens
    objective = Masked.of(config, tokenizer, model.config, 7)
    right = 0
    for number, piece in enumerate(reading(tokenizer).pieces(BLOCK)):
        batch = objective.make_batch(Blocks(piece.ids_T[None], [np.array([len(piece.ids_T)], np.uint32)]), [-1 - number])
        targets = batch.targets_BT[0, : len(piece.ids_T)]
        guesses = model(torch.from_numpy(piece.ids_T[None])).logits[0].argmax(-1)
        right += int((guesses == targets).sum())
    assert score.masked_accuracy == pytest.approx(right / score.masked_tokens)


def test_the_continuation_costs_what_the_model_says(gpt2: Loaded) -> None:
    model, tokenizer = gpt2
    prefix = Prefix.of(PrefixConfig(min_share=0.2, max_share=0.6), tokenizer, model.config, 7)
    score = measure_continuation(model, reading(tokenizer), prefix, BLOCK)
    nats, num_bytes, num_tokens = 0.0, 0.0, 0
    for piece in reading(tokenizer).pieces(BLOCK):
        length = len(piece.ids_T)
        given = round(0.4 * length)
        sees = torch.ones(length, length).tril()
        sees[:given, :given] = 1
        mask = torch.zeros(length, length).masked_fill(sees == 0, torch.finfo(torch.float32).min)[None, None]
        with torch.no_grad():
            logits = model(torch.from_numpy(piece.ids_T[None]), attention_mask=mask).logits[0]
        nats += cross_entropy(logits[given - 1 : -1].double(), torch.from_numpy(piece.ids_T[given:]), reduction="sum").item()
        num_bytes += piece.bytes_T[given:].sum()
        num_tokens += length - given
    assert score.nats == pytest.approx(nats, rel=1e-5)
    assert score.bits_per_byte == pytest.approx(nats / math.log(2) / num_bytes, rel=1e-5)
    assert (score.measure, score.tokens, score.documents) == ("continuation", num_tokens, len(TEXTS))


def test_targets_cost_the_models_own_loss(t5: Loaded) -> None:
    model, tokenizer = t5
    objective = SpanCorruption.of(SpanCorruptionConfig(), tokenizer, model.config, 7)
    sentinels = {token: n for n, token in enumerate(objective.sentinels)}
    nats, num_bytes, num_tokens = 0.0, 0.0, 0
    for number, piece in enumerate(reading(tokenizer).pieces(BLOCK)):
        batch = objective.make_batch(Blocks(piece.ids_T[None], [np.array([len(piece.ids_T)], np.uint32)]), [-1 - number])
        labels = batch.targets_BT[0][batch.targets_BT[0] != -100]
        inputs = batch.inputs["input_ids"][0][batch.inputs["document_ids"][0] != 0]
        with torch.no_grad():
            nats += model(input_ids=inputs[None], labels=labels[None]).loss.item() * len(labels)
        num_tokens += len(labels)
        spans: dict[int, int] = {}
        for token in labels.tolist():
            spans |= {token: 0} if token in sentinels else {list(spans)[-1]: spans[list(spans)[-1]] + 1}
        place = 0
        for token in inputs.tolist():
            width = spans[token] if token in sentinels else 1
            num_bytes += piece.bytes_T[place : place + width].sum() if token in sentinels else 0.0
            place += width
        assert place == len(piece.ids_T)
    score = measure_targets(model, reading(tokenizer), objective, BLOCK)
    assert score.nats == pytest.approx(nats, rel=1e-4)
    assert score.bits_per_byte == pytest.approx(nats / math.log(2) / num_bytes, rel=1e-4)
    assert (score.measure, score.tokens) == ("targets", num_tokens)
    assert 0.08 < score.utf8_bytes / sum(len(text.encode()) for text in TEXTS) < 0.25
    assert score == measure_targets(model, reading(tokenizer), objective, BLOCK)


def test_texts_without_anything_to_measure_are_refused(encoder: Loaded, t5: Loaded, gpt2: Loaded) -> None:
    model, tokenizer = gpt2
    prefix = Prefix.of(PrefixConfig(), tokenizer, model.config, 7)
    with pytest.raises(RunError, match="hold nothing to predict"):
        measure_continuation(model, reading(tokenizer, ["", "中"], "none"), prefix, BLOCK)
    with pytest.raises(RunError, match="hold nothing to predict"):
        masked_score(encoder, [""])
    model, tokenizer = t5
    with pytest.raises(RunError, match="hold nothing to predict"):
        measure_targets(model, reading(tokenizer, ["", "中"]), SpanCorruption.of(SpanCorruptionConfig(), tokenizer, model.config, 7), BLOCK)


def test_cls_and_sep_stand_around_documents_where_there_is_no_bos_and_eos(gpt2: Loaded) -> None:
    _, tokenizer = gpt2
    (document,) = read(tokenizer, ["今天"], document_start="bos", document_end="eos").documents
    assert tokenizer.convert_ids_to_tokens(document.ids_T.tolist()) == ["[CLS]", "今", "天", "[SEP]"]
    assert document.bytes_T.tolist() == [0, 3, 3, 0]
