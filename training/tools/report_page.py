"""The report page of a run: verdicts, curves, previews and settings."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from foundation.files import read_json, read_text
from foundation.json_reading import from_json
from training.checkpoint import saved_states
from training.logging.metrics import read_metrics
from training.tools.curves import COLORS, Points, line_chart
from training.tools.page import page, table
from training.tools.previews import previews_section

SKIPPED = "skipped_steps"  # because their gradient was not finite
# Words that mark a verdict as bad. They are written by ldm/validation.py and autoencoder/training/.
WARNING_WORDS = (
    "NOT LEARNING",
    "carry no information",
    "is dead",
    "is winning",
    "ignores the text",
)


def report_page(run: Path) -> str:
    """Return the HTML page of a run."""
    settings = read_json(run / "config.json")
    lines = read_metrics(run / "metrics.jsonl")
    sections = [
        summary_section(run, settings, lines),
        verdicts_section(lines),
        curves_section(lines),
        posthoc_section(run / "posthoc" / "curve.svg"),
        previews_section(sorted((run / "previews").glob("step-*.png"))),
        "<h2>Settings</h2>" + table(flatten_settings(settings)),
    ]
    return page(f"Training {run.resolve().name}", sections)


@dataclass(frozen=True)
class PlannedRun:
    """The settings of a run that the summary needs."""

    steps: int = 0
    batch_size: int = 0


def summary_section(
    run: Path, settings: Mapping[str, Any], lines: Sequence[Mapping[str, Any]]
) -> str:
    """Return a table of how far the run is and how fast it was."""
    step = lines[-1]["step"] if lines else 0
    plan = from_json(PlannedRun, settings, run / "config.json")
    steps, batch_size = plan.steps or step, plan.batch_size
    speeds = (line.get("images_per_second") for line in lines)
    rates = [speed for speed in speeds if isinstance(speed, int | float)]
    if (run / "model").is_dir():
        state = "finished; the model is in model/"
    else:
        state = "not finished; the same command again goes on with it"
    rows = {
        "state": state,
        "steps": f"{step:,} of {steps:,}",
        "images seen": f"{step * batch_size:,}",
        "images per second": f"{sorted(rates)[len(rates) // 2]:.4g} (median)" if rates else "-",
        "skipped steps": str(next((x[SKIPPED] for x in reversed(lines) if SKIPPED in x), "-")),
        "saved states": ", ".join(path.name for path in saved_states(run / "state")) or "-",
    }
    return table(rows)


def verdicts_section(lines: Sequence[Mapping[str, Any]]) -> str:
    """Return the last verdict of each kind, and the earlier ones folded away."""
    verdicts = collect_verdicts(lines)
    if not verdicts:
        return ""
    elements = ["<h2>Verdicts</h2>"]
    for *earlier, (step, verdict) in verdicts.values():
        warning = " class='warning'" if is_warning(verdict) else ""
        elements.append(f"<p{warning}>step {step}: {escape(verdict)}</p>")
        if earlier:
            rows = "".join(f"<br>step {k}: {escape(text)}" for k, text in earlier)
            elements.append(f"<details><summary>before</summary>{rows}</details>")
    return "".join(elements)


def collect_verdicts(lines: Sequence[Mapping[str, Any]]) -> dict[str, list[tuple[int, str]]]:
    """Return name -> (step, text) of all verdicts of a run."""
    verdicts: dict[str, list[tuple[int, str]]] = {}
    for line in lines:
        for name, value in line.items():
            if isinstance(value, str):
                verdicts.setdefault(name, []).append((line["step"], value))
    return verdicts


def is_warning(verdict: str) -> bool:
    """Return whether a verdict says that something is wrong."""
    return any(word in verdict for word in WARNING_WORDS)


def curves_section(lines: Sequence[Mapping[str, Any]]) -> str:
    """Return a chart for every group of metrics."""
    charts = [
        line_chart(title, points, x_label="step")
        for title, points in group_metrics(shown_metrics(lines))
    ]
    return f"<h2>Curves</h2><div class='charts'>{''.join(charts)}</div>" if charts else ""


def shown_metrics(lines: Sequence[Mapping[str, Any]]) -> dict[str, Points]:
    """Return the metrics that have a curve."""
    metrics = collect_metrics(lines)
    if not any(value for _, value in metrics.get(SKIPPED, ())):
        metrics.pop(SKIPPED, None)  # a line at zero; the summary has the number
    return metrics


def collect_metrics(lines: Sequence[Mapping[str, Any]]) -> dict[str, Points]:
    """Return name -> (step, value) points of every number; NaN where a value was not finite."""
    metrics: dict[str, list[tuple[float, float]]] = {}
    for line in lines:
        for name, value in line.items():
            if name != "step" and not isinstance(value, str):
                number = math.nan if value is None else value
                metrics.setdefault(name, []).append((line["step"], number))
    return dict(metrics)


def group_metrics(metrics: Mapping[str, Points]) -> list[tuple[str, dict[str, Points]]]:
    """Return (title, lines) of each chart, with at most one line per color.

    Metrics with the same name before a slash share a chart, and so do those that differ only by a
    leading `train_` or `held_out_`.
    """
    groups: dict[str, dict[str, Points]] = {}
    for name, points in metrics.items():
        prefix, slash, _ = name.partition("/")
        title = f"{prefix} by part" if slash else prefix
        if name.startswith(("train_", "held_out_")):
            title = name.removeprefix("train_").removeprefix("held_out_")
        groups.setdefault(title, {})[name] = points
    charts = []
    for title, lines in groups.items():
        for first in range(0, len(lines), len(COLORS)):
            some = dict(list(lines.items())[first : first + len(COLORS)])
            charts.append((f"{title}, more" if first else title, some))
    return charts


def posthoc_section(file: Path) -> str:
    """Return the curve that training.tools.posthoc drew, if it did."""
    if not file.exists():
        return ""
    return f"<h2>Length of the averaged weights</h2><div class='charts'>{read_text(file)}</div>"


def flatten_settings(settings: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return nested settings as one level; `loss.kl_weight` for a nested one."""
    rows = {}
    for name, value in settings.items():
        if isinstance(value, dict):
            rows |= flatten_settings(value, f"{prefix}{name}.")
        else:
            rows[prefix + name] = str(value)
    return rows
