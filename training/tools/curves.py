"""Line charts as SVG, drawn here: a page with them needs no script, no font and no network."""

import math
from collections.abc import Mapping, Sequence
from html import escape

Points = Sequence[tuple[float, float]]  # (x, y); a y that is not finite leaves a gap

WIDTH, HEIGHT = 560, 300
LEFT, RIGHT, TOP, BOTTOM = 64, 16, 34, 44  # margins
COLORS = ("#1f6fb4", "#d9601a", "#2b8f3e", "#b03a72", "#6b52a8", "#8a6d1c")  # at most six lines
LOG_FROM = 30  # largest / smallest value from which a chart of positive values gets a log scale
MOST_POINTS = 600  # per line; more are thinned out, since a chart has no more pixels
FONT = "font-family='sans-serif' font-size='12'"


def line_chart(
    title: str,
    lines: Mapping[str, Points],
    *,
    x_label: str,
    references: Mapping[str, float] | None = None,
    dots: bool = False,
) -> str:
    """An SVG element.

    Args:
        lines: name -> its points, x ascending; a single line needs no legend.
        references: name -> height of a dashed horizontal line.
        dots: draw the points, too; for few of them.
    """
    shown = {name: kept for name, points in lines.items() if (kept := finite(points))}
    references = {name: y for name, y in (references or {}).items() if math.isfinite(y)}
    heights = [y for points in shown.values() for _, y in points] + list(references.values())
    if not heights:
        return frame(title, x_label, [text(WIDTH / 2, HEIGHT / 2, "no finite values", "middle")])
    plot = Plot([x for points in shown.values() for x, _ in points] or [0.0], heights)
    parts = plot.scales()
    for k, (name, y) in enumerate(references.items()):
        up = plot.up(y)
        parts += [rule(up, "#444", "5 4"), text(LEFT + 6, up - 5 - 14 * k, name)]
    for k, points in enumerate(shown.values()):
        parts += plot.line(thinned(points), COLORS[k % len(COLORS)], dots)
    return frame(title, x_label, parts + legend(list(shown)))


class Plot:
    """From values to places in the picture."""

    def __init__(self, x: Sequence[float], y: Sequence[float]):
        self.x = Axis(min(x), max(x))
        self.y = Axis(min(y), max(y), log=min(y) > 0 and max(y) / min(y) >= LOG_FROM)

    def across(self, x: float) -> float:
        return LEFT + self.x.place(x) * (WIDTH - LEFT - RIGHT)

    def up(self, y: float) -> float:
        return HEIGHT - BOTTOM - self.y.place(y) * (HEIGHT - TOP - BOTTOM)

    def scales(self) -> list[str]:
        """Rules and numbers."""
        parts = []
        for y in self.y.ticks():
            parts += [rule(self.up(y)), text(LEFT - 6, self.up(y) + 4, number(y), "end")]
        foot = HEIGHT - BOTTOM + 17
        return parts + [text(self.across(x), foot, number(x), "middle") for x in self.x.ticks()]

    def line(self, points: Points, color: str, dots: bool) -> list[str]:
        placed = [(self.across(x), self.up(y)) for x, y in points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
        style = f"fill='none' stroke='{color}' stroke-width='1.6' stroke-linejoin='round'"
        parts = [f"<polyline points='{path}' {style}/>"]
        if dots or len(placed) == 1:
            parts += [
                f"<circle cx='{x:.1f}' cy='{y:.1f}' r='3' fill='{color}'/>" for x, y in placed
            ]
        return parts


class Axis:
    """From values to [0, 1], with a little room, and round numbers to write beside it."""

    def __init__(self, low: float, high: float, log: bool = False):
        self.log = log
        low, high = (math.log10(low), math.log10(high)) if log else (low, high)
        room = 0.04 * (high - low) or 0.5 * abs(high) or 0.5
        self.low, self.high = low - room, high + room
        self.first, self.last = low, high

    def place(self, value: float) -> float:
        return ((math.log10(value) if self.log else value) - self.low) / (self.high - self.low)

    def ticks(self) -> list[float]:
        if self.log:
            powers = range(math.floor(self.low), math.ceil(self.high) + 1)
            factors = (1, 2, 5) if self.high - self.low < 2.5 else (1,)
            values = [factor * 10.0**power for power in powers for factor in factors]
            return [v for v in values if self.low <= math.log10(v) <= self.high]
        step = 10.0 ** math.floor(math.log10((self.high - self.low) / 4))
        step *= next(f for f in (1, 2, 2.5, 5, 10) if (self.high - self.low) / (f * step) <= 6)
        first = math.ceil(self.low / step)
        values = [k * step for k in range(first, math.floor(self.high / step) + 1)]
        return [v for v in values if self.first >= 0 <= v or self.first < 0]


def finite(points: Points) -> list[tuple[float, float]]:
    return [(x, y) for x, y in points if y is not None and math.isfinite(y)]


def thinned(points: Points) -> Points:
    """Every k-th, and the last."""
    stride = -(-len(points) // MOST_POINTS)
    kept = list(points[::stride])
    return kept if kept[-1] == points[-1] else [*kept, points[-1]]


def frame(title: str, x_label: str, parts: Sequence[str]) -> str:
    return "\n".join(
        [
            f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {WIDTH} {HEIGHT}' "
            f"width='{WIDTH}' height='{HEIGHT}' role='img' {FONT}>",
            f"<title>{escape(title)}</title>",
            f"<rect width='{WIDTH}' height='{HEIGHT}' fill='white'/>",
            f"<text x='{LEFT}' y='20' font-weight='bold' fill='#111'>{escape(title)}</text>",
            *parts,
            text(LEFT + (WIDTH - LEFT - RIGHT) / 2, HEIGHT - 8, x_label, "middle"),
            "</svg>",
        ]
    )


def legend(names: Sequence[str]) -> list[str]:
    """In the upper right corner; nothing for a single line, which the title names."""
    if len(names) < 2:
        return []
    width, height = 40 + 7 * max(map(len, names)), 16 * len(names) + 6
    ground = f"x='{WIDTH - RIGHT - width}' y='{TOP}' width='{width}' height='{height}'"
    parts = [f"<rect {ground} fill='white' fill-opacity='0.8'/>"]
    for k, name in enumerate(names):
        y = TOP + 14 + 16 * k
        parts.append(text(WIDTH - RIGHT - 22, y, name, "end"))
        parts.append(
            f"<line x1='{WIDTH - RIGHT - 17}' x2='{WIDTH - RIGHT - 2}' y1='{y - 4}' y2='{y - 4}' "
            f"stroke='{COLORS[k % len(COLORS)]}' stroke-width='3'/>"
        )
    return parts


def rule(y: float, color: str = "#ddd", dashes: str = "none") -> str:
    return (
        f"<line x1='{LEFT}' x2='{WIDTH - RIGHT}' y1='{y:.1f}' y2='{y:.1f}' stroke='{color}' "
        f"stroke-dasharray='{dashes}'/>"
    )


def text(x: float, y: float, content: str, anchor: str = "start") -> str:
    return (
        f"<text x='{x:.1f}' y='{y:.1f}' text-anchor='{anchor}' fill='#444'>{escape(content)}</text>"
    )


def number(value: float) -> str:
    """Short: 0.05, 12, 20k, 1.5M, 2e-05."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= 10 * size or (abs(value) >= size and size > 1e3):
            return f"{value / size:.4g}{unit}"
    return f"{value:.4g}" if value == 0 or abs(value) >= 1e-3 else f"{value:.0e}"
