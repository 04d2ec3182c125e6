"""Line charts as SVG, so that a report needs no script, no font, no network and no matplotlib."""

import math
from collections.abc import Mapping, Sequence
from html import escape

Point = tuple[float, float]  # (x, y)
Points = Sequence[Point]  # those whose y is not finite are left out
Segment = tuple[Point, Point]

WIDTH, HEIGHT = 560, 300  # pixels
LEFT, RIGHT, TOP, BOTTOM = 64, 16, 34, 44  # margins
ROW = 18  # height of a row of the legend, below the chart
COLORS = ("#1f6fb4", "#d9601a", "#2b8f3e", "#b03a72", "#6b52a8", "#8a6d1c")  # one per line
LOG_RATIO = 30  # largest / smallest value from which positive values get a logarithmic axis
MAX_POINTS = 600  # per line; a chart has no more pixels
FONT = "font-family='sans-serif' font-size='12'"


def line_chart(
    title: str,
    lines: Mapping[str, Points],
    *,
    x_label: str,
    references: Mapping[str, float] | None = None,
    dots: bool = False,
    bars: Mapping[str, Sequence[Segment]] | None = None,
    labels: Mapping[Point, str] | None = None,
    names: Mapping[float, str] | None = None,
) -> str:
    """Return an SVG element with a chart.

    Args:
        lines: name -> points, in the order in which they are joined; a single line needs no legend.
        references: name -> value that is drawn as a dashed horizontal line.
        dots: draw the points, too; for few of them.
        bars: name of a line -> segments that show how uncertain its points are.
        labels: point -> text next to it.
        names: x -> what stands there. It is not a number then, so points are not joined.
    """
    drawn = {name: points for name, all_points in lines.items() if (points := finite(all_points))}
    references = {name: y for name, y in (references or {}).items() if math.isfinite(y)}
    segments = {k: finite_segments((bars or {}).get(name, ())) for k, name in enumerate(drawn)}
    ends = [point for some in segments.values() for both in some for point in both]
    marks = [point for points in drawn.values() for point in points] + ends
    values = [y for _, y in marks] + list(references.values())
    if not values:
        return document(title, x_label, [text(WIDTH / 2, HEIGHT / 2, "no finite values", "middle")])
    plot = Plot([x for x, _ in marks] or [0.0], values)
    elements = plot.grid(names)
    for k, (name, value) in enumerate(references.items()):
        y = plot.y_pixel(value)
        label = y - 5 if y - 5 > TOP + 8 else y + 14  # not into the title
        x = LEFT + 6 + 150 * k  # next to each other, as the values may be equal
        elements += [horizontal_line(y, "#444", "5 4"), text(x, label, name)]
    for k, points in enumerate(drawn.values()):
        color = COLORS[k % len(COLORS)]
        elements += [plot.bar(segment, color) for segment in segments[k]]
        parts = [thin_out(points)] if names is None else [[point] for point in points]
        elements += [element for part in parts for element in plot.line(part, color, dots)]
    for (x, y), label in (labels or {}).items():
        elements.append(text(plot.x_pixel(x) + 6, plot.y_pixel(y) - 6, label))
    return document(title, x_label, elements, list(drawn))


class Plot:
    """A plot area, which converts values to pixels and draws lines and the grid."""

    def __init__(self, x: Sequence[float], y: Sequence[float]):
        self.x_axis = Axis(min(x), max(x))
        log = min(y) > 0 and max(y) / min(y) >= LOG_RATIO
        self.y_axis = Axis(min(y), max(y), log)

    def x_pixel(self, x: float) -> float:
        return LEFT + self.x_axis.fraction(x) * (WIDTH - LEFT - RIGHT)

    def y_pixel(self, y: float) -> float:
        return HEIGHT - BOTTOM - self.y_axis.fraction(y) * (HEIGHT - TOP - BOTTOM)

    def grid(self, names: Mapping[float, str] | None = None) -> list[str]:
        """Return the grid lines and the numbers at both axes, or names in place of x."""
        elements = []
        for value in self.y_axis.ticks():
            y = self.y_pixel(value)
            elements += [horizontal_line(y), text(LEFT - 6, y + 4, format_number(value), "end")]
        if names is None:
            names = {value: format_number(value) for value in self.x_axis.ticks()}
        for value, name in names.items():
            elements.append(text(self.x_pixel(value), HEIGHT - BOTTOM + 17, name, "middle"))
        return elements

    def bar(self, segment: Segment, color: str) -> str:
        """Return a pale line between two points."""
        (x1, y1), (x2, y2) = segment
        ends = f"x1='{self.x_pixel(x1):.1f}' y1='{self.y_pixel(y1):.1f}'"
        ends += f" x2='{self.x_pixel(x2):.1f}' y2='{self.y_pixel(y2):.1f}'"
        return f"<line {ends} stroke='{color}' stroke-width='5' stroke-opacity='0.3'/>"

    def line(self, points: Points, color: str, dots: bool) -> list[str]:
        """Return a line through the points, with dots if asked for, or if it has one point only."""
        pixels = [(self.x_pixel(x), self.y_pixel(y)) for x, y in points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in pixels)
        style = f"fill='none' stroke='{color}' stroke-width='1.6' stroke-linejoin='round'"
        elements = [f"<polyline points='{path}' {style}/>"]
        if dots or len(pixels) == 1:
            circles = (f"cx='{x:.1f}' cy='{y:.1f}' r='3' fill='{color}'" for x, y in pixels)
            elements += [f"<circle {circle}/>" for circle in circles]
        return elements


class Axis:
    """An axis a little longer than the range of its values."""

    def __init__(self, low: float, high: float, log: bool = False):
        self.log = log
        low, high = (math.log10(low), math.log10(high)) if log else (low, high)
        margin = 0.04 * (high - low) or 0.5 * abs(high) or 0.5
        self.low, self.high = low - margin, high + margin
        self.smallest = low  # of the values

    def fraction(self, value: float) -> float:
        """Return where a value lies, from 0 to 1."""
        position = math.log10(value) if self.log else value
        return (position - self.low) / (self.high - self.low)

    def ticks(self) -> list[float]:
        """Return round numbers on the axis."""
        if self.log:
            powers = range(math.floor(self.low), math.ceil(self.high) + 1)
            factors = (1, 2, 5) if self.high - self.low < 2.5 else (1,)
            values = [factor * 10.0**power for power in powers for factor in factors]
            return [v for v in values if self.low <= math.log10(v) <= self.high]
        length = self.high - self.low
        step = 10.0 ** math.floor(math.log10(length / 4))
        step *= next(factor for factor in (1, 2, 2.5, 5, 10) if length / (factor * step) <= 6)
        first, last = math.ceil(self.low / step), math.floor(self.high / step)
        values = [k * step for k in range(first, last + 1)]
        if self.smallest >= 0:  # the margin of an axis of positive values may reach below 0
            return [v for v in values if v >= 0]
        return values


def finite(points: Points) -> list[tuple[float, float]]:
    """Return the points with a finite y."""
    return [(x, y) for x, y in points if math.isfinite(y)]


def finite_segments(segments: Sequence[Segment]) -> list[Segment]:
    """Return the segments whose ends have a finite y."""
    return [segment for segment in segments if len(finite(segment)) == 2]


def thin_out(points: Points) -> Points:
    """Return every k-th point and the last one, so that there are at most about MAX_POINTS."""
    stride = -(-len(points) // MAX_POINTS)
    kept = list(points[::stride])
    if kept[-1] != points[-1]:
        kept.append(points[-1])
    return kept


def document(title: str, x_label: str, elements: Sequence[str], names: Sequence[str] = ()) -> str:
    """Return the SVG element around the elements of a chart; names: of the lines."""
    rows = legend(names)
    height = HEIGHT + ROW * len(rows)
    return "\n".join(
        [
            f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {WIDTH} {height}' "
            f"width='{WIDTH}' height='{height}' role='img' {FONT}>",
            f"<title>{escape(title)}</title>",
            f"<rect width='{WIDTH}' height='{height}' fill='white'/>",
            f"<text x='{LEFT}' y='20' font-weight='bold' fill='#111'>{escape(title)}</text>",
            *elements,
            text(LEFT + (WIDTH - LEFT - RIGHT) / 2, HEIGHT - 8, x_label, "middle"),
            *rows,
            "</svg>",
        ]
    )


def legend(names: Sequence[str]) -> list[str]:
    """Return the rows of a legend below the chart; none for a single line."""
    if len(names) < 2:
        return []
    rows: list[list[str]] = [[]]
    x = float(LEFT)
    for k, name in enumerate(names):
        width = 40 + 7 * len(name)
        if rows[-1] and x + width > WIDTH - RIGHT:
            rows.append([])
            x = LEFT
        y = HEIGHT + ROW * len(rows) - 8
        color = COLORS[k % len(COLORS)]
        line = f"<line x1='{x}' x2='{x + 15}' y1='{y - 4}' y2='{y - 4}' stroke='{color}'"
        rows[-1] += [f"{line} stroke-width='3'/>", text(x + 20, y, name)]
        x += width
    return ["".join(row) for row in rows]


def horizontal_line(y: float, color: str = "#ddd", dashes: str = "none") -> str:
    """Return a line over the whole width of the chart."""
    return (
        f"<line x1='{LEFT}' x2='{WIDTH - RIGHT}' y1='{y:.1f}' y2='{y:.1f}' stroke='{color}' "
        f"stroke-dasharray='{dashes}'/>"
    )


def text(x: float, y: float, content: str, anchor: str = "start") -> str:
    """Return a text element. anchor: "start", "middle" or "end"; which point of it lies at x."""
    return (
        f"<text x='{x:.1f}' y='{y:.1f}' text-anchor='{anchor}' fill='#444'>{escape(content)}</text>"
    )


def format_number(value: float) -> str:
    """Return a short text for a number: 0.05, 12, 20k, 1.5M, 2e-05."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        smallest = 10 * size if unit == "k" else size  # 1234 is as short as 1.234k
        if abs(value) >= smallest:
            return f"{value / size:.4g}{unit}"
    return f"{value:.4g}" if value == 0 or abs(value) >= 1e-3 else f"{value:.0e}"
