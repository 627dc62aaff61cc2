"""Which tokens make up a word, for each kind of tokenizer, and that they are masked together."""

import sys
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import BertConfig, PreTrainedTokenizerFast

from tiny_bases import bert_tokenizer
from trained_tokenizers import chinese_texts, train, train_sentencepiece
from zhlm.config.objective import MaskedConfig
from zhlm.errors import ConfigError
from zhlm.objectives.batch import IGNORED
from zhlm.objectives.masked import Masked
from zhlm.objectives.words import Words, spellings
from zhlm.records import Blocks

ODD = [
    "\u00e9t\u00e9",
    "\U00020bb7\u91ce\u5bb6",
    "x\u200dy \ufeff\ufffd",
    "a  b\n\n\tc",
    "def f(x):\n    return 1",
    "\u0e2a\u0e27\u0e31" * 30,
]


def chinese_bpe() -> PreTrainedTokenizerFast:
    """Byte-level BPE whose pieces are Chinese words, parts of characters, and more than a word."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = ["<s>", "<pad>", "</s>", "<mask>"]
    trainer = trainers.BpeTrainer(
        vocab_size=340, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    backend.train_from_iterator(chinese_texts(), trainer)
    names = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "mask_token": "<mask>"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **names)


KINDS = {
    "wordpiece": bert_tokenizer,
    "chinese": chinese_bpe,
    "gpt2": lambda: train("gpt2"),
    "qwen": lambda: train("qwen"),
    "sentencepiece": lambda: train_sentencepiece("llama"),
}


def words_of(tokenizer: Any) -> Words:
    return Words.of(tokenizer, len(tokenizer))


def ids_of(tokenizer: Any, *texts: str) -> tuple[np.ndarray, np.ndarray]:
    rows = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    return np.concatenate([np.array(r, np.int64) for r in rows]), np.cumsum([len(r) for r in rows]).astype(np.uint32)


def groups(tokenizer: Any, *texts: str) -> list[str]:
    """The text of the tokens that are masked together."""
    ids, ends = ids_of(tokenizer, *texts)
    parts = np.split(ids, np.flatnonzero(words_of(tokenizer).begins(ids, ends))[1:])
    table = spellings(tokenizer, len(tokenizer))
    return [b"".join(table[i] for i in part).decode("utf-8", "replace") for part in parts]


@pytest.mark.parametrize("kind", KINDS)
def test_spelled_tokens_are_the_text(kind: str) -> None:
    tokenizer = KINDS[kind]()
    table = spellings(tokenizer, len(tokenizer))
    for text in ["今天下午，小王去图书馆借了三本书。", "the teacher reads a book", *([] if kind == "wordpiece" else ODD)]:
        spelled = b"".join(table[i] for i in ids_of(tokenizer, text)[0]).decode("utf-8")
        assert spelled.strip() == text.strip()
    assert all(table[i] == b"\n" for i in tokenizer.all_special_ids)


@pytest.mark.parametrize("kind", ["wordpiece", "chinese", "gpt2", "sentencepiece"])
def test_chinese_words_are_whole(kind: str) -> None:
    """Whether a character is a token, three of them, or shares one."""
    parts = groups(KINDS[kind](), "我们去图书馆看书。")
    if kind == "chinese":  # some tokens span words
        assert "".join(parts) == "我们去图书馆看书。" and parts[0] == "我们"
    else:
        assert [part.strip() for part in parts if part.strip()] == ["我们", "去", "图书馆", "看书", "。"]


def test_words_of_letters_are_whole_with_the_space_in_front() -> None:
    text = "the teacher paints tables; 3 bicycles"
    assert groups(KINDS["gpt2"](), text) == ["the", " teacher", " paints", " tables", ";", " 3", " bicycles"]
    assert groups(KINDS["qwen"](), text) == ["the", " teacher", " paints", " tables", ";", " ", "3", " bicycles"]
    assert groups(KINDS["sentencepiece"](), text) == [" the", " teacher", " paints", " tables", ";", " 3", " bicycles"]
    assert groups(KINDS["wordpiece"](), text) == [" the", " teacher", " paints", " tables", ";", " 3", " bicycles"]
    assert groups(KINDS["wordpiece"](), "OK,今天reads书") == [" ok", ",", "今天", " reads", "书"]


def test_a_token_that_spans_words_belongs_to_the_first() -> None:
    table = [b"\xe6\x88\x91", b"\xe4\xbb\xac\xe5\x8e\xbb", b"\xe5\x9b\xbe", "书馆".encode()]  # 我 | 们去 | 图 | 书馆
    lengths = np.array([len(p) for p in table])
    words = Words(table, lengths, np.zeros(4, np.int64), words_of(bert_tokenizer()).cut)
    ids, end = np.arange(4), np.array([4], np.uint32)
    assert words.begins(ids, end).tolist() == [True, False, True, False]


def test_no_word_goes_across_documents() -> None:
    tokenizer = bert_tokenizer()
    assert groups(tokenizer, "图书", "馆") == ["图书", "馆"] and groups(tokenizer, "图书馆") == ["图书馆"]


@pytest.mark.parametrize("kind", KINDS)
def test_documents_may_begin_and_end_inside_a_character(kind: str) -> None:
    tokenizer = KINDS[kind]()
    words = words_of(tokenizer)
    ids, _ = ids_of(tokenizer, "龘👍🏽今天。".join(ODD))
    for start in range(12):
        for stop in range(len(ids) - 6, len(ids)):
            part = ids[start:stop]
            begins = words.begins(part, np.array([len(part)], np.uint32))
            assert begins[0] and begins.dtype == np.bool_ and begins.shape == part.shape


def whole_words(tokenizer: Any, **settings: Any) -> Masked:
    return Masked.of(MaskedConfig(whole_words=True, **settings), tokenizer, BertConfig(vocab_size=len(tokenizer)), 5)


@pytest.mark.parametrize("kind", ["wordpiece", "chinese"])
def test_words_are_masked_whole_and_as_often_as_tokens(kind: str) -> None:
    tokenizer = KINDS[kind]()
    start, end = [tokenizer.cls_token_id or tokenizer.bos_token_id], [tokenizer.sep_token_id or tokenizer.eos_token_id]
    rows = [start + tokenizer(text, add_special_tokens=False)["input_ids"] + end for text in chinese_texts(30)]
    ids, ends = np.concatenate([np.array(r, np.int64) for r in rows]), np.cumsum([len(r) for r in rows]).astype(np.uint32)
    objective = whole_words(tokenizer)
    assert objective.words is not None
    word_of = np.cumsum(objective.words.begins(ids, ends)) - 1
    ordinary = ~np.isin(ids, tokenizer.all_special_ids)
    draws, blocks = 150, Blocks(ids[None], [ends])
    is_target = np.vstack([(objective.make_batch(blocks, [key]).targets_BT != IGNORED).numpy()[:, : len(ids)] for key in range(draws)])
    hidden = np.array([np.bincount(word_of[ordinary], own[ordinary]) for own in is_target])
    sizes = np.bincount(word_of[ordinary], minlength=hidden.shape[1])
    assert bool(np.all((hidden == 0) | (hidden == sizes))), "all tokens of a word or none"
    assert not is_target[:, ~ordinary].any()
    assert is_target.sum() / draws / ordinary.sum() == pytest.approx(0.15, abs=0.007)
    assert sizes.max() > 2


def test_what_is_seen_is_drawn_for_each_token_of_a_word() -> None:
    tokenizer = bert_tokenizer()
    ids, ends = ids_of(tokenizer, "图书馆" * 40)
    objective = whole_words(tokenizer, mask_share=0.5, mask_token_share=0.5, random_share=0.0)
    batch = objective.make_batch(Blocks(ids[None], [ends]), [1])
    is_target = (batch.targets_BT != IGNORED)[0, : len(ids)].reshape(-1, 3)
    is_mask = (batch.inputs["input_ids"] == tokenizer.mask_token_id)[0, : len(ids)].reshape(-1, 3)
    assert set(is_target.sum(1).tolist()) == {0, 3}
    assert {1, 2} & set(is_mask.sum(1).tolist())


def test_without_the_segmenter_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rjieba", None)
    with pytest.raises(ConfigError, match=r"^objective: whole_words finds Chinese words with rjieba.*pip install rjieba, or set") as caught:
        whole_words(bert_tokenizer())
    assert "\n" not in str(caught.value)
    Masked.of(MaskedConfig(), bert_tokenizer(), BertConfig(), 5)
