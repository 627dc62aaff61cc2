# ruff: noqa: F401, F811 - fixtures are imported by name
import json
from collections import Counter
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, LlamaConfig, PretrainedConfig, PreTrainedTokenizerFast
from vocab_tokenizers import OTHER_KINDS, chinese, english, gpt2_tokenizer, other_tokenizer, train_sentencepiece, train_wordpiece

from zhlm.errors import BaseModelError, VerificationError
from zhlm.tokenizer.load import load_tokenizer
from zhlm.vocab.base import Base, is_one_script
from zhlm.vocab.extend import extend, first_new_id
from zhlm.vocab.kinds import take_apart
from zhlm.vocab.learn import Learned, learn
from zhlm.vocab.reach import extend_reachable
from zhlm.vocab.sentencepiece import byte_piece
from zhlm.vocab.verify import verify

PROBES = ["今天早上，老师在公园里看书。", "It's  3 o'clock </s> [MASK] 小王 \n\n 龘𠮷👍🏽", "張先生e\u0301\x00", "", "a" * 300]


def learned_on(tokenizer: PreTrainedTokenizerFast, texts: list[str], num: int = 150) -> tuple[Base, Learned]:
    base = take_apart(tokenizer.backend_tokenizer)
    return base, learn(Counter(p for text in texts for p in base.pre_tokens(text)), base, num)


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
    base, learned = learned_on(other_tokenizer, chinese)
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
    extended = extend(other_tokenizer, *learned_on(other_tokenizer, chinese))
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
    base, learned = learned_on(other_tokenizer, chinese)
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


def test_a_damaged_extension_is_refused(other_tokenizer: PreTrainedTokenizerFast, chinese: list[str], english: list[str]) -> None:
    base, learned = learned_on(other_tokenizer, chinese, 20)
    spec = json.loads(extend(other_tokenizer, base, learned).backend_tokenizer.to_str())
    if base.MERGES:
        spec["model"]["merges"] = [merge for merge in spec["model"]["merges"] if "".join(merge) != "\u2581teacher"]
    else:
        row = spec["model"]["vocab"].pop("teacher")
        spec["model"]["vocab"]["teachers"] = row
    wrong = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(spec)))
    with pytest.raises(VerificationError, match=r"cuts text in other places|do not spell it"):
        verify(other_tokenizer, wrong, learned, first_new_id(other_tokenizer), chinese, english)


def test_gigatoken_agrees_where_it_knows_the_kind(chinese: list[str], english: list[str]) -> None:
    tokenizer = train_sentencepiece()
    base, learned = learned_on(tokenizer, chinese)
    proof = verify(tokenizer, extend(tokenizer, base, learned), learned, first_new_id(tokenizer), chinese, english)
    assert proof.engine["engine"] == "gigatoken"
    tokenizer = train_wordpiece()
    base, learned = learned_on(tokenizer, chinese)
    proof = verify(tokenizer, extend(tokenizer, base, learned), learned, first_new_id(tokenizer), chinese, english)
    assert "gigatoken cannot load" in proof.engine["reason"]


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
