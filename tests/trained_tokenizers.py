"""Tokenizers trained on the spot, one of each family, texts in both languages as fixtures, and what is learned from these."""

import json
import random
import re
import string
from collections import Counter

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from zhlm.pieces.base import Base
from zhlm.pieces.kinds import take_apart
from zhlm.pieces.learn import Learned, learn

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


def train_sentencepiece(form: str = "llama") -> PreTrainedTokenizerFast:
    """A SentencePiece BPE tokenizer with byte fallback trained on English, in one of the forms that its tokenizer.json comes in."""
    backend = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=420, special_tokens=special, initial_alphabet=["\u4e2d"], show_progress=False)
    backend.train_from_iterator(ENGLISH, trainer)
    spec = json.loads(backend.to_str())
    spec["added_tokens"] = spec["added_tokens"][:3]  # the pieces of bytes are ordinary ones
    backend = Tokenizer.from_str(json.dumps(spec))
    backend.pre_tokenizer = None
    strip = [decoders.Strip(" ", 1, 0)]
    if form == "llama":
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    elif form == "metaspace":
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    else:
        strip = []
        backend.normalizer = normalizers.Replace(" ", "\u2581")
    backend.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), *strip])
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>", model_max_length=77)


def train_wordpiece(chinese_chars: bool = True) -> PreTrainedTokenizerFast:
    """A WordPiece tokenizer of English words and letters (the library's trainer numbers its pieces in another order each time).

    `chinese_chars`: whether each Chinese character is a word.
    """
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = [*string.ascii_lowercase, *string.digits]
    words = sorted({word for text in ENGLISH for word in re.findall("[a-z]{2,}", text.lower())} - {"bicycle"})
    pieces = [*special, *letters, *(f"##{letter}" for letter in letters), *".,;:!?'", "\u4e2d", "bi", "##cy", *words]
    backend = Tokenizer(models.WordPiece({piece: row for row, piece in enumerate(pieces)}, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(handle_chinese_chars=chinese_chars)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    backend.add_special_tokens(special)
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {"unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "mask_token": "[MASK]"}
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    return PreTrainedTokenizerFast(tokenizer_object=backend, model_input_names=inputs, model_max_length=77, **names)


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


OTHER_KINDS = {
    "llama": lambda: train_sentencepiece("llama"),
    "metaspace": lambda: train_sentencepiece("metaspace"),
    "gemma": lambda: train_sentencepiece("gemma"),
    "bert": lambda: train_wordpiece(True),
    "bert_uncut": lambda: train_wordpiece(False),
}
SENTENCEPIECE = ["llama", "metaspace", "gemma"]


@pytest.fixture(params=OTHER_KINDS)
def other_tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerFast:
    """Any kind but byte-level BPE."""
    return OTHER_KINDS[request.param]()


def counted(base: Base, texts: list[str]) -> Counter[str]:
    return Counter(p for text in texts for p in base.pre_tokens(text))


def learned_on(tokenizer: PreTrainedTokenizerFast, texts: list[str], num: int = 200) -> tuple[Base, Learned]:
    base = take_apart(tokenizer.backend_tokenizer)
    return base, learn(counted(base, texts), base, num)
