# ruff: noqa: F401, F811 - fixtures are imported by name
import re
from collections import Counter
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from trained_tokenizers import chinese, english, gpt2_tokenizer, train_sentencepiece, train_wordpiece
from zhlm.errors import BaseModelError, ConfigError, VerificationError
from zhlm.pieces.extend import first_new_id
from zhlm.pieces.kinds import take_apart
from zhlm.pieces.learn import learn
from zhlm.pieces.reach import extend_reachable
from zhlm.pieces.words import WithWords, add_words, check_words, cut_words, read_words
from zhlm.tokenizer.load import load_tokenizer
from zhlm.vocab.verify import verify

WORDS = ["图书馆", "GPT-4中", "𠮷野家", "zzqy"]
KINDS = {"gemma": lambda: train_sentencepiece("gemma"), "metaspace": lambda: train_sentencepiece("metaspace"), "bert": train_wordpiece}


@pytest.fixture(params=["gpt2", *KINDS])
def any_tokenizer(request: pytest.FixtureRequest, gpt2_tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    return KINDS[request.param]() if request.param in KINDS else gpt2_tokenizer


def write(folder: Path, text: str) -> str:
    (folder / "words.txt").write_bytes(text.encode())
    return str(folder / "words.txt")


def test_words_are_tokens_of_their_own_beside_learned_pieces(
    any_tokenizer: PreTrainedTokenizerFast, chinese: list[str], english: list[str], tmp_path: Path
) -> None:
    base = take_apart(any_tokenizer.backend_tokenizer)
    words = read_words(write(tmp_path, "\ufeff" + "\r\n".join(WORDS) + "\n\n"), any_tokenizer, base)
    assert words == WORDS
    counts = cut_words(Counter(p for text in chinese for p in base.pre_tokens(text)), base, words)
    proposed = learn(counts, base, 80)
    extended, learned = extend_reachable(any_tokenizer, base, proposed, [*chinese, *english], words)
    extended.save_pretrained(tmp_path / "out")
    extended, first = load_tokenizer(str(tmp_path / "out")), first_new_id(any_tokenizer)
    assert extended.convert_tokens_to_ids(words) == list(range(first + len(learned.pieces), first + len(learned.pieces) + 4))
    assert extended.convert_tokens_to_ids("zzqy") in extended("xzzqyx", add_special_tokens=False)["input_ids"]
    proof = verify(any_tokenizer, extended, learned, first, chinese, english, words)
    assert (proof.words, proof.new_pieces, proof.reachable) == (4, len(learned.pieces) + 4, len(learned.pieces) + 4)
    assert proof.unreachable == [] and proof.old_texts_same == len(english)
    assert not any("图书馆" in (base.text_of(piece) or "") for piece in learned.pieces)
    spelled = WithWords(base, frozenset(words)).merge([*learned.pieces, *words])
    assert len(spelled) == proof.new_pieces and all(ids and max(ids) < first for ids in spelled)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("公园\n学校\n公园\n", "line 3 has '公园', which line 1 has too"),
        ("公 园\n", "line 1 has '公 园', which has a space"),
        ("公园 \n", "which has a space"),
        ("\u3000\n", "which has a space"),
        ("公园\nteacher\n", "line 2 has 'teacher', which is a token of the base already"),
        ("<|endoftext|>\n", "which is a token of the base already"),
        ("\n\n", "is empty, expected a word per line"),
    ],
)
def test_lists_that_are_refused(text: str, says: str, gpt2_tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    gpt2_tokenizer.add_tokens(["teacher"])
    with pytest.raises(ConfigError, match=re.escape(says)) as caught:
        read_words(write(tmp_path, text), gpt2_tokenizer, take_apart(gpt2_tokenizer.backend_tokenizer))
    assert "\n" not in str(caught.value)


def test_a_list_that_cannot_be_read(gpt2_tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    base = take_apart(gpt2_tokenizer.backend_tokenizer)
    (tmp_path / "words.txt").write_bytes("公园".encode("gbk"))
    with pytest.raises(ConfigError, match="is not UTF-8 at byte 0"):
        read_words(str(tmp_path / "words.txt"), gpt2_tokenizer, base)
    with pytest.raises(ConfigError, match=r"nowhere does not exist; correct vocab\.word_list"):
        read_words(str(tmp_path / "nowhere"), gpt2_tokenizer, base)


def test_a_tokenizer_that_puts_spaces_behind_words_is_refused(tmp_path: Path) -> None:
    tokenizer = train_sentencepiece("llama")
    with pytest.raises(BaseModelError, match=r"cannot have words of a list: .* comes back as"):
        read_words(write(tmp_path, "图书馆"), tokenizer, take_apart(tokenizer.backend_tokenizer))


def test_what_words_would_break_is_found(gpt2_tokenizer: PreTrainedTokenizerFast) -> None:
    bare = gpt2_tokenizer.backend_tokenizer.__class__.from_str(gpt2_tokenizer.backend_tokenizer.to_str())
    first = len(gpt2_tokenizer)
    add_words(gpt2_tokenizer, ["公园"], first)
    with pytest.raises(VerificationError, match="1 words of the list are not a token of their own, '学校'"):
        check_words(bare, gpt2_tokenizer.backend_tokenizer, ["公园", "学校"], first, [], True)
    add_words(gpt2_tokenizer, ["学校"], first + 1)
    with pytest.raises(VerificationError, match="added tokens change the ids of a text without any: '去学校'"):
        check_words(bare, gpt2_tokenizer.backend_tokenizer, ["公园"], first, ["在公园", "去学校"], True)
    with pytest.raises(VerificationError, match="got the ids"):
        add_words(gpt2_tokenizer, ["医院"], first)
