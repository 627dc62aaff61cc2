import math

import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import BloomConfig, BloomForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from zhlm.errors import BaseModelError, RunError
from zhlm.inference.bits import _windows, first_characters, measure

TEXTS = [
    "The rain stopped at seven.",
    "今天下午三点，小明在图书馆看了两本书。",
    "a",
    "中",
    "𠮷野家 mixed 文字 with emoji 🙂 and more words so that it is long. " * 3,
]


def byte_tokenizer(merges=0, specials=("<s>", "</s>")):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=256 + merges + len(specials),
        special_tokens=list(specials),
        initial_alphabet=alphabet,
        show_progress=False,
        min_frequency=1,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    names = {"bos_token": specials[0], "eos_token": specials[1]} if specials else {}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def llama(vocabulary, uniform=False, positions=64):
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=positions,
        initializer_range=0.2,
        bos_token_id=None,
        eos_token_id=None,
    )
    model = LlamaForCausalLM(config).eval()
    if uniform:
        torch.nn.init.zeros_(model.lm_head.weight)
    return model


def gpt2(vocabulary):
    torch.manual_seed(3)
    return GPT2LMHeadModel(GPT2Config(vocab_size=vocabulary, n_embd=32, n_layer=2, n_head=4, n_positions=64, initializer_range=0.2)).eval()


def bloom(vocabulary):
    torch.manual_seed(3)
    return BloomForCausalLM(BloomConfig(vocab_size=vocabulary, hidden_size=32, n_layer=2, n_head=4, initializer_range=0.2)).eval()


def scored(model, tokenizer, texts, start="none", end="none", block_tokens=64):
    return measure(model, tokenizer, texts, document_start=start, document_end=end, block_tokens=block_tokens, device="cpu")


def test_a_uniform_model_of_bytes_needs_eight_bits_per_byte():
    score = scored(llama(256, uniform=True), byte_tokenizer(specials=()), TEXTS)
    assert score.bits_per_byte == pytest.approx(8.0, abs=1e-5)
    first_bytes = sum(len(t[0].encode()) for t in TEXTS)
    assert score.utf8_bytes == sum(len(t.encode()) for t in TEXTS) - first_bytes
    assert score.tokens == score.utf8_bytes
    assert score.documents == len(TEXTS)


def test_the_number_does_not_depend_on_the_tokenizer():
    """Four letters drawn at random carry two bits each, whether they are read one by one or in pairs."""
    generator = torch.Generator().manual_seed(5)
    texts = ["".join("abcd"[i] for i in torch.randint(4, (40,), generator=generator).tolist()) for _ in range(6)]
    for size in (1, 2, 4):
        words = [""]
        for _ in range(size):
            words = [w + c for w in words for c in "abcd"]
        tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}))
        tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("." * size), "isolated")
        fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
        score = scored(llama(4**size, uniform=True), fast, texts)
        assert score.bits_per_byte == pytest.approx(2.0, abs=1e-5)
        assert score.bits_per_character == pytest.approx(2.0, abs=1e-5)
        assert score.tokens == 6 * (40 // size - 1)


@pytest.mark.parametrize(("start", "end"), [("none", "none"), ("none", "eos"), ("bos", "none"), ("bos", "eos")])
@pytest.mark.parametrize("make", [llama, gpt2, bloom])
def test_batches_equal_one_by_one(start, end, make):
    tokenizer = byte_tokenizer(merges=60)
    model = make(len(tokenizer))
    texts = TEXTS if start == "bos" else [t for t in TEXTS if len(t) > 1]
    together = scored(model, tokenizer, texts, start, end, block_tokens=32)
    alone = [scored(model, tokenizer, [t], start, end, block_tokens=32) for t in texts]
    assert together.nats == pytest.approx(sum(s.nats for s in alone), rel=1e-6)
    assert together.tokens == sum(s.tokens for s in alone)
    assert together.utf8_bytes == sum(s.utf8_bytes for s in alone)
    assert together == scored(model, tokenizer, texts, start, end, block_tokens=32)


def test_against_a_plain_forward_pass():
    tokenizer = byte_tokenizer(60)
    model = llama(len(tokenizer), positions=512)
    for text in TEXTS:
        ids = [tokenizer.bos_token_id, *tokenizer(text)["input_ids"], tokenizer.eos_token_id]
        log_probabilities = model(torch.tensor([ids])).logits[0, :-1].double().log_softmax(-1)
        expected = -log_probabilities.gather(1, torch.tensor(ids[1:])[:, None]).sum().item()
        score = scored(model, tokenizer, [text], "bos", "eos", block_tokens=512)
        assert score.nats == pytest.approx(expected, rel=1e-5)
        assert score.tokens == len(ids) - 1
        assert score.bits_per_byte == pytest.approx(expected / math.log(2) / len(text.encode()), rel=1e-5)
        assert score.bits_per_character == pytest.approx(expected / math.log(2) / len(text), rel=1e-5)


def test_the_end_of_a_document_costs_bits_and_adds_no_byte():
    tokenizer = byte_tokenizer()
    model = llama(len(tokenizer), uniform=True)
    without, with_end = scored(model, tokenizer, TEXTS), scored(model, tokenizer, TEXTS, end="eos")
    assert with_end.utf8_bytes == without.utf8_bytes
    assert with_end.nats - without.nats == pytest.approx(len(TEXTS) * math.log(258), rel=1e-5)


def test_a_first_character_of_several_tokens_is_left_out_whole():
    assert first_characters([(0, 1), (0, 1), (0, 1), (1, 3)]) == (3, 1)
    assert first_characters([(0, 2), (2, 3)]) == (1, 2)
    assert first_characters([(0, 1)]) == (1, 1)
    # A piece that holds the end of one character and the start of the next ties the two together.
    assert first_characters([(0, 1), (0, 2), (1, 2), (2, 3)]) == (3, 2)


@pytest.mark.parametrize("block_tokens", [1, 2, 4, 7, 16])
@pytest.mark.parametrize("length", [1, 2, 5, 16, 17, 18, 63])
def test_windows_score_every_token_once_with_half_a_window_of_context(block_tokens, length):
    tokens = list(range(length))
    windows = _windows(tokens, 1, block_tokens)
    assert [t for w in windows for t in w.tokens[w.scored_from :]] == tokens[1:]
    for window in windows:
        assert len(window.tokens) <= block_tokens + 1
        assert window.scored_from >= 1
        assert window.tokens[0] == 0 or window.scored_from >= block_tokens / 2


def test_a_tokenizer_without_the_token_asked_for_is_named():
    with pytest.raises(BaseModelError, match=r"no bos or cls token and pack.document_start is bos; set pack.document_start: none"):
        scored(llama(256), byte_tokenizer(specials=()), TEXTS, start="bos")


def test_texts_without_anything_to_predict_are_refused():
    tokenizer = byte_tokenizer()
    with pytest.raises(RunError, match="hold nothing to predict"):
        scored(llama(len(tokenizer)), tokenizer, ["a", "", "好"], end="eos")
    assert scored(llama(len(tokenizer)), tokenizer, ["a", "", "好"], start="bos").utf8_bytes == 4
