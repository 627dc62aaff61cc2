"""Tokenizers trained on the spot, one of each family, and texts in both languages, as fixtures."""

import random

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

ENGLISH = [
    f"{who} {does} the {size} {what} in the {place}; it's {number} o'clock, and nobody's there."
    for who in ("The teacher", "My sister", "A student")
    for does in ("reads", "buys", "paints")
    for size in ("small", "old", "green")
    for what in ("book", "table", "bicycle")
    for place in ("park", "library")
    for number in (3, 11)
]
LLAMA3_CUT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def chinese_texts(num: int = 300, seed: int = 3) -> list[str]:
    rng = random.Random(seed)
    who = ["老师", "小王", "我妹妹", "那个学生", "張先生", "医生"]
    does = ["在公园里看书", "去图书馆借了三本书", "买了一辆自行车", "给朋友写信", "騎車去學校", "喝茶"]
    when = ["今天早上", "2024年3月", "下午四点半", "去年冬天", "昨天"]
    rare = ["𠮷野家", "👍🏽", "（注：见附录）", "def f(x):", "OK", "——", "……", "龘"]
    return [f"{rng.choice(when)}，{rng.choice(who)}{rng.choice(does)}。{rng.choice(rare)}" * rng.randint(1, 2) for _ in range(num)]


def train(kind: str) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer trained on English, of one of the families whose files look different."""
    backend = Tokenizer(models.BPE())
    backend.decoder = decoders.ByteLevel()
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=kind == "prefix_space")
    if kind in ("llama3", "qwen"):
        cut = pre_tokenizers.Split(Regex(LLAMA3_CUT), behavior="isolated")
        backend.pre_tokenizer = pre_tokenizers.Sequence([cut, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    if kind == "qwen":
        backend.normalizer = normalizers.NFC()
    first = ["<|endoftext|>"] if kind == "gpt2" else []
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=first, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    backend.train_from_iterator(ENGLISH, trainer)
    if kind == "llama3":
        backend.model.ignore_merges = True
        backend.add_special_tokens(["<|begin_of_text|>", "<|endoftext|>"])
        bos = ("<|begin_of_text|>", backend.token_to_id("<|begin_of_text|>"))
        backend.post_processor = processors.TemplateProcessing(single=f"{bos[0]} $A", special_tokens=[bos])
    elif kind != "gpt2":
        backend.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
        backend.add_tokens(["<tool>"])
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>", pad_token="<|endoftext|>", model_max_length=77)


KINDS = ["gpt2", "qwen", "llama3", "prefix_space"]


@pytest.fixture(params=KINDS)
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerFast:
    return train(request.param)


@pytest.fixture
def gpt2_tokenizer() -> PreTrainedTokenizerFast:
    return train("gpt2")


@pytest.fixture
def english() -> list[str]:
    return ENGLISH


@pytest.fixture
def chinese() -> list[str]:
    return chinese_texts()
