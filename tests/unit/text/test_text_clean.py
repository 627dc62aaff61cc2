"""One way to clean, one by one or in batches, with the same result."""

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zhlm.config.schema import CleanConfig
from zhlm.text.clean import Need, clean, clean_again, clean_batch
from zhlm.text.reject import Reason
from zhlm.text.screen import SCREEN_CHARACTERS

PIECES = [
    *"好的 \n\t\r\u0301e\u3000a\ufffd\ue000\u00a0\u00c3\u00a9\u0344\u1100\u1161\ud800𠮷，",
    "  ",
    "\n\n\n\n",
    "首页",
    "上一页",
    "版权所有",
    "\n版权所有 某公司\n",
    "© 2024 某某",
    "\n登录\n",
    "臺灣",
    "春眠不觉晓，处处闻啼鸟。",
    "plain words ",
    "\n- 项\n",
]
CONFIGS = [
    CleanConfig(),
    CleanConfig(min_han_share=0.5, max_chars=60),
    CleanConfig(normalise=False, boilerplate=False),
    CleanConfig(normalise=False, min_han_share=0.3),
    CleanConfig(to_simplified=True, max_repeated_line_share=1.0, max_repeated_ngram_share=1.0),
    CleanConfig(max_broken_share=1.0, max_repeated_ngram_share=0.1, max_repeated_line_share=0.1),
]

texts_of_pieces = st.lists(st.lists(st.sampled_from(PIECES), max_size=25).map("".join), max_size=8)


@settings(max_examples=300)
@given(texts_of_pieces, st.sampled_from(CONFIGS), st.sampled_from(["new", "old"]))
def test_a_batch_is_cleaned_like_its_texts(texts: list[str], config: CleanConfig, role: str) -> None:
    cleaned, reasons, needs = clean_batch(texts, config, role)  # type: ignore[arg-type]
    assert list(zip(cleaned, reasons, strict=True)) == [clean(t, config, role) for t in texts]  # type: ignore[arg-type]
    assert clean_again(texts, needs, config, role) == (cleaned, reasons)  # type: ignore[arg-type]


def test_what_a_text_needs_is_found_once() -> None:
    needs = clean_batch(["好的。", "好的。\n", "好  的。", "cafe\u0301", "首页\n好的。", ""], CleanConfig(), "new").needs_N
    assert needs.tolist() == [Need.NOTHING, Need.SPACES, Need.SPACES, Need.ALL, Need.ALL, Need.ALL]


@settings(max_examples=200)
@given(texts_of_pieces)
def test_what_is_kept_stays_as_it_is(texts: list[str]) -> None:
    config = CleanConfig(max_broken_share=1.0)  # where lines were removed, the share of broken characters is another
    cleaned, reasons, _ = clean_batch(texts, config, "new")
    kept = [text for text, reason in zip(cleaned, reasons, strict=True) if reason is None]
    assert clean_batch(kept, config, "new")[:2] == (kept, [None] * len(kept))


def test_long_texts_and_many_are_cleaned_alike() -> None:
    long = "".join(map(chr, Random(1).choices(range(0x4E00, 0x9F00), k=SCREEN_CHARACTERS + 1)))
    texts = ["短文。", long + "\n", "行尾  \n第二行", "", *["段落" + "甲乙丙丁"[i % 4] + "\n" for i in range(3000)]]
    cleaned, reasons, _ = clean_batch(texts, CleanConfig(), "new")
    assert (cleaned[0], cleaned[1] == long, cleaned[2]) == ("短文。", True, "行尾\n第二行")
    assert (reasons[3], reasons.count(None), len(cleaned)) == ("empty", len(texts) - 1, len(texts))
    assert clean_batch([], CleanConfig(), "new")[:2] == ([], [])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("臺灣的繁體字：龍、龜、鬱，乾坤與乾燥。", "台湾的繁体字：龙、龟、郁，乾坤与干燥。"),
        ("简体字保持原样，标点「」也一样。", "简体字保持原样，标点「」也一样。"),
        ("日本の新字体：国、売、発。", "日本の新字体：国、売、発。"),
    ],
)
def test_traditional_becomes_simplified_on_request(text: str, expected: str) -> None:
    assert clean(text, CleanConfig(to_simplified=True), "new") == (expected, None)
    assert clean_batch([text, text], CleanConfig(to_simplified=True), "new")[0] == [expected] * 2
    assert clean(text, CleanConfig(), "new") == (text, None)


@pytest.mark.parametrize(
    ("text", "cleaned", "reason"),
    [
        ("首页\n春眠不觉晓，处处闻啼鸟。\n上一页 | 下一页\n© 2024 某某网", "春眠不觉晓，处处闻啼鸟。", None),
        ("首页 > 关于我们\n版权所有 某公司", "首页 > 关于我们\n版权所有 某公司", "boilerplate"),
        ("首页\n好", "好", "too_short"),
        ("乱\ufffd码\ufffd太\ufffd多", "乱\ufffd码\ufffd太\ufffd多", "broken_encoding"),
        ("只有一个坏字符\ufffd的文章，照常保留，因为坏的很少。", "只有一个坏字符的文章，照常保留，因为坏的很少。", None),
        ("孤立的代理项\ud800去掉，其余的文字保留下来不动。", "孤立的代理项去掉，其余的文字保留下来不动。", None),
    ],
)
def test_each_step_has_its_turn(text: str, cleaned: str, reason: Reason | None) -> None:
    assert clean(text, CleanConfig(), "new") == (cleaned, reason)


@pytest.mark.parametrize("least", [1, 7, 40])
def test_a_book_is_cleaned_by_stretches_as_it_would_be_at_once(monkeypatch: pytest.MonkeyPatch, least: int) -> None:
    lines = [f"  第{i}章  开头，e\u0301 {i}。 \n\n\n\n\n下一段\x00，還有臺灣。\t" for i in range(30)]
    text = " \n" + "\n".join([*lines[:9], "上一页  下一页", *lines[9:]]) + "\n\n"
    config = CleanConfig(to_simplified=True)
    whole = clean(text, config, "new")
    monkeypatch.setattr("zhlm.text.clean.LONG_CHARACTERS", least)
    assert clean(text, config, "new") == whole and whole[1] is None
