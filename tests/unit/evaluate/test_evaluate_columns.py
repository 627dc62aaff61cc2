import pytest

from zhlm.evaluate.columns import NO_LINE_START, cells, side_by_side, wrap

MIXED = "今天天气很好，we went to 杭州西湖 by train。𠮷野家 sells 牛肉饭；晚上七点三十五分，大家一起回家了！" * 3


def test_wide_characters_take_two_cells():
    assert cells("ab中文") == 6
    assert cells("，") == 2
    assert cells("e\u0301") == 1
    assert cells("𠮷") == 2


@pytest.mark.parametrize("width", [8, 13, 20, 47])
def test_wrapped_lines_fit_and_lose_nothing(width):
    lines = wrap(MIXED, width)
    assert all(cells(line) <= width for line in lines)
    assert "".join(lines).replace(" ", "") == MIXED.replace(" ", "")


def test_no_line_starts_with_closing_punctuation():
    for width in range(10, 40):
        assert not any(line[0] in NO_LINE_START for line in wrap(MIXED, width) if line)


def test_words_stay_whole_and_long_ones_are_cut():
    assert wrap("one two three", 8) == ["one two", "three"]
    assert wrap("abcdefghij", 4) == ["abcd", "efgh", "ij"]
    assert wrap("", 10) == [""]
    assert wrap("a\nb", 10) == ["a", "b"]


def test_chinese_behind_an_english_word_fills_its_line():
    assert wrap("hello 今天天气很好", 10)[0] == "hello 今天"


def test_control_characters_do_not_reach_the_terminal():
    assert "\x1b" not in "".join(wrap("red \x1b[31m text", 40))


def test_columns_are_aligned():
    lines = side_by_side({"base": "中文" * 30, "adapted": "plain words " * 10}, 80)
    assert len({cells(line.split(" | ")[0]) for line in lines if " | " in line}) == 1
    assert all(cells(line) <= 80 for line in lines)
    assert lines[0].split(" | ")[1] == "adapted"


def test_narrow_terminals_show_one_below_the_other():
    lines = side_by_side({"base": "中文", "adapted": "text"}, 40)
    assert lines == ["base", "  中文", "adapted", "  text"]
