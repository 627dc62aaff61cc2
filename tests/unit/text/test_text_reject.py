"""Reasons to drop a text."""

import pytest

from zhlm.config.schema import CleanConfig
from zhlm.text.reject import han_share, rejection, repeated_share


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
        ("广告\n广告\n广告\n正文", CleanConfig(max_repeated_share=0.3), "repeated_lines"),
        ("广告\n广告\n广告\n正文", CleanConfig(max_repeated_share=0.5), None),
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


def test_blank_lines_do_not_repeat() -> None:
    assert repeated_share("一\n\n\n二\n\n一 ") == pytest.approx(1 / 3)
    assert repeated_share("\n\n") == 0
