"""Line charts and bars as inline SVG with HTML labels.

The SVG is stretched to its box, so that a chart fits a phone and a wide screen alike; strokes do not scale, and all text is HTML placed
by percentages, so that it keeps its size. Every text that comes from outside is escaped here.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from zhlm.evaluate.training_log import Points, thinned

MAX_POINTS = 240
"""Of a line: more would only make the file larger."""
BOX = 1000
"""Units of a chart's viewBox in both directions."""


@dataclass(frozen=True)
class Line:
    """One curve, labelled at its end."""

    name: str
    points: Points
    colour: str
    """CSS class of the theme."""
    faint: bool = False
    """Drawn thin behind the others, without label or hover titles: the raw values of a smoothed curve."""


@dataclass(frozen=True)
class Level:
    """A dashed horizontal line, labelled at its end."""

    name: str
    value: float
    colour: str


def ticks(low: float, high: float, count: int) -> list[float]:
    """About `count` round numbers from at or below `low` to at or above `high`, in steps of 1, 2, 2.5 or 5 times a power of ten."""
    span = high - low or abs(high) or 1.0
    power = 10.0 ** math.floor(math.log10(span / count))
    step = next(power * m for m in (1, 2, 2.5, 5, 10) if span / (power * m) <= count * 1.0001)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, max(last, first + 1) + 1)]


def number(value: float) -> str:
    """A value with four significant digits, or fewer where they are zeros; 12,300 and 3e-4 for the large and the small."""
    size = abs(value)
    if size and size < 1e-3:
        mantissa, exponent = f"{value:.2e}".split("e")
        return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    if size >= 1000:
        return f"{value / 1e6:,.3g}M" if size >= 1e6 else f"{value:,.0f}"
    return f"{value:.{3 if size < 10 else 2 if size < 100 else 1}f}"


def tick_number(value: float) -> str:
    """A round value without its zeros: 0.5, 2, 5,000, 20k."""
    if abs(value) >= 10_000:
        return f"{value / 1e6:g}M" if abs(value) >= 1e6 else f"{value / 1e3:g}k"
    text = number(value)
    return text.rstrip("0").rstrip(".") if "." in text and text[-1].isdigit() and "e" not in text else text


def log_ticks(low: float, high: float) -> list[float]:
    """Round numbers from at or below `low` to at or above `high` for a logarithmic axis: at most 8, denser for a short range."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for digits in ((1, 1.2, 1.4, 1.7, 2, 2.5, 3, 4, 5, 6, 7, 8.5), (1, 1.5, 2, 3, 4, 5, 7), (1, 2, 5), (1,)):
        found = [round(d * 10.0**p, 12) for p in powers for d in digits]
        found = found[max(i for i, t in enumerate(found) if t <= low) : min(i for i, t in enumerate(found) if t >= high) + 1]
        if len(found) <= 8:
            break
    return found


def line_chart(
    title: str,
    lines: Sequence[Line],
    levels: Sequence[Level] = (),
    *,
    y_name: str,
    x_name: str = "step",
    small: bool = False,
    ratios: bool = False,
) -> str:
    """A figure of curves, over training steps or what `x_name` says. Empty when there is nothing to draw.

    `ratios` makes the axis logarithmic where the values span more than a factor of 2, so that the last percents stay visible.
    """
    lines = [line for line in lines if line.points]
    if not lines:
        return ""
    lines = [Line(line.name, thinned(line.points, MAX_POINTS), line.colour, line.faint) for line in lines]
    low, high = _range(lines, levels)
    log = ratios and 0 < low < high / 2
    # From zero where that costs little height: then lengths can be compared by eye.
    y_ticks = log_ticks(low, high) if log else ticks(0.0 if 0 <= low < high / 2.5 else low, high, 3 if small else 5)
    unit = y_name
    y_name += ", logarithmic scale" if log else ""
    last_step = max(line.points[-1][0] for line in lines)
    x_ticks = [t for t in ticks(0, max(last_step, 1), 3 if small else 6) if t <= max(last_step, 1) and t == int(t)]
    frame = _Frame(max(last_step, 1), y_ticks[0], y_ticks[-1], log)
    drawing = [
        *(f'<path class="grid" d="M0 {frame.y(t):.1f}H{BOX}"/>' for t in y_ticks),
        *(f'<path class="level {v.colour}" d="M0 {frame.y(v.value):.1f}H{BOX}"/>' for v in levels),
        *(_curve(line, frame) for line in sorted(lines, key=lambda line: not line.faint)),
        *(_hover(line, frame, x_name, unit) for line in lines if not line.faint),
    ]
    labels = [
        *(f'<span class="tick y" style="top:{frame.y(t) / BOX:.2%}">{tick_number(t)}</span>' for t in y_ticks),
        *(_x_label(t, frame, minor=bool(i % 2) and not small) for i, t in enumerate(x_ticks)),
        *_end_labels(lines, levels, frame, 0.17 if small else 0.075),
    ]
    spoken = "; ".join(f"{line.name} ends at {number(line.points[-1][1])}" for line in lines if not line.faint)
    return (
        f'<figure class="chart{" small" if small else ""}"><figcaption><b>{escape(title)}</b> <span>{escape(y_name)}</span></figcaption>'
        f'<div class="plot">{_svg("curves", f"{title}: {spoken}")}{"".join(drawing)}</svg>{"".join(labels)}</div>'
        f'<div class="axis">{escape(x_name)}</div></figure>'
    )


def bar(value: float, limit: float, colour: str, title: str, level: float | None = None) -> str:
    """One horizontal bar on a scale from 0 to `limit`, crossed by a dashed line at `level`."""
    block = f'<rect class="{colour}" width="{BOX * value / limit:.1f}" height="{BOX}"><title>{escape(title)}</title></rect>'
    mark = "" if level is None else f'<path class="level ink" d="M{BOX * level / limit:.1f} -{BOX // 7}V{BOX + BOX // 7}"/>'
    return f"{_svg('bar', title)}{block}{mark}</svg>"


def _svg(kind: str, spoken: str) -> str:
    return f'<svg class="{kind}" viewBox="0 0 {BOX} {BOX}" preserveAspectRatio="none" role="img" aria-label="{escape(spoken)}">'


@dataclass(frozen=True)
class _Frame:
    last_step: float
    low: float
    high: float
    log: bool

    def x(self, step: float) -> float:
        return BOX * step / self.last_step

    def y(self, value: float) -> float:
        if self.log:
            return BOX * math.log(self.high / value) / math.log(self.high / self.low)
        return BOX * (self.high - value) / (self.high - self.low)


def _range(lines: Sequence[Line], levels: Sequence[Level]) -> tuple[float, float]:
    values = [y for line in lines for _, y in line.points] + [v.value for v in levels]
    return min(values), max(values)


def _curve(line: Line, frame: _Frame) -> str:
    path = " ".join(f"{frame.x(x):.1f},{frame.y(y):.1f}" for x, y in line.points)
    end = "" if line.faint else f'<path class="dot {line.colour}" d="M{path.split(" ")[-1]}h0"/>'
    return f'<polyline class="curve {line.colour}{" faint" if line.faint else ""}" points="{path}"/>{end}'


def _hover(line: Line, frame: _Frame, x_name: str, unit: str) -> str:
    return "".join(
        f'<path class="hit {line.colour}" d="M{frame.x(x):.1f},{frame.y(y):.1f}h0">'
        f"<title>{escape(line.name)}, {escape(x_name)} {x:,.0f}: {number(y)} {escape(unit)}</title></path>"
        for x, y in line.points
    )


def _x_label(step: float, frame: _Frame, minor: bool) -> str:
    """`minor` ones are hidden on narrow screens."""
    return f'<span class="tick x{" minor" if minor else ""}" style="left:{frame.x(step) / BOX:.2%}">{tick_number(step)}</span>'


def _end_labels(lines: Sequence[Line], levels: Sequence[Level], frame: _Frame, gap: float) -> list[str]:
    wanted = [(frame.y(line.points[-1][1]) / BOX, line.name, line.points[-1][1], line.colour) for line in lines if not line.faint]
    wanted += [(frame.y(v.value) / BOX, v.name, v.value, v.colour) for v in levels]
    wanted.sort()
    tops = spread([w[0] for w in wanted], gap)
    return [
        f'<span class="end {colour}" style="top:{top:.2%}"><i>{escape(name)}</i> <b>{number(value)}</b></span>'
        for top, (_, name, value, colour) in zip(tops, wanted, strict=True)
    ]


def spread(tops: Sequence[float], gap: float) -> list[float]:
    """Ascending heights between 0 and 1, moved as little as it takes for neighbours to be `gap` apart."""
    groups: list[list[float]] = []
    for top in tops:
        groups.append([top])
        while len(groups) > 1 and _first(groups[-2], gap) + gap * len(groups[-2]) > _first(groups[-1], gap):
            last = groups.pop()
            groups[-1] = groups[-1] + last
    return [_first(group, gap) + gap * i for group in groups for i in range(len(group))]


def _first(group: Sequence[float], gap: float) -> float:
    """Where the first of a group of touching labels stands: centred on what they label, inside the chart."""
    height = gap * (len(group) - 1)
    return max(min(math.fsum(group) / len(group) - height / 2, 1.0 - height), 0.0)
