"""The length of averaged weights, chosen after a training: scores, a curve, and a model.

Karras et al. 2024 (arXiv:2312.02696), section 3; the averages are those of
training/weights/posthoc_ema.py.
"""

import importlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from foundation.errors import NotFiniteError, UserError
from foundation.files import write_json, write_text
from training.device import pick_device
from training.run import make_folder
from training.tools.curves import line_chart
from training.weights.posthoc_ema import EVALUATOR, FOLDER, reconstruct, stored_steps

LARGE_PROFILE_ERROR = 0.1  # above it, the user is told


@runtime_checkable
class AveragesEvaluator(Protocol):
    """An evaluator of averaged weights of one run, and a writer of models made of them."""

    metric: str  # what `score` measures, in words
    higher_is_better: bool

    def score(self, weights: dict[str, Tensor]) -> float:
        """Measure these weights on the held-out data."""
        ...

    def score_of_run(self) -> float:
        """Measure the model that the training wrote."""
        ...

    def write(self, weights: dict[str, Tensor], folder: Path, provenance: dict[str, Any]) -> None:
        """Write these weights as a model folder, atomically."""
        ...


def choose_length(
    run: Path, lengths: Sequence[float], *, step: int | None, out: Path, device: str
) -> None:
    """Score averages of these lengths, and write the best one as a model, with a curve of all.

    Args:
        run: a finished run that stored averages.
        lengths: each the width of the average as a fraction of the run.
        step: a stored step to average up to; None for the last one.
        out: folder for curve.svg, scores.json and model.
        device: as in the flags.

    Raises:
        UserError: no averages are stored, or none at that step.
        NotFiniteError: no length has a finite score.
    """
    step = choose_step(run, step)
    evaluator = open_evaluator(run, pick_device(device))
    make_folder(out)
    score_of_run = evaluator.score_of_run()
    print(f"the model of the run: {evaluator.metric} {score_of_run:.5g}")
    scores: dict[float, float] = {}
    errors: dict[float, float] = {}
    best, best_weights = None, {}
    for sigma_rel in sorted(set(lengths)):
        weights, errors[sigma_rel] = reconstruct(run / FOLDER, sigma_rel, step)
        scores[sigma_rel] = evaluator.score(weights)
        print(describe(evaluator.metric, sigma_rel, scores[sigma_rel], errors[sigma_rel]))
        if choose(scores, evaluator.higher_is_better) == sigma_rel:
            best, best_weights = sigma_rel, weights
    if best is None:
        raise NotFiniteError("no length has a finite score: the training has diverged.")
    facts = {"sigma_rel": best, "step": step, "profile_error": errors[best]}
    evaluator.write(best_weights, out / "model", facts)
    by_length = {str(sigma_rel): score for sigma_rel, score in scores.items()}
    measured = {"model_of_the_run": score_of_run, "by_sigma_rel": by_length}
    write_json(out / "scores.json", {**facts, "measure": evaluator.metric, **measured})
    write_text(out / "curve.svg", draw_curve(evaluator.metric, scores, score_of_run, best))
    print(f"sigma_rel {best:g} is in {out / 'model'}; the curve is {out / 'curve.svg'}")


def choose_step(run: Path, step: int | None) -> int:
    """Return the step to average up to.

    Raises:
        UserError: no averages are stored, or none at that step.
    """
    steps = stored_steps(run / FOLDER)
    if not steps:
        raise UserError(
            f"{run} has no stored averages in {FOLDER}/. A training stores them with "
            "--averages-every STEPS."
        )
    if step is not None and step not in steps:
        raise UserError(f"--step {step} is not stored. There are: {steps}.")
    return step or steps[-1]


def open_evaluator(run: Path, device: torch.device) -> AveragesEvaluator:
    """Open the evaluator of the stage that trained the run.

    It is imported by name, because stages/ is built on training/ and not the other way round.
    """
    return importlib.import_module(EVALUATOR).open_evaluator(run, device)


def describe(metric: str, sigma_rel: float, score: float, profile_error: float) -> str:
    """Return the line that reports one length."""
    text = f"sigma_rel {sigma_rel:g}: {metric} {score:.5g}"
    if profile_error > LARGE_PROFILE_ERROR:
        text += f"; its profile is approximated with an error of {profile_error:.0%}"
    return text


def choose(scores: dict[float, float], higher_is_better: bool) -> float | None:
    """Return the length with the best score; None if no score is finite."""
    finite = {length: score for length, score in scores.items() if math.isfinite(score)}
    return (max if higher_is_better else min)(finite, key=finite.__getitem__, default=None)


def draw_curve(metric: str, scores: dict[float, float], score_of_run: float, best: float) -> str:
    """Draw the scores over the length of the average, as SVG."""
    title = f"{metric} by length of the average; best at {best:g}"
    references = {"the model of the run": score_of_run}
    points = {metric: sorted(scores.items())}
    return line_chart(title, points, x_label="sigma_rel", references=references, dots=True)
