"""python -m training.tools.report runs/ldm

Writes RUN/report.html: curves, pictures, verdicts and settings of a run, finished or not, on one
page that needs no other file, no script and no network.
"""

import base64
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Annotated, Any

import tyro

from foundation.errors import UserError
from foundation.files import read_json, write_text
from training.checkpoint import saved_states
from training.cli import parse, run_main
from training.tools.curves import COLORS, Points, line_chart

PICTURES = 6  # previews on the page, the first and the last among them
STYLE = """
body { font: 15px/1.5 sans-serif; color: #111; background: #fff; max-width: 1180px;
       margin: 2em auto; padding: 0 1em; }
h1 { font-size: 1.5em; } h2 { font-size: 1.15em; margin-top: 2em; border-bottom: 1px solid #ddd; }
.charts { display: flex; flex-wrap: wrap; gap: 8px; } .charts svg { max-width: 100%; height: auto; }
figure { display: inline-block; margin: 0 12px 12px 0; vertical-align: top; }
figure img { max-width: 540px; width: 100%; image-rendering: pixelated; }
figcaption { color: #555; } table { border-collapse: collapse; }
td { padding: 2px 14px 2px 0; vertical-align: top; } td:first-child { color: #555; }
.warning { color: #a01010; font-weight: bold; }
"""
ALARMS = ("NOT LEARNING", "DEAD", "is dead", "is winning", "ignores the text")  # in verdicts


@dataclass(frozen=True, kw_only=True)
class Config:
    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]  # a run folder
    out: Path | None = None  # the page; RUN/report.html if left out


def main(argv: Sequence[str] | None = None) -> None:
    config = parse(Config, argv, __doc__)
    if not (config.run / "config.json").is_file():
        raise UserError(f"{config.run} is no run folder: there is no config.json in it.")
    out = config.out or config.run / "report.html"
    write_text(out, page(config.run))
    print(f"the report is {out}")


def page(run: Path) -> str:
    settings = read_json(run / "config.json")
    lines = read_metrics(run / "metrics.jsonl")
    sections = [
        summary(run, settings, lines),
        verdicts(lines),
        curves(lines),
        posthoc(run / "posthoc" / "curve.svg"),
        pictures(sorted((run / "previews").glob("step-*.png"))),
        "<h2>Settings</h2>" + table(flat(settings)),
    ]
    title = f"Training {escape(run.resolve().name)}"
    return (
        f"<!DOCTYPE html><html lang='en'><head><meta charset='utf-8'><title>{title}</title>"
        f"<style>{STYLE}</style></head><body><h1>{title}</h1>{''.join(sections)}</body></html>\n"
    )


def read_metrics(file: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl; one that is being written, or was cut short, is left out."""
    lines = []
    for text in file.read_text().splitlines() if file.exists() else []:
        try:
            lines.append(json.loads(text))
        except ValueError:
            break
    return lines


def summary(run: Path, settings: dict[str, Any], lines: list[dict[str, Any]]) -> str:
    step = lines[-1]["step"] if lines else 0
    steps, batch = settings.get("steps", step), settings.get("batch_size", 0)
    rates = [line["images_per_second"] for line in lines if "images_per_second" in line]
    if (run / "model").is_dir():
        state = "finished; the model is in model/"
    else:
        state = "not finished; the same command again goes on with it"
    rows = {
        "state": state,
        "steps": f"{step:,} of {steps:,}",
        "images seen": f"{step * batch:,}",
        "images per second": f"{sorted(rates)[len(rates) // 2]:.4g} (median)" if rates else "-",
        "saved states": ", ".join(path.name for path in saved_states(run / "state")) or "-",
    }
    return table(rows)


def verdicts(lines: list[dict[str, Any]]) -> str:
    """The last one of each kind, and the history behind it."""
    found: dict[str, list[tuple[int, str]]] = {}
    for line in lines:
        for name, value in line.items():
            if isinstance(value, str):
                found.setdefault(name, []).append((line["step"], value))
    if not found:
        return ""
    parts = ["<h2>Verdicts</h2>"]
    for told in found.values():
        alarm = " class='warning'" if any(word in told[-1][1] for word in ALARMS) else ""
        parts.append(f"<p{alarm}>step {told[-1][0]}: {escape(told[-1][1])}</p>")
        if len(told) > 1:
            rows = "".join(f"<br>step {step}: {escape(text)}" for step, text in told[:-1])
            parts.append(f"<details><summary>before</summary>{rows}</details>")
    return "".join(parts)


def curves(lines: list[dict[str, Any]]) -> str:
    charts = [line_chart(title, points, x_label="step") for title, points in grouped(series(lines))]
    return f"<h2>Curves</h2><div class='charts'>{''.join(charts)}</div>" if charts else ""


def series(lines: list[dict[str, Any]]) -> dict[str, Points]:
    """Every number by name; null, which stands for one that was not finite, as a gap."""
    found: dict[str, list[tuple[float, float]]] = {}
    for line in lines:
        for name, value in line.items():
            if name != "step" and not isinstance(value, str):
                number = math.nan if value is None else value
                found.setdefault(name, []).append((line["step"], number))
    return found


def grouped(found: dict[str, Points]) -> list[tuple[str, dict[str, Points]]]:
    """(title, lines) of each chart, of at most six lines: names that share what stands before a
    slash are drawn together, and so are those that differ by a first `train_` or `held_out_`."""
    groups: dict[str, dict[str, Points]] = {}
    for name, points in found.items():
        first, _, rest = name.partition("/")
        key = f"{first} by part" if rest else first
        if name.startswith(("train_", "held_out_")):
            key = name.removeprefix("train_").removeprefix("held_out_")
        groups.setdefault(key, {})[name] = points
    most = len(COLORS)
    return [
        (key if k == 0 else f"{key}, more", dict(list(lines.items())[k : k + most]))
        for key, lines in groups.items()
        for k in range(0, len(lines), most)
    ]


def posthoc(file: Path) -> str:
    """The curve that training.tools.posthoc drew, if it did."""
    if not file.exists():
        return ""
    return f"<h2>Length of the averaged weights</h2><div class='charts'>{file.read_text()}</div>"


def pictures(files: Sequence[Path]) -> str:
    if not files:
        return ""
    last = len(files) - 1
    chosen = sorted({round(k * last / (PICTURES - 1)) for k in range(PICTURES)}, reverse=True)
    shown = [
        f"<figure><img alt='{files[k].stem}' src='data:image/png;base64,"
        f"{base64.b64encode(files[k].read_bytes()).decode()}'>"
        f"<figcaption>{files[k].stem}</figcaption></figure>"
        for k in chosen
    ]
    return "<h2>Pictures, the latest first</h2>" + "".join(shown)


def flat(settings: dict[str, Any], prefix: str = "") -> dict[str, str]:
    rows = {}
    for name, value in settings.items():
        nested = isinstance(value, dict)
        rows |= flat(value, f"{prefix}{name}.") if nested else {prefix + name: str(value)}
    return rows


def table(rows: dict[str, str]) -> str:
    cells = (f"<tr><td>{escape(k)}</td><td>{escape(v)}</td></tr>" for k, v in rows.items())
    return f"<table>{''.join(cells)}</table>"


if __name__ == "__main__":
    run_main(main)
