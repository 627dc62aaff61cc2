"""Cleaning keeps what Chinese text means and removes what only the encoding left behind."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zhlm.text.normalise import normalise


@pytest.mark.parametrize(
    "text",
    [
        "“你好，世界！”——《论语》（节选）……：；？、～",
        "全角ＡＢＣ１２３％＠　中间有全角空格",
        "　　段首缩进的传统写法。",
        "臺灣的繁體字：龍、龜、鬱。",
        "生僻字𠮷𪚥𬺰在基本平面之外。",
        "👨‍👩‍👧 一家人 🇨🇳 👍🏽",
        "def f(x):\n    if x:\n        return {'值': x}\n\n\nprint(1)",
        "一\n\n二\t三",
    ],
)
def test_text_that_means_something_is_left_alone(text: str) -> None:
    assert normalise(text) == text


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("e\u0301cole", "\u00e9cole"),
        ("e\ufeff\u0301", "\u00e9"),
        ("\uf91d", "\u6b04"),  # a compatibility ideograph is the unified one
        ("一\r\n二\r三\u2028四\x0c五", "一\n二\n三\n四\n五"),
        ("\ufeff零\x00宽\x07\x1b[0m\x9f", "零宽[0m"),
        ("中文  和   English\u00a0\u00a0混排", "中文 和 English 混排"),
        ("行尾空格  \t\n下一行", "行尾空格\n下一行"),
        ("一\n\n\n\n\n\n二", "一\n\n\n二"),
        ("\n  首尾 \n\n", "首尾"),
        (" \r\n\t", ""),
        ("坏\ufffd字\ud800符", "坏字符"),
        ("制表\t  后", "制表\t 后"),
        ("\ufeff  首", "首"),
    ],
)
def test_what_the_encoding_left_behind_goes(text: str, clean: str) -> None:
    assert normalise(text) == clean


@given(st.text(st.sampled_from("好 \n\r\t\x00\u0301e\u2028\ufeff\ufffd\u00a0　。a"), max_size=40))
def test_twice_is_once(text: str) -> None:
    once = normalise(text)
    assert normalise(once) == once
