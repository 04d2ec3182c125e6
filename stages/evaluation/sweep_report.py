"""What a report shows of sweeps: curves with intervals, a table, and the same pictures."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from evaluation.estimates import Estimate
from stages.evaluation.report import as_text, interval, metric_name
from stages.evaluation.sweep_points import Axis, Sweep, SweptPoint, swept_points
from training.logging.image_grid import image_grid
from training.tools.curves import Segment, line_chart
from training.tools.page import number_table, picture

CURVES = ("recall@1", "clip_score", "kid", "frechet")  # against the value that is changed
COLUMNS = (*CURVES, "precision", "recall")  # of the tables
SHOWN = 8  # pictures of each point
REAL, CEILING = "real images", "ceiling"

Tables = dict[str, list[dict[str, Any]]]  # title of an axis -> its points as JSON
References = Mapping[str, Mapping[str, Estimate]]  # real images and ceiling -> their metrics


def report_sweeps(sweep: Sweep) -> tuple[Tables, list[str]]:
    """Print a table of each sweep; return all points as JSON, and HTML of each sweep."""
    if not sweep.axes:
        return {}, []
    real, ceiling = sweep.references()
    tables: Tables = {}
    sections: list[str] = []
    for axis in sweep.axes:
        points = swept_points(sweep, axis)
        print(
            f"\n{axis.title}, {sweep.count:,} samples each:\n{as_text(*sweep_table(axis, points))}"
        )
        tables[axis.title] = [point.to_json(axis.flag) for point in points]
        sections.append(sweep_section(sweep, axis, points, {REAL: real, CEILING: ceiling}))
    return tables, sections


def sweep_section(
    sweep: Sweep, axis: Axis, points: list[SweptPoint], references: References
) -> str:
    """Return HTML with the curves, the table and the pictures of one sweep."""
    charts = [curve(axis, points, key, references) for key in keys(points, CURVES)]
    if axis.flag == "guidance_scale":
        spaces = [key.rpartition("/")[0] for key in keys(points, ("precision",))]
        charts += [precision_against_recall(points, space) for space in spaces]
    head, rows = sweep_table(axis, points)
    return (
        f"<h2>{axis.title.capitalize()}</h2><p class=faint>{sweep.count:,} samples for each value, "
        "of the same captions and the same noise. Intervals are 95 % over the choice of captions; "
        "as these are the same, differences between the values are more certain than the intervals "
        "say. Distances of so few images are higher than those of more.</p>"
        f"<div class=charts>{''.join(charts)}</div>{number_table(head, rows)}"
        f"{''.join(strips(sweep, axis))}"
    )


def keys(points: Sequence[SweptPoint], metrics: Sequence[str]) -> list[str]:
    """Return the names of these metrics, of every feature space."""
    known = points[0].metrics
    return [key for metric in metrics for key in known if key.rpartition("/")[2] == metric]


def positions(axis: Axis) -> tuple[list[float], dict[float, str] | None]:
    """Return where the points stand on the x axis, and what is written there if no numbers are."""
    values = [point.value for point in axis.points]
    numbers = [value for value in values if not isinstance(value, str)]
    if len(numbers) == len(values):
        return list(map(float, numbers)), None
    return list(map(float, range(len(values)))), {float(k): str(v) for k, v in enumerate(values)}


def curve(axis: Axis, points: list[SweptPoint], key: str, references: References) -> str:
    """Return the chart of one metric, with its intervals, compared with real images and ceiling."""
    estimates = [point.metrics[key] for point in points]
    where, names = positions(axis)
    name = metric_name(key, estimates[0].better)
    return line_chart(
        name,
        {name: [(x, estimate.value) for x, estimate in zip(where, estimates, strict=True)]},
        x_label=axis.name,
        references={
            title: metrics[key].value for title, metrics in references.items() if key in metrics
        },
        dots=True,
        bars={
            name: [
                ((x, estimate.low), (x, estimate.high))
                for x, estimate in zip(where, estimates, strict=True)
                if estimate.low is not None and estimate.high is not None
            ]
        },
        names=names,
    )


def precision_against_recall(points: list[SweptPoint], space: str) -> str:
    """Return the chart of precision against recall in a feature space, from value to value."""
    line: list[tuple[float, float]] = []
    bars: list[Segment] = []
    labels: dict[tuple[float, float], str] = {}
    for point in points:
        high, far = (point.metrics[f"{space}/{name}"] for name in ("precision", "recall"))
        line.append((far.value, high.value))
        labels[line[-1]] = f"{point.point.value:g}"
        if high.low is not None and high.high is not None:
            bars.append(((far.value, high.low), (far.value, high.high)))
        if far.low is not None and far.high is not None:
            bars.append(((far.low, high.value), (far.high, high.value)))
    title = metric_name(f"{space}/precision") + " against recall"
    return line_chart(
        title, {title: line}, x_label="recall", dots=True, bars={title: bars}, labels=labels
    )


def sweep_table(axis: Axis, points: list[SweptPoint]) -> tuple[list[str], list[list[str]]]:
    """Return head and rows of the table of a sweep."""
    columns = keys(points, COLUMNS)
    better = points[0].metrics
    head = [axis.name, "network calls", *(metric_name(key, better[key].better) for key in columns)]
    return head, [
        [
            f"{point.point.value}{' (measured above)' if point.is_main else ''}",
            str(point.calls),
            *(with_interval(point.metrics[key]) for key in columns),
        ]
        for point in points
    ]


def with_interval(estimate: Estimate) -> str:
    return f"{estimate.value:.4g} ({interval(estimate)})"


def strips(sweep: Sweep, axis: Axis) -> list[str]:
    """Return the pictures of the first captions for each value, one row below the other."""
    count = min(SHOWN, sweep.count)
    captions = "; ".join(sweep.captions[:count])
    found: list[str] = []
    for point in axis.points:
        pictures = sweep.samples[point.sampling].pictures(range(count))
        name = f"{axis.name} {point.value}"
        strip = picture(image_grid(pictures, columns=count), f"{name}: {captions}", name)
        found.append(f"<div>{strip}</div>")
    return [*found, f"<p class=faint>{escape(captions)}</p>"]
