"""Two engines, the same ids; and what happens when they differ."""

import json
import os
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from zhlm.errors import BaseModelError
from zhlm.tokenizer.encode import HARD_TEXTS, Encoder, GigatokenEncoder, TokenizersEncoder, choose_encoder, make_encoder
from zhlm.tokenizer.fertility import tokens_per_character

TEXTS = [
    "今天天气很好，我们去公园散步。今天天气不好，我们在家。",
    "臺灣的繁體字：龍、龜、鬱。",
    "生僻字𠮷𪚥𬺰在基本平面之外。",
    "全角ＡＢＣ１２３！（括号）　缩进",
    "👨‍👩‍👧 一家人 🇨🇳",
    'def 函数(x):\n    return "值"  # code',
    "The weather is fine today. It's 3.14!",
]


@pytest.fixture(scope="module")
def byte_level() -> str:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    end = ("<|endoftext|>", 0)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A <|endoftext|>", special_tokens=[end])
    return str(tokenizer.to_str())


@pytest.fixture(scope="module")
def word_piece() -> str:
    tokenizer = Tokenizer(models.WordPiece({w: i for i, w in enumerate(["[UNK]", "今", "天", "好", "the", "##s"])}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return str(tokenizer.to_str())


def rows(encoder: Encoder, texts: list[str]) -> list[list[int]]:
    ids, offsets = encoder.encode_batch(texts)
    assert ids.dtype == np.uint32 and offsets.dtype == np.int64
    assert offsets[0] == 0 and offsets[-1] == len(ids) and len(offsets) == len(texts) + 1
    return [ids[a:b].tolist() for a, b in pairwise(offsets)]


@pytest.mark.parametrize("parallel", [True, False])
@pytest.mark.parametrize("engine", [TokenizersEncoder, GigatokenEncoder])
def test_ids_are_those_of_the_reference_without_special_tokens(
    byte_level: str, engine: type[TokenizersEncoder | GigatokenEncoder], parallel: bool
) -> None:
    texts = [*TEXTS, *HARD_TEXTS]
    reference = Tokenizer.from_str(byte_level)
    expected = [reference.encode(t, add_special_tokens=False).ids for t in texts]
    assert rows(engine(byte_level, parallel), texts) == expected
    assert reference.encode("好").ids[-1] == 0, "the template would add the special token"


@pytest.mark.parametrize("engine", [TokenizersEncoder, GigatokenEncoder])
def test_nothing_in_nothing_out(byte_level: str, engine: type[TokenizersEncoder | GigatokenEncoder]) -> None:
    assert rows(engine(byte_level), []) == []
    assert rows(engine(byte_level), ["", ""]) == [[], []]


def test_settings_of_an_earlier_use_do_not_cut_or_pad(byte_level: str) -> None:
    tokenizer = Tokenizer.from_str(byte_level)
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=64)
    assert rows(TokenizersEncoder(tokenizer.to_str()), TEXTS) == rows(TokenizersEncoder(byte_level), TEXTS)


def test_the_users_parallelism_setting_is_put_back(byte_level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "maybe")
    TokenizersEncoder(byte_level).encode_batch(TEXTS)
    assert os.environ["TOKENIZERS_PARALLELISM"] == "maybe"
    monkeypatch.delenv("TOKENIZERS_PARALLELISM")
    TokenizersEncoder(byte_level).encode_batch(TEXTS)
    assert "TOKENIZERS_PARALLELISM" not in os.environ


def test_the_fast_engine_is_chosen_after_a_proof(byte_level: str) -> None:
    encoder, facts = choose_encoder(byte_level, "auto", TEXTS)
    assert isinstance(encoder, GigatokenEncoder)
    assert facts["engine"] == "gigatoken"
    assert facts["proof"]["texts"] == len(TEXTS) + len(HARD_TEXTS) + 1
    assert rows(encoder, TEXTS) == rows(make_encoder("tokenizers", byte_level), TEXTS)


def test_a_tokenizer_the_fast_engine_does_not_take_falls_back_and_says_why(word_piece: str) -> None:
    encoder, facts = choose_encoder(word_piece, "auto", TEXTS)
    assert isinstance(encoder, TokenizersEncoder)
    assert facts["engine"] == "tokenizers" and facts["reason"].startswith("gigatoken cannot load")
    with pytest.raises(BaseModelError, match=r"set pack\.engine: auto"):
        choose_encoder(word_piece, "gigatoken", TEXTS)


def test_one_different_id_is_enough_to_fall_back(byte_level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = json.loads(byte_level)
    data["model"]["merges"] = data["model"]["merges"][:-60]
    weaker = GigatokenEncoder(json.dumps(data))
    monkeypatch.setattr("zhlm.tokenizer.encode.GigatokenEncoder", lambda _: weaker)
    encoder, facts = choose_encoder(byte_level, "auto", TEXTS)
    assert isinstance(encoder, TokenizersEncoder)
    assert "gives other ids than tokenizers" in facts["reason"]


def test_the_reference_can_be_asked_for(byte_level: str) -> None:
    encoder, facts = choose_encoder(byte_level, "tokenizers", TEXTS)
    assert isinstance(encoder, TokenizersEncoder)
    assert facts == {"engine": "tokenizers", "reason": "asked for"}


def test_fertility_falls_as_pieces_grow(byte_level: str, tmp_path: Path) -> None:
    data = json.loads(byte_level)
    data["model"]["merges"] = []
    bytes_only = make_encoder("tokenizers", json.dumps(data))
    trained = make_encoder("tokenizers", byte_level)
    assert tokens_per_character(bytes_only, ["天气"]) == 3.0
    assert tokens_per_character(trained, TEXTS) < tokens_per_character(bytes_only, TEXTS)
    assert tokens_per_character(trained, []) == 0.0
