# ruff: noqa: F401, F811 - fixtures are imported by name
import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models
from transformers import BertConfig, LlamaConfig, PretrainedConfig, PreTrainedTokenizerFast

from trained_tokenizers import OTHER_KINDS, chinese, english, gpt2_tokenizer, learned_on, other_tokenizer, train_sentencepiece
from zhlm.errors import BaseModelError
from zhlm.pieces.base import is_one_script
from zhlm.pieces.extend import extend, first_new_id
from zhlm.pieces.kinds import take_apart
from zhlm.pieces.learn import Learned, learn
from zhlm.pieces.reach import extend_reachable
from zhlm.pieces.sentencepiece import byte_piece
from zhlm.tokenizer.load import load_tokenizer
from zhlm.vocab.verify import verify

PROBES = ["今天早上，老师在公园里看书。", "It's  3 o'clock </s> [MASK] 小王 \n\n 龘𠮷👍🏽", "張先生e\u0301\x00", "", "a" * 300]


def test_the_kind_is_found(gpt2_tokenizer: PreTrainedTokenizerFast) -> None:
    kinds = {name: take_apart(make().backend_tokenizer).KIND for name, make in OTHER_KINDS.items()}
    assert kinds == {
        "llama": "SentencePiece BPE",
        "metaspace": "SentencePiece BPE",
        "gemma": "SentencePiece BPE",
        "bert": "WordPiece",
        "bert_uncut": "WordPiece",
    }
    assert take_apart(gpt2_tokenizer.backend_tokenizer).KIND == "byte-level BPE"


BYTES = {byte_piece(byte): byte for byte in range(256)}


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (models.Unigram([("<unk>", 0.0)], 0), "cannot extend a Unigram tokenizer, only byte-level BPE .* set vocab: null"),
        (models.WordLevel({"a": 0}, unk_token="a"), "cannot extend a WordLevel tokenizer"),
        (models.BPE({"a": 0}, [], end_of_word_suffix="</w>"), "that has a end_of_word_suffix"),
        (models.BPE(BYTES, []), "BPE without byte fallback, so it cannot spell all text"),
        (models.BPE({"a": 0}, [], byte_fallback=True), r"without 256 of the 256 byte pieces \(<0x00> first\)"),
        (models.WordPiece({"a": 0}, unk_token="[UNK]"), r"has the unknown token '\[UNK\]' .* set vocab: null"),
    ],
)
def test_other_tokenizers_are_refused(model: models.Model, message: str) -> None:
    with pytest.raises(BaseModelError, match=message) as caught:
        take_apart(Tokenizer(model))
    assert "\n" not in str(caught.value)


def test_old_ids_stay_and_all_pieces_are_reached(other_tokenizer: PreTrainedTokenizerFast, chinese: list[str], english: list[str]) -> None:
    base, learned = learned_on(other_tokenizer, chinese, 150)
    extended, kept = extend_reachable(other_tokenizer, base, learned, [*chinese, *english])
    start = first_new_id(other_tokenizer)
    assert kept == learned and len(learned.pieces) > 70
    assert {p: i for p, i in extended.get_vocab().items() if i < start} == other_tokenizer.get_vocab()
    assert extended.convert_ids_to_tokens(list(range(start, start + len(learned.pieces)))) == learned.pieces
    proof = verify(other_tokenizer, extended, learned, start, chinese, english)
    assert (proof.unreachable, proof.reachable) == ([], len(learned.pieces))
    assert proof.old_texts_same == len(english)
    assert [extended.encode(text) for text in english] == [other_tokenizer.encode(text) for text in english]
    json.dumps(proof.as_dict())


def test_a_saved_folder_gives_the_same_ids_everywhere(other_tokenizer: PreTrainedTokenizerFast, chinese: list[str], tmp_path: Path) -> None:
    extended = extend(other_tokenizer, *learned_on(other_tokenizer, chinese, 150))
    extended.save_pretrained(tmp_path)
    LlamaConfig().save_pretrained(tmp_path)
    again, raw = load_tokenizer(str(tmp_path)), Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for text in [*chinese, *PROBES]:
        ids = extended(text, add_special_tokens=False)["input_ids"]
        assert again(text, add_special_tokens=False)["input_ids"] == raw.encode(text, add_special_tokens=False).ids == ids


@pytest.mark.parametrize(
    ("kind", "family", "config"),
    [("llama", "LlamaTokenizer", LlamaConfig()), ("bert", "BertTokenizer", BertConfig())],
)
def test_what_a_family_fixes_is_kept(kind: str, family: str, config: PretrainedConfig, chinese: list[str], tmp_path: Path) -> None:
    """The extended tokenizer is of no family: its folder must say what the family's class said by itself."""
    OTHER_KINDS[kind]().save_pretrained(tmp_path)
    config.save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    settings.pop("model_input_names", None)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings | {"tokenizer_class": family}))
    tokenizer = load_tokenizer(str(tmp_path))
    assert type(tokenizer).__name__ == family
    extend(tokenizer, *learned_on(tokenizer, chinese, 20)).save_pretrained(tmp_path)
    again = load_tokenizer(str(tmp_path))
    assert type(again).__name__ != family
    assert (again.model_input_names, again.padding_side) == (tokenizer.model_input_names, tokenizer.padding_side)
    assert again("The teacher", "reads.") == tokenizer("The teacher", "reads.")


def test_every_piece_has_a_spelling_in_old_ids(other_tokenizer: PreTrainedTokenizerFast, chinese: list[str]) -> None:
    base, learned = learned_on(other_tokenizer, chinese, 150)
    spelled = base.merge(learned.pieces)
    assert len(spelled) == len(learned.pieces)
    assert all(ids and max(ids) < first_new_id(other_tokenizer) for ids in spelled)


def test_an_unreachable_piece_is_dropped_with_what_is_made_of_it(gpt2_tokenizer: PreTrainedTokenizerFast, chinese: list[str]) -> None:
    base, learned = learned_on(gpt2_tokenizer, chinese, 20)
    # Letters and digits are cut apart before any merge.
    pieces, merges = [*learned.pieces, "q7", "q7x", "qx"], [*learned.merges, ("q", "7"), ("q7", "x"), ("q", "x")]
    broken = Learned(pieces, merges, [*learned.counts, 4, 3, 2], 0, 0)
    extended, kept = extend_reachable(gpt2_tokenizer, base, broken, chinese)
    assert kept.pieces == [*learned.pieces, "qx"]
    assert kept.counts == [*learned.counts, 2]
    assert extended.tokenize("qx") == ["qx"]
    assert len(extended) == len(gpt2_tokenizer) + 21


def test_an_added_token_is_not_learned_again() -> None:
    """It stands outside of the model's vocabulary, where a piece of the same letters would take its id."""
    tokenizer = train_sentencepiece("gemma")
    tokenizer.add_tokens(["天天", "地地"])
    base = take_apart(tokenizer.backend_tokenizer)
    learned = learn({"天天": 9, "天地": 8}, base, 5)
    assert learned.pieces == ["天", "地", "天地"]
    extend(tokenizer, base, learned)


@pytest.mark.parametrize(
    ("text", "one"),
    [
        ("中文", True),
        ("中々カナ", True),
        ("中a", False),
        ("a1", False),
        ("1，", False),
        ("中，", False),
        ("，。", True),
        ("été", True),
        ("e\u0301t", True),
        ("नमस्ते", True),
        ("中\U000e0100文", True),
        ("", True),
    ],
)
def test_scripts(text: str, one: bool) -> None:
    assert is_one_script(text) is one
