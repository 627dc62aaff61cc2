# ruff: noqa: F401, F811 - fixtures are imported by name
import pickle

import pytest
from transformers import PreTrainedTokenizerFast

from trained_tokenizers import chinese, english, learned_on, tokenizer
from zhlm.errors import VerificationError
from zhlm.pieces.extend import first_new_id
from zhlm.pieces.reach import extend_reachable
from zhlm.tokenizer.encode import HARD_TEXTS
from zhlm.tokenizer.engines import Agreement
from zhlm.tokenizer.load import tokenizer_json
from zhlm.vocab import readings
from zhlm.vocab.readings import Readings, batches
from zhlm.vocab.verify import Claim, conclude


def claim_on(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> Claim:
    after, learned = extend_reachable(tokenizer, *learned_on(tokenizer, texts, 60), texts)
    return Claim(tokenizer_json(tokenizer), after, learned, first_new_id(tokenizer))


def test_batches_are_bounded_and_lose_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readings, "BATCH_TEXTS", 3)
    monkeypatch.setattr(readings, "BATCH_CHARS", 10)
    monkeypatch.setattr(readings, "LONGEST_CHARS", 8)
    assert list(batches(["a", "", "b", "c" * 20, "d"])) == [["a", "", "b"], ["c" * 8, "c" * 8], ["cccc", "d"]]
    assert list(batches([])) == []


def test_parts_read_anywhere_add_up(tokenizer: PreTrainedTokenizerFast, chinese: list[str], english: list[str]) -> None:
    claim = claim_on(tokenizer, chinese)
    whole = claim.reader().read_all([*chinese, *english])
    total = Readings()
    for part in (chinese[:50], chinese[50:], english):
        total.add(pickle.loads(pickle.dumps(pickle.loads(pickle.dumps(claim)).reader(parallel=False).read_all(part))))
    assert total == whole
    assert (total.texts, total.old_texts_same) == (len(chinese) + len(english), total.old_texts)
    assert total.new_tokens > 0 and total.num_seen(claim.rows) > 0
    assert total.engines["transformers"] == Agreement(texts=total.texts)


def test_engines_that_differ_anywhere(tokenizer: PreTrainedTokenizerFast, chinese: list[str]) -> None:
    """transformers refuses the extension, gigatoken is not used."""
    claim = claim_on(tokenizer, chinese)
    hard, new = claim.reader().read(HARD_TEXTS), claim.reader().read_all(chinese)
    assert conclude(claim, hard, new, Readings()).engine["proof"]["texts"] == hard.texts + new.texts
    new.engines["gigatoken"].add(Agreement("", 1, 1, "x"))
    engine = conclude(claim, hard, new, Readings()).engine
    assert engine["engine"] == "tokenizers" and "gigatoken gives other ids than tokenizers for 1 of" in engine["reason"]
    new.engines["transformers"] = Agreement("failed: no", new.texts - 1)
    with pytest.raises(VerificationError, match="vocab: transformers failed: no"):
        conclude(claim, hard, new, Readings())
