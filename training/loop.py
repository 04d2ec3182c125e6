"""The training loop: counts optimizer steps, evaluates, saves states, and stops cleanly."""

import math
from collections.abc import Callable, Mapping
from contextlib import closing

from torch import Tensor

from foundation import collectives
from foundation.errors import NotFiniteError
from training.checkpoint import Stateful
from training.config import Plan
from training.logging.loggers import open_loggers
from training.logging.metrics import MetricsFile, NoMetricsFile, RunningMeans
from training.logging.progress import TrainingProgress, print_line
from training.optimizer import SkippedSteps, divergence_message
from training.run import Run
from training.signals import stop_requests
from training.watchdog import report_finished, report_progress
from training.weights.best import BestModel

Metrics = dict[str, Tensor]


def train(
    run: Run,
    plan: Plan,
    state: Mapping[str, Stateful],
    step: Callable[[int], Metrics],
    evaluate: Callable[[int], dict[str, float | str]],
    title: str,
    best: BestModel | None = None,
) -> None:
    """Call `step(0)` ... `step(steps - 1)`, going on from the newest state of the run.

    Args:
        state: name -> object; all that must be saved and restored.
        step: does one optimizer step. It returns 0-dim tensors, which are averaged without waiting
            for the device, with `step_applied` among them (see `OptimizerStep`).
        evaluate: called after every `evaluate_every` steps and at the end, with the number of
            steps done. It writes the preview, and returns numbers and verdicts (text).
        title: of the progress bar.
        best: keeps the weights of the best evaluation.

    Raises:
        KeyboardInterrupt: a signal asked to stop; the state was saved first.
        NotFiniteError: the training has diverged; the state was saved first.
    """
    means, skipped = RunningMeans(), SkippedSteps()
    state = {**state, "averages": means, "skips": skipped}
    report_progress("reading the state")
    first = run.resume(state)
    with (
        closing(open_metrics(run, first)) as metrics,
        closing(TrainingProgress(title, first, plan.steps, plan.images_per_step)) as bar,
        stop_requests() as stop,
        run.released_after_errors(),
    ):
        for done in range(first + 1, plan.steps + 1):
            report_progress("beginning", step=done, timeout=plan.rank_timeout)
            numbers = step(done - 1)
            skipped.add(numbers.pop("step_applied"))
            means.add(numbers)
            bar.advance()
            last, reason = done == plan.steps, None
            if last or done % plan.log_every == 0:
                reason = write_means(done, means, skipped, metrics, bar)
            if last or done % plan.evaluate_every == 0:
                report_progress("evaluating")
                write_evaluation(done, results := evaluate(done), run, metrics, bar)
                if best is not None:
                    report_progress("writing the best model")
                    best.offer(done, results)
            # asked once; a later signal waits one more step
            reason = reason or stop.reason(done, collectives.any_rank)
            if last or reason or done % plan.save_every == 0:
                report_progress("saving the state")
                metrics.sync()
                run.save(done, state)
            if reason:
                report_finished()
                raise reason
    report_progress("writing the model", timeout=math.inf)


def write_means(
    done: int,
    means: RunningMeans,
    skipped: SkippedSteps,
    metrics: MetricsFile | NoMetricsFile,
    bar: TrainingProgress,
) -> NotFiniteError | None:
    """Write and show the means since the last line; return an error if the training diverged."""
    numbers, (total, new, diverged) = means.pop(), skipped.read()
    metrics.write(done, {**numbers, "skipped_steps": total, "images_per_second": bar.rate()})
    bar.show(numbers)
    if new:
        print_line(
            f"step {done}: since the last line {new} steps were skipped, because their loss or "
            f"gradient was not finite ({total} so far)."
        )
    return NotFiniteError(divergence_message(done, total)) if diverged else None


def write_evaluation(
    done: int,
    results: dict[str, float | str],
    run: Run,
    metrics: MetricsFile | NoMetricsFile,
    bar: TrainingProgress,
) -> None:
    """Write and show what an evaluation returned, and its preview if there is one."""
    metrics.write(done, results)
    bar.print_results(done, results)
    if run.preview(done).exists():
        metrics.image(done, "preview", run.preview(done))


def open_metrics(run: Run, first: int) -> MetricsFile | NoMetricsFile:
    """Open the metrics file and the loggers; on other ranks than 0, one that writes nothing."""
    if collectives.rank():
        return NoMetricsFile()
    return MetricsFile(run.path, first, open_loggers(run.path, first, run.config))
