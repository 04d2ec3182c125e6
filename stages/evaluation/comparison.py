"""Reports side by side: `evaluate.py compare`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from evaluation.estimates import Direction, Estimate, paired_verdict, verdict
from foundation.errors import UserError, shown
from stages.evaluation.report import Report, as_text, flat, metric_name, read_report
from training.tools.page import number_table, page, table

MOST_DIFFERENCES = 12  # that a message names
TARGET = ("predicts", "autoencoder")  # facts on which the size of a validation loss depends


def compare_reports(sources: Sequence[Path]) -> tuple[list[Report], str, str]:
    """Read reports; return them, a table for the terminal, and a page.

    The first report is what the others are compared with.

    Raises:
        UserError: fewer than two, or they were not measured in the same way.
    """
    if len(sources) < 2:
        raise UserError(f"compare needs at least two reports, got {len(sources)}.")
    reports = [read_report(source) for source in sources]
    for source, report in zip(sources[1:], reports[1:], strict=True):
        check_protocols(reports[0], report, str(sources[0]), str(source))
    names = label(reports, sources)
    rows = comparison_rows(reports)
    head = ["", *names]
    text = as_text(head, rows)
    differing = {
        name: f"{reports[0].versions.get(name, '-')} and {report.versions.get(name, '-')}"
        for report in reports[1:]
        for name in {**reports[0].versions, **report.versions}
        if reports[0].versions.get(name) != report.versions.get(name)
    }
    if differing:
        parts = ", ".join(f"{name} {values}" for name, values in differing.items())
        text += f"\nnote: other versions of libraries: {parts}."
    kinds = {
        name: str(report.model.get("weights")) for name, report in zip(names, reports, strict=True)
    }
    if len(set(kinds.values())) > 1:
        parts = ", ".join(f"{name}: {kind}" for name, kind in kinds.items())
        text += f"\nnote: the models hold other kinds of weights: {parts}."
    sections = [
        f"<p>Compared with {names[0]}. The verdict is on the choice of the images, 95 %.</p>",
        number_table(head, rows),
        "<h2>Protocol</h2>" + table(flat(reports[0].protocol)),
    ]
    return reports, text, page("Comparison of evaluations", sections)


def label(reports: Sequence[Report], sources: Sequence[Path]) -> list[str]:
    """Return what tables call the reports: the models, or the sources if these have equal names."""
    names = [report.name for report in reports]
    return names if len(set(names)) == len(names) else [str(source) for source in sources]


def check_protocols(first: Report, second: Report, name: str, other: str) -> None:
    """Refuse reports whose numbers cannot be compared; name all that differs.

    Raises:
        UserError: the protocols differ.
    """
    ours = {"command": first.kind, **flat(first.protocol)}
    theirs = {"command": second.kind, **flat(second.protocol)}
    differences = [
        f"{key}: {shown(ours.get(key, 'nothing'))} and {shown(theirs.get(key, 'nothing'))}"
        for key in {**ours, **theirs}
        if ours.get(key) != theirs.get(key)
    ]
    if differences:
        more = len(differences) - MOST_DIFFERENCES
        lines = differences[:MOST_DIFFERENCES] + ([f"and {more} more"] if more > 0 else [])
        raise UserError(
            f"{name} and {other} cannot be compared, because they were not measured in the same "
            "way:\n  " + "\n  ".join(lines) + "\nEvaluate them again with the same flags."
        )


def comparison_rows(reports: Sequence[Report]) -> list[list[str]]:
    """Return a row for each metric: name, the first value, then value and verdict of each other."""
    keys: Mapping[str, Any] = {key: None for report in reports for key in report.metrics}
    rows: list[list[str]] = []
    for key in keys:
        estimates = [report.metrics.get(key) for report in reports]
        better: Direction = next(e.better for e in estimates if e is not None)
        cells = [str(estimates[0]) if estimates[0] is not None else "-"]
        for report, estimate in zip(reports[1:], estimates[1:], strict=True):
            if estimate is None or estimates[0] is None:
                cells.append("-")
            else:
                words = judge(key, reports[0], report, estimates[0], estimate)
                cells.append(f"{estimate}: {words}")
        rows.append([metric_name(key, better), *cells])
    return rows


def judge(key: str, first: Report, second: Report, ours: Estimate, theirs: Estimate) -> str:
    """Return the verdict on one metric: image by image where both reports have these numbers."""
    if key == "validation_loss" and has_other_target(first, second):
        return "of another target, so not comparable"
    one, other = first.per_image.get(key), second.per_image.get(key)
    if one and other and len(one) == len(other):
        return paired_verdict(torch.tensor(one), torch.tensor(other), ours.better)
    return verdict(ours, theirs)


def has_other_target(first: Report, second: Report) -> bool:
    """Return whether two U-Nets predict different things, or the latents of other autoencoders."""
    return any(first.model.get(name) != second.model.get(name) for name in TARGET)
