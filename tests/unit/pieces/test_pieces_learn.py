# ruff: noqa: F401, F811 - fixtures are imported by name
import itertools
import json
import random
from collections import Counter

import pytest
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from trained_tokenizers import chinese, gpt2_tokenizer, tokenizer
from zhlm.pieces.bytelevel import ByteLevel, is_fragment, is_text, to_bytes
from zhlm.pieces.extend import extend
from zhlm.pieces.learn import learn


def slow_learn(pre_tokens: dict[str, int], base: ByteLevel, num_pieces: int) -> tuple[list[tuple[str, str]], list[int]]:
    """Textbook BPE: count every pair again before each merge. Ties by the order in which the two pieces came into the vocabulary."""
    piece_of = {row: piece for piece, row in base.vocabulary.items()}
    words = [([piece_of[row] for row in rows], n) for rows, n in zip(base.merge(list(pre_tokens)), pre_tokens.values(), strict=True)]
    order = dict(base.vocabulary)
    merges, counts = [], []
    while len(merges) < num_pieces:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, n in words:
            for pair in itertools.pairwise(word):
                pairs[pair] += n
        allowed = {
            pair: n
            for pair, n in pairs.items()
            if n >= 2 and pair[0] + pair[1] not in order and (is_text(to_bytes("".join(pair))) or is_fragment(to_bytes("".join(pair))))
        }
        if not allowed:
            break
        best = min(allowed, key=lambda pair: (-allowed[pair], order[pair[0]], order[pair[1]]))
        merges.append(best)
        counts.append(allowed[best])
        order["".join(best)] = max(order.values()) + 1
        for word, _ in words:
            i = 0
            while i < len(word) - 1:
                if (word[i], word[i + 1]) == best:
                    word[i : i + 2] = ["".join(best)]
                i += 1
    return merges, counts


def pre_tokens_of(base: ByteLevel, texts: list[str]) -> Counter[str]:
    return Counter(pre_token for text in texts for pre_token in base.pre_tokens(text))


def test_the_merges_are_those_of_a_slow_learner(tokenizer: PreTrainedTokenizerFast, chinese: list[str]) -> None:
    base = ByteLevel.of(tokenizer.backend_tokenizer)
    pre_tokens = pre_tokens_of(base, chinese)
    learned = learn(pre_tokens, base, 250)
    merges, counts = slow_learn(pre_tokens, base, 250)
    assert learned.merges == merges
    assert learned.counts == counts


def test_runs_of_one_symbol_and_overlaps(gpt2_tokenizer: PreTrainedTokenizerFast) -> None:
    base = ByteLevel.of(gpt2_tokenizer.backend_tokenizer)
    rng = random.Random(5)
    pre_tokens = {"".join(rng.choice("qx") for _ in range(rng.randint(1, 40))): rng.randint(1, 9) for _ in range(60)}
    pre_tokens |= {"q" * 7: 3, "x" * 16: 5}
    learned = learn(pre_tokens, base, 60)
    assert learned.merges == slow_learn(pre_tokens, base, 60)[0]


def test_stops_when_no_pair_occurs_twice(gpt2_tokenizer: PreTrainedTokenizerFast) -> None:
    base = ByteLevel.of(gpt2_tokenizer.backend_tokenizer)
    assert learn({"qz": 2, "zx": 1}, base, 10).pieces == ["qz"]
    assert learn({}, base, 10).pieces == []
    assert learn({"q": 9}, base, 10).pieces == []


def test_the_order_of_the_counts_does_not_matter(gpt2_tokenizer: PreTrainedTokenizerFast, chinese: list[str]) -> None:
    base = ByteLevel.of(gpt2_tokenizer.backend_tokenizer)
    counts = pre_tokens_of(base, chinese)
    shuffled = list(counts.items())
    random.Random(1).shuffle(shuffled)
    assert learn(counts, base, 120) == learn(dict(shuffled), base, 120)


def test_pieces_are_text_or_a_part_of_one_character(gpt2_tokenizer: PreTrainedTokenizerFast, chinese: list[str]) -> None:
    base = ByteLevel.of(gpt2_tokenizer.backend_tokenizer)
    learned = learn(pre_tokens_of(base, chinese), base, 400)
    assert all(is_text(to_bytes(piece)) or is_fragment(to_bytes(piece)) for piece in learned.pieces)
    assert len(set(learned.pieces) | set(base.vocabulary)) == len(learned.pieces) + len(base.vocabulary)
    known = set(base.vocabulary)
    for piece, (left, right) in zip(learned.pieces, learned.merges, strict=True):
        assert left in known and right in known and left + right == piece
        known.add(piece)


def test_a_product_that_is_a_piece_already_is_passed_over(gpt2_tokenizer: PreTrainedTokenizerFast) -> None:
    spec = json.loads(gpt2_tokenizer.backend_tokenizer.to_str())
    spec["model"]["vocab"]["qz"] = len(gpt2_tokenizer)  # a piece without a merge, as tiktoken conversions have them
    base = ByteLevel.of(Tokenizer.from_str(json.dumps(spec)))
    pre_tokens = {"qzx": 9, "qzq": 20}
    learned = learn(pre_tokens, base, 3)
    assert learned.num_doubled == 1
    assert learned.pieces == ["zq", "qzq", "zx"]
    assert learned.merges == slow_learn(pre_tokens, base, 3)[0]


def test_what_pieces_saved_is_what_the_corpus_needs_less(gpt2_tokenizer: PreTrainedTokenizerFast, chinese: list[str]) -> None:
    base = ByteLevel.of(gpt2_tokenizer.backend_tokenizer)
    pre_tokens = pre_tokens_of(base, chinese)
    learned = learn(pre_tokens, base, 150)
    extended = extend(gpt2_tokenizer, base, learned)
    tokens = [sum(len(t.encode(text, add_special_tokens=False)) for text in chinese) for t in (gpt2_tokenizer, extended)]
    assert [learned.num_tokens, learned.num_tokens - learned.saved[-1]] == tokens


@pytest.mark.parametrize("min_gain", [0.0, 1e-3, 3e-3, 0.02])
def test_pieces_come_while_they_save_enough(gpt2_tokenizer: PreTrainedTokenizerFast, chinese: list[str], min_gain: float) -> None:
    base = ByteLevel.of(gpt2_tokenizer.backend_tokenizer)
    pre_tokens = pre_tokens_of(base, chinese)
    everything = learn(pre_tokens, base, 200)
    learned = learn(pre_tokens, base, 200, min_gain=min_gain)
    enough = sum(count >= min_gain * everything.num_tokens for count in everything.counts)
    assert learned.pieces == everything.pieces[:enough] and learned.saved == everything.saved[:enough]
    assert learned.beyond == everything.saved[enough : 2 * enough + 2][: len(learned.beyond)]
    assert bool(learned.beyond) == (enough < 200)


def test_a_huge_limit_costs_nothing_once_pieces_gain_too_little(gpt2_tokenizer: PreTrainedTokenizerFast, chinese: list[str]) -> None:
    base = ByteLevel.of(gpt2_tokenizer.backend_tokenizer)
    learned = learn(pre_tokens_of(base, chinese), base, 10**9, min_gain=0.005)
    assert 10 < len(learned.pieces) < 100
    assert len(learned.pieces) - 1 <= len(learned.beyond) <= len(learned.pieces) + 2
    assert learned.without({learned.pieces[3]}).beyond == learned.beyond


def test_no_piece_that_saves_enough(gpt2_tokenizer: PreTrainedTokenizerFast, chinese: list[str]) -> None:
    base = ByteLevel.of(gpt2_tokenizer.backend_tokenizer)
    learned = learn(pre_tokens_of(base, chinese), base, 50, min_gain=0.9)
    assert learned.pieces == [] and len(learned.beyond) >= 1
