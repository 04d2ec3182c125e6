"""How samples depend on guidance scale, steps and sampler: `evaluate.py model --sweep-guidance`.

One setting at a time is changed, around those of the measurement. All points of a sweep have the
same captions and the same noise, so their pictures and numbers differ by that setting alone.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from dataset.table import PairList
from evaluation.distances import all_distances
from evaluation.estimates import Estimate
from foundation.errors import UserError
from ldm.pipeline.sampling import Sampling
from stages.evaluation.blocks import Blocks, Rows
from stages.evaluation.data import ChosenImages, to_rgb
from stages.evaluation.drawing import Samples
from stages.evaluation.model import ModelMeasurement


@dataclass(frozen=True)
class Point:
    """One value of the setting that is changed, and the sampling with it."""

    value: float | str
    sampling: Sampling


@dataclass(frozen=True)
class Axis:
    """The setting that is changed, by its flag; its points, that of the measurement among them."""

    name: str
    flag: str
    points: list[Point]

    @property
    def title(self) -> str:
        return f"sweep over {self.name}"


def make_axes(
    main: Sampling, scales: Sequence[float], steps: Sequence[int], samplers: Sequence[str]
) -> list[Axis]:
    """Return the sweeps that are asked for; main: the sampling of the measurement.

    Raises:
        UserError: a sampling that does not exist, or no other value than that of the measurement.
    """
    with_scale = [
        Point(float(value), replace(main, guidance=replace(main.guidance, scale=value)))
        for value in sorted({main.guidance.scale, *scales})
    ]
    with_steps = [
        Point(value, replace(main, steps=value)) for value in sorted({main.steps, *steps})
    ]
    with_sampler = [
        Point(value, replace(main, sampler=value))
        for value in dict.fromkeys((main.sampler, *samplers))
    ]
    asked = [
        (Axis("guidance scale", "guidance_scale", with_scale), "sweep_guidance", scales),
        (Axis("steps", "steps", with_steps), "sweep_steps", steps),
        (Axis("samplers", "sampler", with_sampler), "sweep_samplers", samplers),
    ]
    for axis, flag, values in asked:
        if values and len(axis.points) < 2:
            raise UserError(
                f"{flag} names only {axis.points[0].value}, which is that of the measurement "
                f"already; name others, or leave {flag} out."
            )
    return [axis for axis, _, values in asked if values]


class Sweep:
    """The samples of all points, and their numbers; those of the measurement are used again."""

    def __init__(self, measured: ModelMeasurement, axes: list[Axis], count: int):
        """count: samples of each point, at most as many as the measurement has."""
        self.measured, self.axes = measured, axes
        self.count = count = min(count, len(measured.samples))
        pairs = measured.images.pairs
        images = ChosenImages(PairList(pairs.table, pairs.rows[:count]), measured.images.source, 0)
        self.captions = measured.samples.captions[:count]
        main = measured.drawing.sampling
        self.samples: dict[Sampling, Samples] = {}
        self.numbers: dict[Sampling, Blocks] = {}
        for point in (point for axis in axes for point in axis.points):
            if point.sampling == main:
                self.samples[main], self.numbers[main] = measured.samples, measured.numbers
            else:
                self.samples[point.sampling] = measured.samples_of(images, point.sampling)
                name = f"numbers of {count} samples"
                self.numbers[point.sampling] = measured.blocks(name, count, point.sampling)

    def fill(self) -> None:
        """Draw what is not drawn yet, and compute what is not computed yet.

        Call it after the same of the measurement.
        """
        main = self.measured.drawing.sampling
        for axis in self.axes:
            for point in (point for point in axis.points if point.sampling != main):
                title = f"{axis.name} {point.value}"
                samples = self.samples[point.sampling]
                samples.draw(self.measured.pipeline, point.sampling, f"drawing {title}")
                self.numbers[point.sampling].fill(
                    lambda numbers: torch.tensor(list(numbers)),
                    self.compute(samples),
                    f"measuring {title}",
                )

    def compute(self, samples: Samples) -> Callable[[range, Tensor], Rows]:
        """Return a function that computes the numbers of some samples."""
        measured = self.measured

        def compute_block(numbers: range, _: Tensor) -> Rows:
            rows = samples.embed(numbers, measured.judge)
            for space in measured.spaces:
                rows |= measured.batches(space, to_rgb(samples.pictures(numbers)), "samples")
            return rows

        return compute_block

    def rows(self, name: str, sampling: Sampling) -> Tensor:
        """Return the rows of the samples of a point."""
        return self.numbers[sampling].rows(name)[: self.count]

    def metrics(self, sampling: Sampling) -> dict[str, Estimate]:
        """Return the metrics of the samples of a point, against the images of their captions."""
        found = self.measured.alignment("samples", self.count, self.numbers[sampling])
        return self.with_distances(found, "samples", sampling)

    def references(self) -> tuple[dict[str, Estimate], dict[str, Estimate]]:
        """Return the metrics of as many real images, and those of the ceiling."""
        main = self.measured.drawing.sampling
        real, ceiling = (self.measured.alignment(name, self.count) for name in ("real", "ceiling"))
        return real, self.with_distances(ceiling, "ceiling", main)

    def with_distances(
        self,
        found: dict[str, Estimate],
        name: str,
        sampling: Sampling,
    ) -> dict[str, Estimate]:
        """Add the distances to the images of the captions in each feature space."""
        for space in self.measured.spaces:
            reference = self.measured.reference_blocks[space.name].rows(f"reference/{space.name}")
            distances, _ = all_distances(
                self.rows(f"{name}/{space.name}", sampling),
                reference[: self.count],
                paired=name == "ceiling",
                is_clip=space.is_clip,
            )
            found |= {f"{space.name}/{key}": value for key, value in distances.items()}
        return found


@dataclass(frozen=True)
class SweptPoint:
    """A point with its metrics."""

    point: Point
    is_main: bool  # whether it is that of the measurement
    calls: int  # of the network for a picture; a guided pair counts once
    metrics: dict[str, Estimate]

    def to_json(self, flag: str) -> dict[str, Any]:
        numbers = {name: asdict(value) for name, value in self.metrics.items()}
        facts = {"of_the_measurement": self.is_main, "network_calls": self.calls}
        return {flag: self.point.value, **facts, **numbers}


def swept_points(sweep: Sweep, axis: Axis) -> list[SweptPoint]:
    """Return the points of an axis with their metrics."""
    main = sweep.measured.drawing.sampling
    return [
        SweptPoint(
            point,
            point.sampling == main,
            point.sampling.network_calls(),
            sweep.metrics(point.sampling),
        )
        for point in axis.points
    ]
