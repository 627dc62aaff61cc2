# ruff: noqa: F401, F811 - fixtures are imported by name
import json

import pytest
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from trained_tokenizers import (
    chinese,
    english,
    gpt2_tokenizer,
    learned_on,
    other_tokenizer,
    tokenizer,
    train_sentencepiece,
    train_wordpiece,
)
from zhlm.config.vocabulary import SpecialTokensConfig
from zhlm.errors import VerificationError
from zhlm.pieces.bytelevel import ByteLevel
from zhlm.pieces.extend import extend, first_new_id
from zhlm.pieces.learn import Learned
from zhlm.tokenizer.encode import HARD_TEXTS
from zhlm.tokenizer.load import tokenizer_json
from zhlm.tokenizer.special import add_special_tokens
from zhlm.vocab.verify import Claim, conclude, verify


def test_the_proof(tokenizer: PreTrainedTokenizerFast, chinese: list[str], english: list[str]) -> None:
    base, learned = learned_on(tokenizer, chinese)
    proof = verify(tokenizer, extend(tokenizer, base, learned), learned, first_new_id(tokenizer), chinese, english)
    assert proof.new_pieces == 200
    assert proof.unreachable == []
    assert proof.reachable == 200
    prefix_space = tokenizer.backend_tokenizer.encode("q").tokens == ["Ġ", "q"]
    assert (proof.alone < 20) if prefix_space else (proof.alone > 120)
    assert proof.old_texts == proof.old_texts_same == len(english)
    assert proof.old_tokens_new_share == 0
    assert 0 < proof.on_corpus <= 200
    json.dumps(proof.as_dict())


def test_no_pieces_is_an_extension_too(gpt2_tokenizer: PreTrainedTokenizerFast, english: list[str]) -> None:
    base = ByteLevel.of(gpt2_tokenizer.backend_tokenizer)
    nothing = Learned([], [], [], 0, 0)
    extended = extend(gpt2_tokenizer, base, nothing)
    proof = verify(gpt2_tokenizer, extended, nothing, first_new_id(gpt2_tokenizer), english, [])
    assert (proof.new_pieces, proof.reachable, proof.old_texts_same) == (0, 0, 0)
    assert extended.get_vocab() == gpt2_tokenizer.get_vocab()


def test_a_piece_that_nothing_produces_is_found(gpt2_tokenizer: PreTrainedTokenizerFast, chinese: list[str]) -> None:
    base, learned = learned_on(gpt2_tokenizer, chinese, 20)
    # A merge across the tokenizer's own cut between letters and digits can never happen.
    broken = Learned([*learned.pieces, "q7"], [*learned.merges, ("q", "7")], [*learned.counts, 2], 0, 0)
    proof = verify(gpt2_tokenizer, extend(gpt2_tokenizer, base, broken), broken, first_new_id(gpt2_tokenizer), chinese, [])
    assert proof.unreachable == ["b'q7'"]
    assert proof.reachable == 20


def test_an_extension_that_changes_the_cutting_is_refused(gpt2_tokenizer: PreTrainedTokenizerFast, chinese: list[str]) -> None:
    base, learned = learned_on(gpt2_tokenizer, chinese, 20)
    extended = extend(gpt2_tokenizer, base, learned)
    spec = json.loads(extended.backend_tokenizer.to_str())
    spec["model"]["merges"] = [merge for merge in spec["model"]["merges"] if "".join(merge) != "Ġreads"]
    wrong = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(spec)))
    with pytest.raises(VerificationError, match="cuts text in other places"):
        verify(gpt2_tokenizer, wrong, learned, first_new_id(gpt2_tokenizer), chinese, ["The teacher reads."])


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
    base, learned = learned_on(tokenizer, chinese, 150)
    proof = verify(tokenizer, extend(tokenizer, base, learned), learned, first_new_id(tokenizer), chinese, english)
    assert proof.engine["engine"] == "gigatoken"
    tokenizer = train_wordpiece()
    base, learned = learned_on(tokenizer, chinese, 150)
    proof = verify(tokenizer, extend(tokenizer, base, learned), learned, first_new_id(tokenizer), chinese, english)
    assert "gigatoken cannot load" in proof.engine["reason"]


def test_special_tokens_beside_pieces_are_no_text(other_tokenizer: PreTrainedTokenizerFast, chinese: list[str], english: list[str]) -> None:
    base, learned = learned_on(other_tokenizer, chinese, 20)
    extended, first = extend(other_tokenizer, base, learned), first_new_id(other_tokenizer)
    special = add_special_tokens(extended, SpecialTokensConfig(pad_token="<|pad|>", sentinels=2))
    rows = len(learned.pieces)
    assert list(special.ids.values()) == list(range(first + rows, first + rows + 3))
    claim = Claim(tokenizer_json(other_tokenizer), extended, learned, first, (), special.marked)
    reader = claim.reader()
    texts = [*chinese, "公园<|pad|>学校<extra_id_1>"]
    proof = conclude(claim, reader.read(HARD_TEXTS), reader.read_all(texts), reader.read_all(english))
    assert (proof.new_pieces, proof.special, proof.reachable) == (rows, 3, rows)
    assert proof.old_texts_same == len(english)
    with pytest.raises(VerificationError, match="'<eot>' is not read as its id 7"):
        Claim(tokenizer_json(other_tokenizer), extended, learned, first, (), {"<eot>": 7}).reader()
