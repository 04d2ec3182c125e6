"""The result of an evaluation: a JSON file to compare, and an HTML page to read."""

import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from html import escape
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from evaluation.estimates import Direction, Estimate
from foundation import __version__
from foundation.errors import UserError, one_line
from foundation.files import read_json, write_json, write_text
from foundation.json_reading import check_type, from_json
from training.tools.page import number_table, page, table

JSON_FILE, HTML_FILE, COMPARISON_FILE = "report.json", "report.html", "comparison.html"
FORMAT = 1
LARGEST = 256 * 2**20  # bytes of a JSON file: it holds numbers of every image
NAMES = {  # metric -> how tables name it; the arrow says which values are better
    "psnr": "PSNR in dB",
    "ssim": "SSIM",
    "lpips": "LPIPS",
    "frechet": "Fréchet distance",
    "kid": "KID",
    "cmmd": "CMMD",
    "precision": "precision",
    "recall": "recall",
    "density": "density",
    "coverage": "coverage",
    "inception_score": "Inception Score",
    "copying_score": "copying score",
    "class_accuracy": "class accuracy",
    "attribute_accuracy": "attribute accuracy",
}
LIBRARIES = ("torch-fidelity", "torchmetrics", "open_clip_torch", "lpips", "numpy", "pillow")
ARROWS = {"higher": " ↑", "lower": " ↓", "": ""}


@dataclass(frozen=True)
class StoredEstimate:
    """An `Estimate` in JSON, where numbers that are not finite are texts."""

    value: float | str
    low: float | None = None
    high: float | None = None
    better: Direction = ""
    note: str = ""

    def estimate(self) -> Estimate:
        return Estimate(float(self.value), self.low, self.high, self.better, self.note)


@dataclass(frozen=True)
class Report:
    """What an evaluation found.

    Args:
        kind: the command of evaluate.py.
        name: of the model, as it was given.
        protocol: all that must be equal where numbers are compared.
        model: facts about the model.
        versions: of the libraries that computed the numbers.
        metrics: name -> number. Those in a feature space are named space/metric.
        baselines: what else was measured in the same way -> its metrics.
        missing: what was not computed -> why.
        remarks: what a reader must know.
        tables: title -> further numbers as JSON: lists of rows, each a dict.
        per_image: metric -> its value for each image, in the order of the protocol's images.
    """

    kind: str
    name: str
    protocol: dict[str, Any]
    model: dict[str, Any]
    versions: dict[str, str]
    metrics: dict[str, Estimate]
    baselines: dict[str, dict[str, Estimate]] = field(
        default_factory=dict[str, dict[str, Estimate]]
    )
    missing: dict[str, str] = field(default_factory=dict[str, str])
    remarks: list[str] = field(default_factory=list[str])
    tables: dict[str, list[dict[str, Any]]] = field(default_factory=dict[str, list[dict[str, Any]]])
    per_image: dict[str, list[float]] = field(default_factory=dict[str, list[float]])

    def to_json(self) -> dict[str, Any]:
        return {"format": FORMAT, **finite(asdict(self))}


def finite(value: Any) -> Any:
    """Return JSON without NaN and infinity, which JSON does not have: they become texts."""
    if isinstance(value, dict):
        return {str(key): finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [finite(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def read_report(source: Path) -> Report:
    """Read the JSON of an evaluation; source: the file, or the folder that holds it.

    Raises:
        UserError: there is none, or it is damaged or of another version.
    """
    file = source / JSON_FILE if source.is_dir() else source
    if not file.is_file():
        raise UserError(
            f"{one_line(source)} holds no evaluation: there is no {JSON_FILE}. Give the folder "
            "that evaluate.py has written its report to, or the JSON file in it."
        )
    content = read_json(file, limit=LARGEST)
    if content.get("format") != FORMAT:
        raise UserError(
            f"{file} is no evaluation of this version: format is {content.get('format')!r}, needed "
            f"is {FORMAT}. Evaluate again."
        )
    estimates = check_type(content.get("metrics"), dict[str, dict[str, Any]], file, "metrics")
    metrics = {name: read_estimate(value, file, name) for name, value in estimates.items()}
    per_image = check_type(
        content.get("per_image", {}), dict[str, list[float | str]], file, "per_image"
    )
    texts = {key: check_type(content.get(key), str, file, key) for key in ("kind", "name")}
    facts = {
        key: check_type(content.get(key), dict[str, Any], file, key)
        for key in ("protocol", "model", "versions")
    }
    values = {name: [float(one) for one in some] for name, some in per_image.items()}
    return Report(**texts, **facts, metrics=metrics, per_image=values)


def check_report_folder(out: Path) -> Path:
    """Return a folder for a report; refuse one that holds anything else.

    Raises:
        UserError: it is neither empty nor the folder of a report.
    """
    ours = (JSON_FILE, HTML_FILE, COMPARISON_FILE, "blocks")
    if out.is_dir() and any(out.iterdir()) and not any((out / name).exists() for name in ours):
        raise UserError(
            f"{one_line(out)} is not empty and holds no report of evaluate.py. Choose another out."
        )
    return out


def read_estimate(content: Mapping[str, Any], file: Path, name: str) -> Estimate:
    """Return an estimate from JSON."""
    stored = from_json(StoredEstimate, content, f"{file}, metrics.{name}")
    try:
        return stored.estimate()
    except ValueError as error:
        raise UserError(f"{file}: metrics.{name}.value is no number.") from error


def library_versions() -> dict[str, str]:
    """Return the versions of what computes the numbers; what is not installed is left out."""
    found = {"latentsmith": __version__, "python": platform.python_version()}
    found["torch"] = torch.__version__
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def write_report(report: Report, out: Path, sections: list[str]) -> None:
    """Write the JSON and the page; sections: further HTML, between the metrics and the protocol."""
    write_json(out / JSON_FILE, report.to_json())
    parts = [
        metrics_section(report),
        *sections,
        missing_section(report),
        "<h2>Protocol</h2><p class=faint>Numbers of two models can be compared only where all of "
        "this is equal.</p>" + table(flat(report.protocol)),
        "<h2>Model</h2>" + table(flat(report.model)),
        "<h2>Versions</h2>" + table(report.versions),
    ]
    write_text(out / HTML_FILE, page(f"Evaluation of {report.name}", parts))


def metric_name(key: str, better: Direction = "") -> str:
    """Return how tables name a metric: `KID in inception ↓`; FID for Inception's distance."""
    space, _, metric = key.rpartition("/")
    name = NAMES.get(metric, metric.replace("_", " "))
    if (space, metric) == ("inception", "frechet"):
        return "FID" + ARROWS[better]
    return name + (f" in {space}" if space else "") + ARROWS[better]


def metrics_section(report: Report) -> str:
    """Return the table of the metrics with their baselines."""
    others = list(report.baselines)
    rows: list[list[str]] = []
    for key, estimate in report.metrics.items():
        cells = [report.baselines[other].get(key) for other in others]
        own = [metric_name(key, estimate.better), f"{estimate.value:.4g}", interval(estimate)]
        rows.append(own + ["-" if cell is None else f"{cell.value:.4g}" for cell in cells])
    notes = [estimate.note for estimate in report.metrics.values()]
    remarks = "".join(f"<p>{escape(text)}</p>" for text in report.remarks)
    head = ["", "this model", "95 % interval", *others]
    return f"<h2>Metrics</h2>{number_table(head, rows, notes)}{remarks}"


def interval(estimate: Estimate) -> str:
    if estimate.low is None or estimate.high is None:
        return "-"
    return f"{estimate.low:.4g} to {estimate.high:.4g}"


def missing_section(report: Report) -> str:
    """Return what was not computed, and why."""
    if not report.missing:
        return ""
    return "<h2>Not computed</h2>" + table(report.missing)


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return nested JSON as one level of texts."""
    rows: dict[str, str] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            rows |= flat(value, f"{prefix}{name}: ")
        elif isinstance(value, list) and any(isinstance(one, dict) for one in value):
            for one in value:
                rows |= flat(one, f"{prefix}{name} {one.get('name', '')}: ")
        elif isinstance(value, list | tuple):
            rows[prefix + name] = ", ".join(map(str, value))
        else:
            rows[prefix + name] = str(value)
    return {name.replace("_", " "): text for name, text in rows.items()}


def print_report(report: Report, out: Path) -> None:
    """Print the metrics, what is missing and where the page is."""
    print(f"\n{report.name}, on {report.protocol['images']['images']:,} images:")
    width = max((len(metric_name(key, e.better)) for key, e in report.metrics.items()), default=0)
    for key, estimate in report.metrics.items():
        others = [
            f"{other} {values[key].value:.4g}"
            for other, values in report.baselines.items()
            if key in values
        ]
        beside = f"   ({', '.join(others)})" if others else ""
        print(f"  {metric_name(key, estimate.better):{width}}  {estimate}{beside}")
    notes = {estimate.note: None for estimate in report.metrics.values() if estimate.note}
    for text in (*notes, *report.remarks):
        print(f"note: {text}")
    for name, why in report.missing.items():
        print(f"not computed: {name}. {why}")
    for title, facts in (("model", report.model), ("protocol", report.protocol)):
        print(f"{title}: " + "; ".join(f"{k}: {v}" for k, v in flat(facts).items()))
    print(f"the report is {out / HTML_FILE}, its numbers are in {out / JSON_FILE}")


def as_text(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table for a terminal."""
    widths = [max(len(line[k]) for line in (head, *rows)) for k in range(len(head))]
    return "\n".join(
        "  ".join(f"{cell:{width}}" for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in (head, *rows)
    )
