"""python -m training.tools.posthoc runs/ldm

Chooses the length of the averaged weights after a training that stored averages on the way
(--averages-every). Every length asked for is put together from what was stored, judged on what the
run held out, and drawn as a point of RUN/posthoc/curve.svg; the best is written as
RUN/posthoc/model. One length alone is written as it is: --sigma-rel 0.08.
"""

import importlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Protocol, runtime_checkable

import torch
import tyro
from torch import Tensor, nn

from foundation import collectives
from foundation.errors import NotFiniteError, UserError
from foundation.files import read_json, write_json, write_text
from training.cli import parse, pick_device, run_main
from training.config import AveragingRecipe
from training.posthoc_ema import SIGMA_RELS, PowerAverages, average_of, stored_steps
from training.run import make_folder
from training.tools.curves import line_chart

FOLDER = "averages"  # of a run: where they are stored
FACTS = "averages.json"  # in it: which module judges them
LARGEST_ERROR = 0.1  # of a profile, from which one should know


@runtime_checkable
class Judge(Protocol):
    """What a stage does with averaged weights; its module has `open_judge(run, device)`."""

    measure: str  # what is measured, in words
    higher_is_better: bool

    def score(self, weights: dict[str, Tensor]) -> float: ...

    def own_score(self) -> float:
        """Of the model that the training wrote."""

    def write(self, weights: dict[str, Tensor], folder: Path, provenance: dict[str, Any]) -> None:
        """As a model folder, whole or not at all."""


@dataclass(frozen=True, kw_only=True)
class Config:
    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]  # a finished run
    sigma_rel: tuple[float, ...] = (0.03, 0.04, 0.05, 0.06, 0.08, 0.10, 0.13, 0.16, 0.20)
    """Lengths to try, each the width of the average as a share of the run."""
    step: int | None = None  # average up to this one, which must be stored; else the last
    out: Path | None = None  # folder for curve.svg, scores.json and model; RUN/posthoc if left out
    device: str = "auto"  # cpu, cuda, mps; auto takes what is there


def main(argv: Sequence[str] | None = None) -> None:
    config = parse(Config, argv, __doc__)
    step = chosen_step(config)
    out = config.out or config.run / "posthoc"
    judge = open_judge(config.run, pick_device(config.device))
    make_folder(out)
    own = judge.own_score()
    print(f"the model of the run: {judge.measure} {own:.5g}")
    scores: dict[float, float] = {}
    best = None
    for sigma_rel in sorted(set(config.sigma_rel)):
        weights, error = average_of(config.run / FOLDER, sigma_rel, step)
        scores[sigma_rel] = judge.score(weights)
        far = f"; the profile is met to {error:.0%} only" if error > LARGEST_ERROR else ""
        print(f"sigma_rel {sigma_rel:g}: {judge.measure} {scores[sigma_rel]:.5g}{far}")
        if choose(scores, judge.higher_is_better) == sigma_rel:
            best, best_weights, best_error = sigma_rel, weights, error
    if best is None:
        raise NotFiniteError("no length has a finite score: the training has diverged.")
    facts = {"sigma_rel": best, "step": step, "profile_error": best_error}
    judge.write(best_weights, out / "model", facts)
    numbers = {str(sigma_rel): score for sigma_rel, score in scores.items()}
    about = {"measure": judge.measure, "model_of_the_run": own, "by_sigma_rel": numbers}
    write_json(out / "scores.json", {**facts, **about})
    write_text(out / "curve.svg", curve(judge.measure, scores, own, best))
    print(f"sigma_rel {best:g} is in {out / 'model'}; the curve is {out / 'curve.svg'}")


def chosen_step(config: Config) -> int:
    """The step to average up to.

    Raises:
        ValueError: nothing is stored, or not that.
    """
    steps = stored_steps(config.run / FOLDER)
    if not steps:
        raise UserError(
            f"{config.run} has no stored averages in {FOLDER}/. A training stores them if it is "
            "told how often: --averages-every STEPS."
        )
    if config.step is not None and config.step not in steps:
        raise UserError(f"--step {config.step} is not stored. There are: {steps}.")
    return config.step or steps[-1]


def open_judge(run: Path, device: torch.device) -> Judge:
    """The judge of the stage that trained the run, which left its name there."""
    name = read_json(run / FOLDER / FACTS)["judge"]
    if not name.startswith("stages."):
        raise UserError(f"{run / FOLDER / FACTS} names {name}, which is no module of stages/.")
    return importlib.import_module(name).open_judge(run, device)


def stored_averages(
    run: Path, recipe: AveragingRecipe, module: nn.Module, judge: str
) -> PowerAverages | None:
    """For a training to update at every step; None if it is not asked for.

    judge: the module of stages/ that will judge them; its name is left in the run folder.
    """
    if not recipe.averages_every:
        return None
    if not collectives.rank():
        make_folder(run / FOLDER)
        write_json(run / FOLDER / FACTS, {"judge": judge, "sigma_rels": SIGMA_RELS})
    return PowerAverages(
        module,
        run / FOLDER,
        every=recipe.averages_every,
        steps=recipe.steps,
        half=recipe.averages_half,
    )


def choose(scores: dict[float, float], higher_is_better: bool) -> float | None:
    """The length of the best score; None if none is finite."""
    finite = {length: score for length, score in scores.items() if math.isfinite(score)}
    return (max if higher_is_better else min)(finite, key=finite.__getitem__, default=None)


def curve(measure: str, scores: dict[float, float], own: float, best: float) -> str:
    title = f"{measure} by length of the average; best at {best:g}"
    marked = {"the model of the run": own}
    points = {measure: sorted(scores.items())}
    return line_chart(title, points, x_label="sigma_rel", marked=marked, dots=True)


if __name__ == "__main__":
    run_main(main)
