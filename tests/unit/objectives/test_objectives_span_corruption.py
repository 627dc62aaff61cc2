"""Spans as the paper of T5 describes them; what the encoder reads and what the decoder writes are together the text."""

from collections.abc import Callable
from itertools import combinations, pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import T5Config, T5ForConditionalGeneration

from tiny_bases import bert_tokenizer, gpt2_tokenizer, t5_tokenizer
from zhlm.config.objective import SpanCorruptionConfig
from zhlm.errors import BaseModelError, ConfigError
from zhlm.model.packed import take_documents
from zhlm.objectives.batch import IGNORED, WIDTH_STEP, Batch, sum_nats
from zhlm.objectives.span_corruption import SpanCorruption, sentinel_ids
from zhlm.objectives.spans import counts, lengths, typical_lengths
from zhlm.records import Blocks

START, EOS = 0, 1
FIRST = 10
"""The ids of text begin here."""
SENTINELS = tuple(range(1099, 999, -1))


def objective(
    noise_share: float = 0.15, mean_span: float = 3.0, *, seed: int = 3, sentinels: tuple[int, ...] = SENTINELS
) -> SpanCorruption:
    return SpanCorruption(noise_share, mean_span, sentinels, EOS, START, frozenset({EOS}), seed)


def blocks_of(rows: list[list[list[int]]], block_tokens: int = 0) -> Blocks:
    """Blocks of rows of documents."""
    flat = [[token for document in row for token in document] for row in rows]
    ids_BT = np.zeros((len(rows), max([block_tokens, *map(len, flat)])), np.uint16)
    for ids_T, held in zip(ids_BT, flat, strict=True):
        ids_T[: len(held)] = held
    return Blocks(ids_BT, [np.cumsum([len(document) for document in row]).astype(np.uint32) for row in rows])


def text(num: int, seed: int = 0) -> list[int]:
    return np.random.default_rng([num, seed]).integers(FIRST, 900, num).tolist()


def of_document(batch: Batch, row: int, document: int) -> tuple[list[int], list[int], list[int]]:
    """What the encoder reads of it, what the decoder reads, and what it writes."""
    read = batch.inputs["document_ids"][row] == document
    written = batch.inputs["decoder_document_ids"][row] == document
    return (
        batch.inputs["input_ids"][row][read].tolist(),
        batch.inputs["decoder_input_ids"][row][written].tolist(),
        batch.targets_BT[row][written].tolist(),
    )


def spans_in(written: list[int]) -> list[list[int]]:
    """What a document's targets hide, after checking that the sentinels come in order and the last one and eos end them."""
    if not written:
        return []
    assert written[-1] == EOS
    places = [n for n, token in enumerate(written) if token in SENTINELS]
    assert [written[n] for n in places] == list(SENTINELS[: len(places)]) and places[0] == 0 and places[-1] == len(written) - 2
    return [written[start + 1 : end] for start, end in pairwise(places)]


def restored(read: list[int], spans: list[list[int]]) -> list[int]:
    hidden = dict(zip(SENTINELS, spans, strict=False))
    assert [token for token in read if token in SENTINELS] == list(SENTINELS[: len(spans)]), "each once, in order"
    return [token for piece in read for token in hidden.get(piece, [piece])]


def test_the_example_of_the_paper() -> None:
    thank, you, for_, inviting, me, to, your, party, last, week = range(FIRST, FIRST + 10)
    ids_R = np.array([thank, you, for_, inviting, me, to, your, party, last, week, EOS])
    hidden_R = np.isin(ids_R, [for_, inviting, last])
    x, y, z, *_ = SENTINELS
    corrupted = objective().corrupt(ids_R, np.array([11]), hidden_R)
    assert corrupted.input_ids_S.tolist() == [thank, you, x, me, to, your, party, y, week, EOS]
    assert corrupted.targets_T.tolist() == [x, for_, inviting, y, last, z, EOS]
    assert corrupted.decoder_input_ids_T.tolist() == [START, x, for_, inviting, y, last, z]
    assert set(corrupted.documents_S.tolist()) == set(corrupted.decoder_documents_T.tolist()) == {1}


def test_each_document_of_a_block_has_its_own_spans_and_sentinels() -> None:
    """Neighbours at a border are two spans; a document without noise is read only."""
    hidden_R = np.array([False, True, True, False, False, False, True])
    corrupted = objective().corrupt(np.arange(20, 27), np.array([2, 5, 6, 7]), hidden_R)
    x, y, *_ = SENTINELS
    assert corrupted.input_ids_S.tolist() == [20, x, x, 23, 24, 25, x]
    assert corrupted.documents_S.tolist() == [1, 1, 2, 2, 2, 3, 4]
    assert corrupted.targets_T.tolist() == [x, 21, y, EOS, x, 22, y, EOS, x, 26, y, EOS]
    assert corrupted.decoder_input_ids_T.tolist() == [START, x, 21, y, START, x, 22, y, START, x, 26, y]
    assert corrupted.decoder_documents_T.tolist() == [1] * 4 + [2] * 4 + [4] * 4


rows_of_lengths = st.lists(st.lists(st.integers(1, 60), min_size=1, max_size=6), min_size=1, max_size=3)


@given(
    rows_of_lengths,
    st.integers(0, 20),
    st.sampled_from([0.05, 0.15, 0.5, 0.9]),
    st.sampled_from([1.0, 3.0, 8.5]),
    st.booleans(),
    st.integers(),
)
def test_inputs_and_targets_are_together_the_text(
    rows: list[list[int]], padding: int, noise_share: float, mean_span: float, ends: bool, seed: int
) -> None:
    documents = [[[*text(num, seed % 97), *([EOS] if ends else [])] for num in row] for row in rows]
    block_tokens = max(sum(map(len, row)) for row in documents) + padding
    batch = objective(noise_share, mean_span, seed=seed).make_batch(blocks_of(documents, block_tokens), range(len(rows)))
    most_read, most_written = lengths(block_tokens, noise_share, mean_span)
    for row, held in enumerate(documents):
        for number, document in enumerate(held, 1):
            read, shifted, written = of_document(batch, row, number)
            spans = spans_in(written)
            assert restored(read, spans) == document
            assert shifted == [START, *written][: len(written)]
            assert not any(EOS in span for span in spans)
            noise, num_spans = counts(np.array([len(document) - ends]), noise_share, mean_span)
            assert (sum(map(len, spans)), len(spans)) == (noise[0], num_spans[0]) and all(spans)
        for name, width in (("document_ids", most_read), ("decoder_document_ids", most_written)):
            own = batch.inputs[name][row]
            used = int((own > 0).sum())
            assert used <= width and own[:used].tolist() == sorted(own[:used].tolist()) and not own[used:].any()
    assert torch.equal(batch.targets_BT == IGNORED, batch.inputs["decoder_document_ids"] == 0)
    assert batch.fills_B.tolist() == [sum(map(len, row)) for row in documents]


@pytest.mark.parametrize(
    ("maskable", "noise", "spans"),
    [(568, 85, 28), (512, 77, 26), (100, 15, 5), (10, 2, 1), (4, 1, 1), (3, 0, 0), (2, 0, 0), (1, 0, 0), (0, 0, 0)],
)
def test_noise_and_spans_are_counted_as_in_the_papers_code(maskable: int, noise: int, spans: int) -> None:
    assert [int(n[0]) for n in counts(np.array([maskable]), 0.15, 3.0)] == [noise, spans]


@pytest.mark.parametrize("noise_share", [0.15, 0.3, 0.5])
@pytest.mark.parametrize("mean_span", [1.0, 3.0, 10.0])
def test_counts_of_all_lengths(noise_share: float, mean_span: float) -> None:
    """Against the rule in plain Python, whose `round` goes to even as TensorFlow's does."""
    for maskable, noise, spans in zip(range(1500), *counts(np.arange(1500), noise_share, mean_span), strict=True):
        expected = max(min(round(maskable * noise_share), maskable - 1), 0)
        assert noise == expected
        assert spans == (max(round(expected / mean_span), 1) if expected else 0)


def test_the_widths_of_the_paper() -> None:
    """568 tokens and eos become 512 and 114; the last sentinel, which its code leaves out and its text has, is one more."""
    batch = objective().make_batch(blocks_of([[[*text(568), EOS]]]), [0])
    read, _, written = of_document(batch, 0, 1)
    assert (len(read), len(written)) == (512, 115)
    assert batch.inputs["input_ids"].shape == (1, 512) and batch.targets_BT.shape == (1, 128)


@pytest.mark.parametrize(("noise_share", "mean_span"), [(0.15, 3.0), (0.5, 3.0), (0.3, 1.0), (0.9, 2.0), (0.01, 3.0)])
def test_lengths_hold_for_every_split_into_documents(noise_share: float, mean_span: float) -> None:
    block_tokens = 12
    most_read, most_written = lengths(block_tokens, noise_share, mean_span)
    reached = [0, 0]
    for num_cuts in range(block_tokens):
        for cuts in combinations(range(1, block_tokens), num_cuts):
            sizes = np.diff([0, *cuts, block_tokens])
            noise, spans = counts(sizes, noise_share, mean_span)
            reached = np.maximum(reached, [(sizes - noise + spans).sum(), (noise + spans + 2)[spans > 0].sum()]).tolist()
    assert reached == [most_read, most_written]


def test_the_largest_batch_is_as_wide_as_lengths_say() -> None:
    assert lengths(568, 0.15, 3.0) == (568, 568)
    batch = objective().largest_batch(2, 568)
    assert batch.inputs["input_ids"].shape == batch.targets_BT.shape == (2, 576)
    assert (batch.inputs["document_ids"] > 0).sum(1).tolist() == (batch.targets_BT != IGNORED).sum(1).tolist() == [568, 568]
    wide = objective(0.5).largest_batch(1, 101)
    assert lengths(101, 0.5, 3.0) == (101, 202) and int((wide.targets_BT != IGNORED).sum()) == 200, "the last token is alone"


@pytest.mark.parametrize(("longest", "width"), [(4, 64), (64, 64), (70, 64), (72, 128), (130, 128)])
def test_a_batch_is_as_wide_as_its_longest_row(longest: int, width: int) -> None:
    batch = objective().make_batch(blocks_of([[text(longest)], [text(1)]], 300), [0, 1])
    assert batch.inputs["input_ids"].shape == batch.inputs["document_ids"].shape == (2, width)
    assert batch.targets_BT.shape == batch.inputs["decoder_input_ids"].shape == batch.inputs["decoder_document_ids"].shape == (2, 64)
    assert {t.dtype for t in (*batch.inputs.values(), batch.targets_BT, batch.fills_B)} == {torch.int64}


def test_every_placement_of_spans_is_equally_likely() -> None:
    """Two spans of one token in five, apart: six ways."""
    num = 12_000
    ids_R, ends_D = np.full(5 * num, FIRST), np.arange(5, 5 * num + 1, 5)
    hidden = objective(0.4, 1.0).hide(ids_R, ends_D, np.random.default_rng(1)).reshape(num, 5)
    ways, found = np.unique(hidden, axis=0, return_counts=True)
    assert len(ways) == 6 and (hidden.sum(1) == 2).all() and not (hidden[:, 1:] & hidden[:, :-1]).any()
    assert np.abs(found - num / 6).max() < 5 * np.sqrt(num / 6)


def test_all_places_of_a_short_document_are_learned() -> None:
    num = 4000
    ids_R = np.tile([*text(9), EOS], num)
    hidden = objective().hide(ids_R, np.arange(10, 10 * num + 1, 10), np.random.default_rng(1)).reshape(num, 10)
    share = hidden.mean(0)
    assert share[-1] == 0.0 and (share[:-1] > 0.05).all()
    assert hidden.sum() == num * round(9 * 0.15)


def test_bos_is_not_hidden_either() -> None:
    bos = 2
    both = SpanCorruption(0.9, 1.0, SENTINELS, EOS, START, frozenset({bos, EOS}), 0)
    ids_R = np.array([bos, *text(20), EOS, bos, EOS, EOS])
    hidden_R = both.hide(ids_R, np.array([22, 24, 25]), np.random.default_rng(1))
    assert hidden_R[1:21].sum() == 18 and not hidden_R[[0, 21, 22, 23, 24]].any()


def test_a_block_without_a_document_long_enough_teaches_nothing() -> None:
    batch = objective().make_batch(blocks_of([[text(3), text(1), [*text(2), EOS]], [[0]]]), [0, -1])
    assert batch.num_targets == 0 and batch.num_tokens == 8
    assert batch.targets_BT.shape == (2, WIDTH_STEP) and not batch.inputs["decoder_document_ids"].any()
    assert batch.inputs["input_ids"][0, :7].tolist() == [*text(3), *text(1), *text(2), EOS]


def test_a_rows_spans_are_drawn_from_its_key_alone() -> None:
    rows = [[text(80), text(30)], [text(100)], [text(55)]]
    keys = [7, 2**40 + 1, -3]
    together = objective().make_batch(blocks_of(rows), keys)
    again = objective().make_batch(blocks_of(rows), keys)
    assert all(torch.equal(together.inputs[name], again.inputs[name]) for name in together.inputs)
    for row, (documents, key) in enumerate(zip(rows, keys, strict=True)):
        alone = objective().make_batch(blocks_of([documents]), [key])
        assert of_document(alone, 0, 1) == of_document(together, row, 1)
        for other in (
            objective().make_batch(blocks_of([documents]), [key + 1]),
            objective(seed=4).make_batch(blocks_of([documents]), [key]),
        ):
            assert of_document(other, 0, 1) != of_document(together, row, 1)


def test_packed_documents_cost_what_they_cost_alone_with_labels_as_transformers_takes_them() -> None:
    torch.manual_seed(0)
    size = {"vocab_size": 1100, "d_model": 32, "d_kv": 16, "d_ff": 48, "num_layers": 2, "num_heads": 2}
    model = T5ForConditionalGeneration(T5Config(**size, decoder_start_token_id=START)).eval()
    batch = objective().make_batch(blocks_of([[[*text(40), EOS], text(2), [*text(25), EOS]], [text(33)]]), [0, 1])
    alone = 0.0
    with torch.no_grad():
        for row, document in ((0, 1), (0, 3), (1, 1)):
            read, _, written = of_document(batch, row, document)
            alone += float(model(input_ids=torch.tensor([read]), labels=torch.tensor([written])).loss) * len(written)
        assert float(sum_nats(take_documents(model), batch)) == pytest.approx(alone, rel=1e-5)
    muted = sum_nats(model, batch.mute_after(0))
    muted.backward()
    assert float(muted.detach()) == 0.0 and not any(float(p.grad.abs().max()) for p in model.parameters() if p.grad is not None)


def test_it_is_made_for_a_tokenizer_and_a_model() -> None:
    tokenizer = t5_tokenizer()
    made = SpanCorruption.of(SpanCorruptionConfig(noise_share=0.2), tokenizer, T5Config(decoder_start_token_id=5), 9)
    assert made.sentinels == tuple(tokenizer.convert_tokens_to_ids(f"<extra_id_{n}>") for n in range(100))
    assert made.sentinels[0] == len(tokenizer) - 1, "T5's first sentinel has its last id"
    assert (made.eos, made.decoder_start, made.edges) == (tokenizer.eos_token_id, 5, {tokenizer.eos_token_id})
    assert (made.noise_share, made.mean_span, made.seed) == (0.2, 3.0, 9)
    assert SpanCorruption.of(SpanCorruptionConfig(), tokenizer, T5Config(pad_token_id=7), 9).decoder_start == 7


def vocabulary(*texts: str) -> SimpleNamespace:
    return SimpleNamespace(get_vocab=lambda: {text: n for n, text in enumerate(texts)}, name_or_path="tok")


def test_sentinels_are_found_as_t5_and_mt5_spell_them() -> None:
    assert sentinel_ids(vocabulary("a", "<extra_id_2>", "<extra_id_1>", "<extra_id_0>", "<extra_id_4>")) == (3, 2, 1)
    assert sentinel_ids(vocabulary("\u2581<extra_id_1>", "\u2581<extra_id_0>", "b")) == (1, 0)
    assert sentinel_ids(vocabulary("a", "<extra_id_1>")) == ()


@pytest.mark.parametrize("tokenizer", [gpt2_tokenizer, bert_tokenizer])
def test_a_tokenizer_without_sentinels_is_refused(tokenizer: Callable[[], object]) -> None:
    with pytest.raises(BaseModelError, match=r"has no <extra_id_0>; add them with vocab: .*special_tokens: \{sentinels: 100\}") as caught:
        SpanCorruption.of(SpanCorruptionConfig(), tokenizer(), T5Config(), 0)
    assert "\n" not in str(caught.value)


def test_a_tokenizer_without_eos_and_a_model_without_a_start_are_refused() -> None:
    nothing = SimpleNamespace(**vars(vocabulary("<extra_id_0>")), eos_token_id=None, sep_token_id=None)
    with pytest.raises(BaseModelError, match=r"tok has no eos token; add one with vocab\.special_tokens\.eos_token"):
        SpanCorruption.of(SpanCorruptionConfig(), nothing, T5Config(), 0)
    with pytest.raises(BaseModelError, match=r"the t5 model has no decoder_start_token_id"):
        SpanCorruption.of(SpanCorruptionConfig(), t5_tokenizer(), T5Config(pad_token_id=None), 0)


def test_a_block_with_more_spans_than_sentinels_is_refused_with_the_one_that_fits() -> None:
    objective().check_block(568)
    with pytest.raises(ConfigError, match=r"block_tokens 4096 needs 206 sentinels and the tokenizer has 100; .*\{sentinels: 206") as caught:
        objective().check_block(4096)
    fits = int(str(caught.value).split("block_tokens to ")[1].split()[0])
    objective().check_block(fits)
    with pytest.raises(ConfigError):
        objective().check_block(fits + 1)
    objective().make_batch(blocks_of([[text(fits)]]), [0])


@pytest.mark.parametrize("block_tokens", [1, 4, 30, 512])
def test_what_a_plan_says_of_a_block_is_what_becomes_of_it(block_tokens: int) -> None:
    batch = objective().make_batch(blocks_of([[text(block_tokens)]]), [0])
    read, written = (int((batch.inputs[name] > 0).sum()) for name in ("document_ids", "decoder_document_ids"))
    assert typical_lengths(block_tokens, 0.15, 3.0) == (read, written)
