# ruff: noqa: F401, F811 - fixtures are imported by name
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from tokenizers import Tokenizer
from transformers import LlamaConfig, PreTrainedTokenizerFast

from trained_tokenizers import OTHER_KINDS, chinese, english, gpt2_tokenizer, learned_on, train, train_sentencepiece
from zhlm.cli import main
from zhlm.errors import BaseModelError
from zhlm.pieces.bytelevel import ByteLevel, to_symbols
from zhlm.pieces.extend import first_new_id
from zhlm.pieces.reach import extend_reachable
from zhlm.pieces.words import add_words
from zhlm.tokenizer.load import load_tokenizer
from zhlm.vocab.prove import Findings, prove

EVERY_KIND: dict[str, Callable[[], PreTrainedTokenizerFast]] = {"gpt2": lambda: train("gpt2"), "qwen": lambda: train("qwen"), **OTHER_KINDS}


def extended(tokenizer: PreTrainedTokenizerFast, texts: list[str], num: int = 80) -> PreTrainedTokenizerFast:
    return extend_reachable(tokenizer, *learned_on(tokenizer, texts, num), texts)[0]


def with_spec(tokenizer: PreTrainedTokenizerFast, change: Callable[[dict[str, Any]], None]) -> PreTrainedTokenizerFast:
    spec = json.loads(tokenizer.backend_tokenizer.to_str())
    change(spec)
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(spec)))


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_an_extension_is_proved_with_its_base_and_without(kind: str, chinese: list[str], english: list[str]) -> None:
    before = EVERY_KIND[kind]()
    after = extended(before, chinese)
    found = prove(after, before, [*chinese, *english])
    assert found.problems == []
    assert found.pieces == found.alone + found.covered == len(after) - len(before) > 40
    assert found.base is not None and found.base["as_the_base"] == "yes"
    assert (found.base["moved_ids"], found.base["old_texts"]) == (0, found.base["old_texts_same"])
    fewer = found.tokens_per_character["after"] < found.tokens_per_character["before"]
    assert fewer or found.unknown_share["after"] < found.unknown_share["before"]
    assert 0 < found.on_corpus <= found.pieces
    assert found.engines["transformers"] == {"texts": found.texts, "different": 0, "example": ""}
    alone = prove(after, None, [*chinese, *english])
    assert alone.pieces > found.pieces and alone.base is None
    assert [p for p in alone.problems if "come back" in p] == []
    json.dumps(found.as_dict())


def test_words_are_proved_too(gpt2_tokenizer: PreTrainedTokenizerFast, chinese: list[str]) -> None:
    after = extended(gpt2_tokenizer, chinese, 20)
    add_words(after, ["zzqy"], first_new_id(after))
    found = prove(after, gpt2_tokenizer, chinese)
    assert (found.problems, found.pieces, found.words) == ([], 21, 1)


def test_dead_pieces_are_listed(gpt2_tokenizer: PreTrainedTokenizerFast, chinese: list[str]) -> None:
    """As the usual way to merge two vocabularies leaves them: in the vocabulary, but nothing makes them."""

    def spoil(spec: dict[str, Any]) -> None:
        start = max(spec["model"]["vocab"].values()) + 1
        spec["model"]["vocab"] |= {to_symbols(word.encode()): start + n for n, word in enumerate(["图书馆长", "茶杯"])}

    found = prove(with_spec(extended(gpt2_tokenizer, chinese), spoil), gpt2_tokenizer, chinese)
    assert (len(found.unreachable), found.impossible, found.pieces) == (2, 2, 82)
    assert found.unreachable[0] == repr("图书馆长".encode())
    assert found.problems[0].startswith("2 of 82 pieces are produced by no text that was found")


def test_old_text_that_changed_is_found(gpt2_tokenizer: PreTrainedTokenizerFast, english: list[str]) -> None:
    def spoil(spec: dict[str, Any]) -> None:
        spec["model"]["merges"] = [m for m in spec["model"]["merges"] if "".join(m) != "\u0120reads"]

    found = prove(with_spec(gpt2_tokenizer, spoil), gpt2_tokenizer, english)
    assert "it gives other ids than the base for 108 of 336 texts without a new piece" in found.problems[0]
    assert found.base is not None and found.base["as_the_base"].startswith("not asked: new merges are not behind")

    def move(spec: dict[str, Any]) -> None:
        vocabulary = spec["model"]["vocab"]
        vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]

    assert "2 pieces of the base are gone or have another id" in prove(with_spec(gpt2_tokenizer, move), gpt2_tokenizer, english).problems


def test_text_that_is_lost_is_found(gpt2_tokenizer: PreTrainedTokenizerFast) -> None:
    def spoil(spec: dict[str, Any]) -> None:
        spec["normalizer"] = None
        spec["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, spec["pre_tokenizer"]]}

    found = prove(with_spec(gpt2_tokenizer, spoil), None, ["one two", "one"])
    assert found.lost >= 1 and any("texts do not come back" in problem for problem in found.problems)


def train_spm(folder: Path, texts: list[str]) -> None:
    (folder / "corpus.txt").write_text("\n".join(texts), encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "corpus.txt"), model_prefix=str(folder / "tokenizer"), model_type="bpe", vocab_size=400, byte_fallback=True,
        normalization_rule_name="identity", remove_extra_whitespaces=False, minloglevel=2,
    )  # fmt: skip


def test_a_sentencepiece_model_beside_is_compared(english: list[str], tmp_path: Path) -> None:
    train_spm(tmp_path, english)
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer"}')
    tokenizer = load_tokenizer(str(tmp_path))
    found = prove(tokenizer, None, english, tmp_path)
    engine = found.engines["sentencepiece"]
    assert engine["texts"] == found.texts and engine["different"] <= 2, engine
    (tmp_path / "tokenizer.model").write_bytes(b"not a model")
    assert "cannot read tokenizer.model" in prove(tokenizer, None, english[:2], tmp_path).engines["sentencepiece"]["reason"]


def test_a_kind_that_cannot_be_taken_apart() -> None:
    from tokenizers.models import Unigram

    with pytest.raises(BaseModelError, match="cannot extend a Unigram tokenizer"):
        prove(PreTrainedTokenizerFast(tokenizer_object=Tokenizer(Unigram([("<unk>", 0.0)], 0))), None, [])


def test_pieces_that_begin_or_end_inside_a_character_are_mended(gpt2_tokenizer: PreTrainedTokenizerFast) -> None:
    base = ByteLevel.of(gpt2_tokenizer.backend_tokenizer)
    for data in (b" \xe4\xb8", "中".encode()[1:] + b"a", "文".encode()[2:] + b" " + b"\xf0\x9f", b"\xff\xff"):
        texts = list(base.containing(to_symbols(data)))
        assert all(data in text.encode() for text in texts) and bool(texts) == (data != b"\xff\xff"), data


@pytest.fixture
def folders(chinese: list[str], english: list[str], tmp_path: Path) -> Path:
    base = train("gpt2")
    base.save_pretrained(tmp_path / "base")
    extended(base, chinese).save_pretrained(tmp_path / "good")
    dead = with_spec(base, lambda spec: spec["model"]["vocab"].update({"zq": max(spec["model"]["vocab"].values()) + 1}))
    dead.save_pretrained(tmp_path / "dead")
    LlamaConfig(vocab_size=7).save_pretrained(tmp_path / "dead")
    (tmp_path / "zh.txt").write_text("\n".join([*chinese, *english]) + "\n", encoding="utf-8")
    return tmp_path


def test_the_command(folders: Path, capfd: pytest.CaptureFixture[str]) -> None:
    at = {name: str(folders / name) for name in ("base", "good", "dead", "zh.txt", "out")}
    assert main(["vocab", "--verify", at["good"], "--base", at["base"], "--corpus", at["zh.txt"]]) == 0
    out, err = capfd.readouterr()
    assert err == "" and "new pieces            80" in out and "the base with more pieces: yes" in out
    assert Findings(**json.loads((folders / "good" / "verify.json").read_text(encoding="utf-8"))).problems == []
    assert main(["vocab", "--verify", at["dead"], "--base", at["base"], "--out", at["out"]]) == 1
    out, err = capfd.readouterr()
    assert err.startswith("zhlm: vocab: not proved: the tokenizer has 3") and "(and 1 more)" in err and err.count("\n") == 1
    assert "1 in no text that was found, 1 that no text can" in out and "b'zq'" in out
    assert (folders / "out" / "verify.json").is_file() and not (folders / "dead" / "verify.json").exists()
    (folders / "empty").mkdir()
    for mistake in (["--verify", str(folders / "empty")], ["--verify", at["good"], "--corpus", str(folders / "none.txt")]):
        assert main(["vocab", *mistake]) == 2
        assert capfd.readouterr().err.count("\n") == 1
