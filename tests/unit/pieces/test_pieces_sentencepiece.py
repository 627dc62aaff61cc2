# ruff: noqa: F401, F811 - fixtures are imported by name
import itertools
import json
from collections import Counter

import pytest
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from trained_tokenizers import SENTENCEPIECE, chinese, counted, english, train_sentencepiece
from zhlm.pieces.extend import extend
from zhlm.pieces.kinds import take_apart
from zhlm.pieces.learn import learn
from zhlm.pieces.sentencepiece import SentencePiece

TEXTS = ["中文  and 中 x\n\n  y中1，。 ", "   ", "a", "", "The teacher's 书", "\ttab 中\u2581文"]


@pytest.fixture(params=SENTENCEPIECE)
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerFast:
    return train_sentencepiece(request.param)


def opened(tokenizer: PreTrainedTokenizerFast) -> SentencePiece:
    base = take_apart(tokenizer.backend_tokenizer)
    assert isinstance(base, SentencePiece)
    return base


def test_merging_pre_tokens_gives_the_ids_of_the_whole_text(tokenizer: PreTrainedTokenizerFast, chinese: list[str]) -> None:
    base = opened(tokenizer)
    for text in [*chinese[:30], *TEXTS]:
        assert [row for rows in base.merge(base.pre_tokens(text)) for row in rows] == tokenizer.encode(text, add_special_tokens=False)
    assert base.pre_tokens("a 中文，b c")[1:] == ["\u2581中文", "，b", "\u2581c"]


@pytest.mark.parametrize(
    ("merges", "pre_tokens"),
    [
        ([], ["x", "\u2581中", "a", "中", "\u2581y"]),
        ([("a", "中")], ["x", "\u2581中a中", "\u2581y"]),
        ([("a", "中"), ("中", "\u2581")], ["x\u2581中a中\u2581y"]),
    ],
    ids=["words_and_scripts", "words", "nothing"],
)
def test_cuts_only_where_no_old_merge_reaches(merges: list[tuple[str, str]], pre_tokens: list[str]) -> None:
    spec = json.loads(train_sentencepiece("gemma").backend_tokenizer.to_str())
    spec["model"]["vocab"] |= {"".join(merge): 1000 + n for n, merge in enumerate(merges)}
    spec["model"]["merges"] += [list(merge) for merge in merges]
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(spec)))
    base = opened(tokenizer)
    assert base.pre_tokens("x 中a中 y") == pre_tokens
    learned = learn(counted(base, ["x 中a中 y天天天天 z天天 y天天"] * 3), base, 40)
    assert "天" in learned.pieces and "天天" in learned.pieces
    assert all(base.may_be_piece(piece) and "\u2581" not in piece[1:] for piece in learned.pieces)


@pytest.mark.parametrize(
    ("piece", "legal"),
    [
        ("\u2581中国", True),
        ("中国", True),
        ("\u2581", True),
        ("\u2581\u2581\u2581", True),
        ("\u2581\u2581中", False),
        ("中\u2581国", False),
        ("中\u2581", False),
        ("\u2581a中", False),
        ("。，", True),
    ],
)
def test_what_a_piece_may_be(piece: str, legal: bool) -> None:
    assert opened(train_sentencepiece()).may_be_piece(piece) is legal


def slow_learn(counts: Counter[str], base: SentencePiece, num_pieces: int) -> tuple[list[str], list[int], dict[str, list[str]]]:
    """Count everything again before each piece: characters by the byte tokens that they save, pairs of pieces by occurrences."""
    start = base.start(counts.keys())
    name = {row: piece for piece, row in (base.vocabulary | dict(start.loose)).items()}
    words = {word: [name[row] for row in start.encode([word])[0]] for word in counts}
    order, loose = dict(base.vocabulary), set(start.loose)
    pieces: list[str] = []
    gains: list[int] = []
    while len(pieces) < num_pieces:
        single = Counter({part: 0 for part in loose})
        pairs: Counter[tuple[str, str]] = Counter()
        for word, parts in words.items():
            single.update({part: n * counts[word] for part, n in Counter(parts).items() if part in loose})
            pairs.update({pair: n * counts[word] for pair, n in Counter(itertools.pairwise(parts)).items() if not loose & set(pair)})
        found = [(n * (len(c.encode()) - 1), (0, c), (c,)) for c, n in single.items() if n >= 2 and not c.isascii()]
        legal = {p: n for p, n in pairs.items() if n >= 2 and "".join(p) not in order and base.may_be_piece("".join(p))}
        found += [(n, (1, *(rank(part, order, base) for part in p)), p) for p, n in legal.items()]
        if not found:
            break
        gain, _, best = min(found, key=lambda f: (-f[0], f[1]))
        loose -= set(best)
        words = {word: merged(parts, best) for word, parts in words.items()}
        pieces.append("".join(best))
        gains.append(gain)
        order[pieces[-1]] = 10**6 + len(pieces)
    return pieces, gains, words


def merged(parts: list[str], best: tuple[str, ...]) -> list[str]:
    at, parts = 0, list(parts)
    while len(best) == 2 and at < len(parts) - 1:
        if (parts[at], parts[at + 1]) == best:
            parts[at : at + 2] = ["".join(best)]
        at += 1
    return parts


def rank(piece: str, order: dict[str, int], base: SentencePiece) -> tuple[int, str]:
    """Among equals: old pieces, characters by code point, then merged ones as they came."""
    if piece in base.vocabulary:
        return base.vocabulary[piece], ""
    return (10**5, piece) if len(piece) == 1 else (order[piece], "")


@pytest.mark.parametrize("num_pieces", [60, 140])
def test_the_pieces_are_those_of_a_slow_learner(tokenizer: PreTrainedTokenizerFast, chinese: list[str], num_pieces: int) -> None:
    base = opened(tokenizer)
    counts = counted(base, chinese)
    learned = learn(counts, base, num_pieces)
    pieces, gains, segmented = slow_learn(counts, base, num_pieces)
    assert (learned.pieces, learned.counts) == (pieces, gains)
    # What was learned is what the tokenizer produces: also where the base has the whole text for one word.
    extended = opened(extend(tokenizer, base, learned))
    known = extended.vocabulary
    for word, parts in segmented.items():
        spelled = [row for part in parts for row in ([known[part]] if part in known else base.merge([part])[0])]
        assert extended.merge([word])[0] == spelled


def test_characters_come_before_what_is_made_of_them(tokenizer: PreTrainedTokenizerFast, chinese: list[str]) -> None:
    base = opened(tokenizer)
    learned = learn(counted(base, chinese), base, 150)
    known = set(base.vocabulary)
    for piece, merge in zip(learned.pieces, learned.merges, strict=True):
        assert len(piece) == 1 if merge is None else set(merge) <= known and "".join(merge) == piece
        known.add(piece)
    assert sum(merge is None for merge in learned.merges) > 30
    assert all(len(row) == len(char.encode()) for char, row in zip("天𠮷", base.merge(["天", "𠮷"]), strict=True))


def test_a_character_seen_once_and_one_of_a_single_byte_are_not_worth_a_row() -> None:
    base = opened(train_sentencepiece("gemma"))
    assert learn({"龘": 1, "\x07": 50, "龍": 2}, base, 9).pieces == ["龍"]
