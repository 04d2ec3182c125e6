"""Prints the table of docs/processes.md from the reports of its evaluations.

    python benchmarks/papers/classic_processes.py runs/evaluation/classic

The page has the commands that train and measure a model of each process. Each report lies in a
folder of this one, named as in the commands. Rows without a report say so.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

sys.path.insert(0, str(Path(__file__).parents[2]))  # prefer this checkout to an installed version

from foundation.errors import UserError
from training.cli import answer_early, parse, run_main


@dataclass(frozen=True, kw_only=True)
class Config:
    reports: tyro.conf.Positional[Path]  # folder that holds the folders of the reports


if __name__ == "__main__":
    answer_early(Config, __doc__)  # the imports below take seconds


from evaluation.estimates import Estimate
from stages.evaluation.report import JSON_FILE, Report, read_report

ROWS = {  # folder of the report -> the process as its paper names it, the paper, network calls
    "ddpm": ("DDPM", "Ho et al. 2020", 1000),
    "improved-ddpm": ("Improved DDPM, cosine schedule", "Nichol & Dhariwal 2021", 1000),
    "improved-ddpm-clipped": ("the same, estimates clipped to 4", "Nichol & Dhariwal 2021", 1000),
    "ddim": ("DDIM", "Song et al. 2021", 50),
    "dpm-solver": ("DPM-Solver-2", "Lu et al. 2022", 19),
    "dpm-solver-pp": ("DPM-Solver++ (2M)", "Lu et al. 2022", 20),
    "probability-flow": ("probability flow ODE of the VP SDE", "Song et al. 2021", 49),
    "rectified-flow": ("rectified flow", "Liu et al. 2022", 50),
}
METRICS = {"class_accuracy": "class accuracy", "frechet": "Fréchet distance", "kid": "KID"}
NOT_YET = "not measured yet"


def main(argv: Sequence[str] | None = None) -> None:
    config = parse(Config, argv, __doc__)
    print("\n".join(markdown_table(config.reports)))


def markdown_table(folder: Path) -> list[str]:
    """Return the lines of the table.

    Raises:
        UserError: there is no report of any process, or they are of different images.
    """
    reports = {
        name: read_report(folder / name) for name in ROWS if (folder / name / JSON_FILE).is_file()
    }
    if not reports:
        raise UserError(
            f"{folder} has none of the folders {', '.join(ROWS)} with a {JSON_FILE} in it. "
            "docs/processes.md has the commands of evaluate.py that write them."
        )
    check_equal_images(reports)
    lines = ["| process | paper | network calls | " + " | ".join(METRICS.values()) + " |"]
    lines.append("|---" * (3 + len(METRICS)) + "|")
    for name, (process, paper, calls) in ROWS.items():
        report = reports.get(name)
        cells = [cell(report, metric) for metric in METRICS]
        lines.append(f"| {process} | {paper} | {calls} | " + " | ".join(cells) + " |")
    return lines


def check_equal_images(reports: dict[str, Report]) -> None:
    """Refuse reports whose numbers cannot be compared.

    Raises:
        UserError: they are of other images.
    """
    names = list(reports)
    for name in names[1:]:
        if reports[name].protocol["images"] != reports[names[0]].protocol["images"]:
            raise UserError(
                f"the reports {names[0]} and {name} are of different images: measure all with the "
                "same --data, --split, --samples and --seed."
            )


def cell(report: Report | None, metric: str) -> str:
    """Return a number with its interval; a metric of a feature space may be of any space."""
    if report is None:
        return NOT_YET
    found = [value for key, value in report.metrics.items() if key.rpartition("/")[2] == metric]
    return shown(found[0]) if found else "-"


def shown(estimate: Estimate) -> str:
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:.3g}"
    return f"{estimate.value:.3g} ({estimate.low:.3g} to {estimate.high:.3g})"


if __name__ == "__main__":
    run_main(main, Config)
