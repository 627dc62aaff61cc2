# ruff: noqa: F401, F811 - fixtures are imported by name
from collections import Counter

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from trained_tokenizers import chinese, counted, english, train_wordpiece
from zhlm.pieces.extend import extend, first_new_id
from zhlm.pieces.kinds import take_apart
from zhlm.pieces.learn import Learned, learn
from zhlm.pieces.reach import extend_reachable
from zhlm.pieces.wordpiece import WordPiece
from zhlm.vocab.verify import verify


def opened(tokenizer: PreTrainedTokenizerFast) -> WordPiece:
    base = take_apart(tokenizer.backend_tokenizer)
    assert isinstance(base, WordPiece)
    return base


def tiny(*pieces: str) -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.WordPiece({p: n for n, p in enumerate(["[UNK]", *pieces])}, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]")


def test_words_give_the_ids_of_the_whole_text(chinese: list[str], english: list[str]) -> None:
    for tokenizer in (train_wordpiece(True), train_wordpiece(False)):
        base = opened(tokenizer)
        for text in [*chinese[:30], *english[:30], "Ünïcode ##a # ## 中中 [SEP"]:
            assert [i for ids in base.ids(base.words(text)) for i in ids] == tokenizer.encode(text, add_special_tokens=False)


def test_single_chinese_characters_where_each_is_a_word(chinese: list[str]) -> None:
    base = opened(train_wordpiece(True))
    learned = learn(counted(base, chinese), base, 500)
    han = [piece for piece in learned.pieces if "\u4e00" <= piece.strip("#")[0] <= "\u9fff"]
    assert len(han) > 30 and all(len(piece) == 1 for piece in han)
    assert not any(learned.merges)


def test_words_of_several_characters_where_the_base_leaves_them_together(chinese: list[str]) -> None:
    tokenizer = train_wordpiece(False)
    base = opened(tokenizer)
    learned = learn(counted(base, chinese), base, 500)
    assert any(piece.startswith("##") for piece in learned.pieces)
    assert any(len(piece) > 3 and not piece.startswith("##") for piece in learned.pieces)
    # The rule of the longest piece makes intermediate steps needless: each piece is used, or one character.
    extended = extend(tokenizer, base, learned)
    uses = Counter(piece for text in chinese for piece in extended.tokenize(text))
    assert all(uses[piece] >= 2 or len(piece.removeprefix("##")) == 1 for piece in learned.pieces)


def test_unknown_words_become_known(chinese: list[str], english: list[str]) -> None:
    tokenizer = train_wordpiece(True)
    base = opened(tokenizer)
    learned = learn(counted(base, chinese), base, 500)
    proof = verify(tokenizer, extend(tokenizer, base, learned), learned, first_new_id(tokenizer), chinese, english)
    assert proof.unknown_share["before"] > 0.5
    assert proof.unknown_share["after"] == 0


def test_new_pieces_are_spelled_as_well_as_can_be() -> None:
    base = opened(tiny("a", "##b", "##bc", "x", "##x", "##"))
    assert base.merge(["abc", "abb", "##bcx", "ax", "aqx", "q", "##q", "##"]) == [
        [1, 3],
        [1, 2, 2],
        [3, 5],
        [1, 5],
        [1, 0, 5],
        [0],
        [0],
        [6],
    ]


def test_a_piece_that_takes_a_word_its_spelling_is_dropped() -> None:
    """abcde is abc ##de; with abcd in the vocabulary the longest beginning leaves an e that nothing spells."""
    tokenizer = tiny("abc", "##de", "q", "##q")
    base = opened(tokenizer)
    proposed = Learned(["abcd", "qq"], [None, None], [5, 5], 0, 0)
    assert extend(tokenizer, base, proposed).tokenize("abcde") == ["[UNK]"]
    extended, kept = extend_reachable(tokenizer, base, proposed, ["abcde qq"])
    assert kept.pieces == ["qq"]
    assert extended.tokenize("abcde qq") == ["abc", "##de", "qq"]


def test_words_that_are_too_long_are_not_learned_from() -> None:
    base = opened(train_wordpiece(False))
    assert base.pre_tokens("天" * 101 + " ok") == ["ok"]
    assert base.words("天" * 101) == ["天" * 101]
