"""python -m training.tools.posthoc runs/ldm

Chooses the length of the averaged weights after a training that stored averages on the way
(--averages-every). Each length is reconstructed from the stored averages, evaluated on the held-out
data of the run, and drawn as a point of RUN/posthoc/curve.svg; the best one is written as
RUN/posthoc/model. A single length is written as it is: --sigma-rel 0.08.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import tyro

from training.cli import parse, run_main
from training.flags import Groups


@dataclass(frozen=True, kw_only=True)
class Config:
    GROUPS: ClassVar[Groups] = {
        "averages": ("run", "sigma_rel", "step"),
        "output": ("out",),
        "machine": ("device",),
    }

    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]  # a finished run
    # lengths to try, each the width of the average as a fraction of the run
    sigma_rel: tuple[float, ...] = (0.03, 0.04, 0.05, 0.06, 0.08, 0.10, 0.13, 0.16, 0.20)
    step: int | None = None  # a stored step to average up to; the last one if left out
    out: Path | None = None  # folder for curve.svg, scores.json and model; RUN/posthoc if left out
    device: str = "auto"  # cpu, cuda, mps; auto: the first GPU there is, else the CPU


def main(argv: Sequence[str] | None = None) -> None:
    config = parse(Config, argv, __doc__)
    from training.tools.average_length import choose_length  # after parsing: it imports torch

    choose_length(
        config.run,
        config.sigma_rel,
        step=config.step,
        out=config.out or config.run / "posthoc",
        device=config.device,
    )


if __name__ == "__main__":
    run_main(main, Config)
