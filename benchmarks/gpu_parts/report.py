"""The results of benchmarks/gpu.py as one JSON file and one page of Markdown tables."""

import json
from pathlib import Path
from typing import Any

from foundation.files import write_json

Results = dict[str, Any]
Records = dict[str, dict[str, Any]]  # measurement -> values
COLUMNS = ("batch", "ms", "images/s", "ours / theirs", "TFLOP/s", "of peak", "GB", "first step, s")


def write_report(out: Path, results: Results) -> None:
    """Write gpu.json and gpu.md, each at once."""
    write_json(out / "gpu.json", results)
    unfinished = out / "gpu.md.partial"
    unfinished.write_text(to_markdown(results), encoding="utf-8")
    unfinished.replace(out / "gpu.md")


def to_markdown(results: Results) -> str:
    records = all_records(results)
    return "\n".join(
        [
            *machine_lines(records),
            "",
            "| part | result | seconds | |",
            "|---|---|---|---|",
            *(part_line(name, part) for name, part in results["parts"].items()),
            "",
            "| measurement | " + " | ".join(COLUMNS) + " |",
            "|" + "---|" * (len(COLUMNS) + 1),
            *speed_lines(records),
            "",
        ]
    )


def all_records(results: Results) -> Records:
    found: Records = {}
    for part in results["parts"].values():
        for name, values in part["records"].items():
            found.setdefault(name, {}).update(values)
    return found


def machine_lines(records: Records) -> list[str]:
    """Return lines on the device and its limits."""
    machine = records.get("machine", {})
    text = ", ".join(f"{name} {value}" for name, value in machine.items())
    lines = [f"Machine: {text or 'not known'}."]
    if "tflops" in (matmul := records.get("matmul", {})):
        side = matmul["side"]
        lines.append(f"Product of two bf16 matrices of {side}: {matmul['tflops']:.4g} TFLOP/s.")
    if "terabytes_per_second" in (copy := records.get("copy", {})):
        lines.append(f"Copy, read and written: {copy['terabytes_per_second']:.4g} TB/s.")
    return lines


def part_line(name: str, part: dict[str, Any]) -> str:
    """Return a row on a part: what it found, if it is no speed."""
    notes = [
        f"{title}: {short(values)}"
        for title, values in part["records"].items()
        if "milliseconds" not in values
        and "milliseconds_of" not in values
        and title not in ("machine", "matmul", "copy")
    ]
    text = "; ".join(filter(None, [part.get("error", ""), *notes])).replace("|", "/")
    return f"| {name} | {part['status']} | {part['seconds']:.0f} | {text} |"


def short(values: dict[str, Any]) -> str:
    return ", ".join(
        f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
        for key, value in values.items()
    )


def speed_lines(records: Records) -> list[str]:
    """Return a row per speed; ratios are those of images per second to diffusers as shipped."""
    peak = records.get("matmul", {}).get("tflops")
    lines = []
    for name, values in records.items():
        if "milliseconds" not in values:
            continue
        peer = records.get(f"{name.partition(' ')[0]} diffusers", {}).get("images_per_second")
        tflops = values.get("tflops")
        is_whole = "alone" not in name
        cells = [
            f"{values['batch_size']}",
            f"{values['milliseconds']:.4g}",
            f"{values['images_per_second']:.4g}",
            f"{values['images_per_second'] / peer:.2f}" if peer and is_whole else "",
            f"{tflops:.4g}" if tflops else "",
            f"{tflops / peak:.0%}" if tflops and peak else "",
            f"{values['peak_gigabytes']:.3g}" if values.get("peak_gigabytes") else "",
            f"{values['seconds_of_first_step']:.3g}",
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def read_report(out: Path) -> Results:
    return json.loads((out / "gpu.json").read_text(encoding="utf-8"))
