import re
from itertools import pairwise

import pytest

from zhlm.evaluate.charts import MAX_POINTS, Level, Line, bar, line_chart, log_ticks, number, spread, tick_number, ticks

CURVE = [(0.0, 4.2), (100.0, 1.1), (400.0, 0.8)]


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 4.61, [0, 1, 2, 3, 4, 5]),
        (0, 400, [0, 100, 200, 300, 400]),
        (0.71, 0.83, [0.7, 0.725, 0.75, 0.775, 0.8, 0.825, 0.85]),
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (0, 3e-4, [0, 1e-4, 2e-4, 3e-4]),
        (-1, 1, [-1, -0.5, 0, 0.5, 1]),
    ],
)
def test_ticks_are_round_and_enclose_the_values(low, high, expected):
    assert ticks(low, high, 5) == pytest.approx(expected)


@pytest.mark.parametrize("low", [0.0, 0.3, 5.0, 1e-7])
@pytest.mark.parametrize("span", [0.0, 1e-9, 0.013, 7.0, 1e6])
def test_ticks_of_any_range_are_few(low, span):
    found = ticks(low, low + span, 5)
    assert found[0] <= low + 1e-12 and found[-1] >= (low + span) * (1 - 1e-9)
    assert 2 <= len(found) <= 8


@pytest.mark.parametrize(("low", "high"), [(0.7, 4.6), (0.702, 0.9), (0.001, 900.0), (1.0, 10.0), (0.99, 2.01), (9.9, 10.1)])
def test_log_ticks_enclose_the_values(low, high):
    found = log_ticks(low, high)
    assert found[0] <= low and found[-1] >= high
    assert 2 <= len(found) <= 8 and found == sorted(set(found))


def test_numbers_are_short():
    assert [number(v) for v in (0.81234, 0, 12.345, 123.45, 1234.5, 2_500_000, 3e-4, -0.5)] == [
        "0.812",
        "0.000",
        "12.35",
        "123.5",
        "1,234",
        "2.5M",
        "3e-4",
        "-0.500",
    ]
    assert [tick_number(v) for v in (0, 0.5, 2, 100, 5000, 20_000, 1_500_000, 1e-4)] == [
        "0",
        "0.5",
        "2",
        "100",
        "5,000",
        "20k",
        "1.5M",
        "1e-4",
    ]


def test_labels_keep_their_distance_and_stay_inside():
    assert spread([0.1, 0.5], 0.1) == [0.1, 0.5]
    tops = spread([0.90, 0.91, 0.92, 0.99], 0.1)
    assert tops == pytest.approx([0.7, 0.8, 0.9, 1.0])
    assert spread([0.5, 0.5], 0.1) == pytest.approx([0.45, 0.55])
    crowded = spread([0.2, 0.31, 0.32, 0.33, 0.5], 0.1)
    assert all(b - a >= 0.1 - 1e-9 for a, b in pairwise(crowded))


def test_a_chart_draws_labels_and_escapes():
    chart = line_chart("Bits <b>", [Line("zh&", CURVE, "c0")], [Level("zh entropy", 0.76, "c0")], y_name="bits", ratios=True)
    assert chart.count("<polyline") == 1
    assert chart.count('class="level') == 1
    assert "Bits &lt;b&gt;" in chart and "zh&amp;" in chart and "<b>0.800</b>" in chart and "<b>0.760</b>" in chart
    assert "zh&amp;, step 100: 1.100 bits</title>" in chart
    assert "logarithmic" in chart
    assert "nan" not in chart


def test_points_lie_inside_the_chart():
    for ratios in (False, True):
        chart = line_chart("t", [Line("a", CURVE, "c0")], y_name="", ratios=ratios)
        points = re.search(r'points="([^"]+)"', chart).group(1)
        values = [float(v) for pair in points.split() for v in pair.split(",")]
        assert min(values) >= 0 and max(values) <= 1000


def test_odd_curves_are_drawn():
    assert line_chart("t", [Line("a", [], "c0")], y_name="") == ""
    assert "<polyline" in line_chart("t", [Line("a", [(0.0, 2.0)], "c0")], y_name="")
    assert "<polyline" in line_chart("t", [Line("a", [(0.0, 0.0), (5.0, 0.0)], "c0")], y_name="")
    long = line_chart("t", [Line("a", [(float(i), float(i % 7)) for i in range(100_000)], "c0")], y_name="")
    assert long.count("<title>") == MAX_POINTS


def test_a_bar_is_as_long_as_its_value():
    assert 'width="250.0"' in bar(1, 4, "c0", "one of four")
    assert 'd="M500.0 ' in bar(1, 4, "c0", "one of four", level=2)
