"""python -m training.tools.report runs/ldm

Writes RUN/report.html: curves, previews, verdicts and settings of a run, finished or not, on one
page that needs no other file, no script and no network.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from foundation.errors import MissingFileError
from foundation.files import write_text
from foundation.system import open_result
from training.cli import parse, run_main


@dataclass(frozen=True, kw_only=True)
class Config:
    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]  # a run folder
    out: Path | None = None  # the page; RUN/report.html if left out
    open: bool = False  # show the page


def main(argv: Sequence[str] | None = None) -> None:
    config = parse(Config, argv, __doc__)
    if not (config.run / "config.json").is_file():
        raise MissingFileError(f"{config.run} is no run folder: there is no config.json in it.")
    from training.tools.report_page import report_page  # after parsing: it is slow to import

    out = config.out or config.run / "report.html"
    write_text(out, report_page(config.run))
    print(f"the report is {out}")
    if config.open:
        open_result(out)


if __name__ == "__main__":
    run_main(main, Config)
