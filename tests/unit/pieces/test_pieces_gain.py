# ruff: noqa: F811 - fixtures are imported by name
from collections import Counter

import pytest
from transformers import PreTrainedTokenizerFast

from trained_tokenizers import chinese, gpt2_tokenizer, learned_on, train_sentencepiece, train_wordpiece  # noqa: F401
from zhlm.pieces.extend import extend
from zhlm.pieces.gain import CURVE_POINTS, curve_facts
from zhlm.pieces.kinds import take_apart
from zhlm.pieces.learn import Learned, learn

NONE = Learned([], [], [], 0, 0, 1000)


def tokens(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> int:
    return sum(len(e.ids) for e in tokenizer.backend_tokenizer.encode_batch_fast(texts, add_special_tokens=False))


@pytest.mark.parametrize("kind", ["bytelevel", "sentencepiece"])
def test_the_curve_is_what_tokenizers_of_so_many_rows_need(
    kind: str,
    gpt2_tokenizer: PreTrainedTokenizerFast,
    chinese: list[str],
) -> None:
    tokenizer = gpt2_tokenizer if kind == "bytelevel" else train_sentencepiece("plain")
    base = take_apart(tokenizer.backend_tokenizer)
    pre_tokens = Counter(p for text in chinese for p in base.pre_tokens(text))
    proposed = learn(pre_tokens, base, 120, min_gain=0.005)
    characters = sum(map(len, chinese))
    facts = curve_facts(proposed, proposed, characters, 120)
    assert facts["stopped_by"] == "gain" and 0 < facts["chosen_rows"] == len(proposed.pieces) < 120
    assert facts["chosen_rows"] in [rows for rows, _ in facts["curve"]] and facts["curve"][-1][0] > facts["chosen_rows"]
    assert facts["curve"] == sorted(facts["curve"], key=lambda point: (point[0], -point[1])) and len(facts["curve"]) <= CURVE_POINTS + 2
    for rows, per_character in facts["curve"][::4]:
        if rows <= len(proposed.pieces):
            extended = extend(tokenizer, base, proposed.first(rows))
            assert per_character == pytest.approx(tokens(extended, chinese) / characters, abs=1e-4)


def test_of_wordpiece_the_curve_falls_to_what_the_rows_save(chinese: list[str]) -> None:
    tokenizer = train_wordpiece(chinese_chars=False)
    _, learned = learned_on(tokenizer, chinese, 60)
    facts = curve_facts(learned, learned, sum(map(len, chinese)), 60)
    values = [value for _, value in facts["curve"]]
    assert values == sorted(values, reverse=True) and facts["stopped_by"] == "limit"
    assert learned.saved == sorted(learned.saved) and learned.saved[-1] >= sum(learned.counts)


def test_why_no_more_rows() -> None:
    two = Learned(["a", "b"], [("x", "y"), ("a", "a")], [9, 3], 0, 0, 1000, [9, 12])
    assert curve_facts(two, two, 100, 2) == {"curve": [[0, 10.0], [1, 9.91], [2, 9.88]], "chosen_rows": 2, "stopped_by": "limit"}
    assert curve_facts(two, two.without({"a"}), 100, 2)["chosen_rows"] == 0
    assert curve_facts(two, two, 100, 5)["stopped_by"] == "corpus"
    gained = two.worth(0.005)
    assert curve_facts(gained, gained, 100, 5) == {"curve": [[0, 10.0], [1, 9.91], [2, 9.88]], "chosen_rows": 1, "stopped_by": "gain"}
    assert curve_facts(NONE, NONE, 0, 0)["curve"] == [[0, 1000.0]]
