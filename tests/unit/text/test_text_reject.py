"""Reasons to drop a text."""

import pytest

from zhlm.config.schema import CleanConfig
from zhlm.text.reject import broken_share, han_share, rejection, repeated_line_share, repeated_ngram_share


@pytest.mark.parametrize(
    ("text", "clean", "reason"),
    [
        ("", CleanConfig(), "empty"),
        (" \n\u3000", CleanConfig(), "empty"),
        ("好", CleanConfig(), "too_short"),
        ("好的", CleanConfig(), None),
        ("好" * 11, CleanConfig(max_chars=10), "too_long"),
        ("plain English", CleanConfig(), None),
        ("plain English", CleanConfig(min_han_share=0.3), "low_han_share"),
        ("龍龜鬱𠮷𪚥", CleanConfig(min_han_share=1.0), None),
        ("广告\n广告\n广告\n正文", CleanConfig(max_repeated_line_share=0.3), "repeated_lines"),
        ("广告\n广告\n广告\n正文", CleanConfig(), None),
        ("今日特价，欢迎选购。" * 50, CleanConfig(), "repeated_ngrams"),
        ("今日特价，欢迎选购。" * 50, CleanConfig(max_repeated_ngram_share=1.0), None),
        ("今日特价，欢迎选购。" * 30, CleanConfig(), None),  # too short to be searched
        ("\n".join(f"第{i}条，内容各不相同：{i * i}。" for i in range(60)), CleanConfig(), None),
    ],
)
def test_each_reason(text: str, clean: CleanConfig, reason: str | None) -> None:
    assert rejection(text, clean, "new") == reason


def test_the_old_language_need_not_be_han() -> None:
    assert rejection("plain English", CleanConfig(min_han_share=0.3), "old") is None


@pytest.mark.parametrize(
    ("text", "share"),
    [("", 0.0), ("汉字", 1.0), ("汉字 ab", 0.5), ("々〇", 1.0), ("𠮷a", 0.5), ("，。", 0.0), ("かな仮名", 0.5), ("한글漢", 1 / 3)],
)
def test_han_share_counts_the_script(text: str, share: float) -> None:
    assert han_share(text) == pytest.approx(share)


def test_lines_weigh_by_their_characters() -> None:
    assert repeated_line_share("一\n\n\n二\n\n一") == pytest.approx(1 / 3)
    assert repeated_line_share("}\n一行很长的代码\n}") == pytest.approx(1 / 9)
    assert repeated_line_share("\n\n") == repeated_line_share("") == 0


def test_refrains_are_no_reason() -> None:
    poem = (
        "采采芣苢，薄言采之。\n采采芣苢，薄言有之。\n采采芣苢，薄言掇之。\n采采芣苢，薄言捋之。\n采采芣苢，薄言袺之。\n采采芣苢，薄言襭之。"
    )
    assert rejection(poem, CleanConfig(), "new") is None


def test_ngrams_count_each_character_once() -> None:
    assert repeated_ngram_share("甲乙丙丁戊己庚辛壬癸" * 2) == 0.5
    assert repeated_ngram_share("一" * 12) == pytest.approx(11 / 12)
    assert repeated_ngram_share("") == repeated_ngram_share("短") == 0


@pytest.mark.parametrize("encoding", ["latin1", "cp1252", "gb18030"])
def test_utf8_read_as_something_else_is_broken(encoding: str) -> None:
    prose = "天地玄黄，宇宙洪荒。他的书里说：“日月盈昃，辰宿列张。”寒来暑往的时候，秋收冬藏。"
    assert broken_share(prose.encode().decode(encoding, "replace")) > 0.05


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("", 0),
        ("plain", 0),
        ("锟斤拷", 1),
        ("好\ue000", 0.5),
        ("好\ufffd\ud800好", 0.5),
        ("Ã©tÃ©", 0.8),
        ("été naïve ça là « oui »", 0),
        ("👍🏽🇨🇳𠮷", 0),
    ],
)
def test_broken_share(text: str, share: float) -> None:
    assert broken_share(text) == pytest.approx(share)
