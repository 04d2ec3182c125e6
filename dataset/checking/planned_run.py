"""How a data folder suits a planned training, and whether the training's settings make sense."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from dataset.buckets import Buckets, bucket_shapes
from dataset.checking.caption_statistics import CaptionStatistics
from dataset.folder import Folder
from dataset.table import PairList

MOST_EPOCHS = 1000  # beyond it a model memorizes its pictures
LONG_RUN = 1000  # steps; who loses fewer has lost little
MUCH_DROPOUT = 0.5  # of captions
ASPECTS = (1.0, 1.5, 2.0, 3.0)  # values of max_aspect that are compared


@dataclass(frozen=True)
class PlannedRun:
    """The settings of a training that remarks are made on.

    Args:
        training: its script, such as train_ldm.py.
        size: side of its images in pixels; None where the network sets it.
        warmup: steps in which the learning rate rises.
        cooldown: fraction of the run, at its end, in which it falls.
        ema_halflife: of the averaged weights, in images; None if it averages none.
        save_every: steps between saved states.
        caption_dropout: chance that a caption is replaced by the empty one.
    """

    training: str
    steps: int
    batch_size: int
    size: int | None = None
    warmup: int = 0
    cooldown: float = 0.0
    ema_halflife: int | None = None
    save_every: int = 1
    caption_dropout: float = 0.0

    def epochs(self, images: int) -> float:
        """Return how often it sees each image."""
        return self.steps * self.batch_size / max(images, 1)


def judge(run: PlannedRun, images: int) -> list[str]:
    """Return remarks on a run with this number of training images."""
    return [*judge_epochs(run, images), *judge_settings(run)]


def judge_epochs(run: PlannedRun, images: int) -> list[str]:
    """Return a remark if the images are seen too often, or not all of them."""
    epochs = run.epochs(images)
    if epochs < 1:
        return [
            f"{run.training} would see {run.steps * run.batch_size:,} of {images:,} images. Train "
            f"for at least {-(-images // run.batch_size):,} steps to see all of them."
        ]
    if epochs <= MOST_EPOCHS:
        return []
    steps = max(MOST_EPOCHS * images // run.batch_size // 2, 1)
    return [
        f"{run.training} would see each of {images} images {epochs:,.0f} times ({run.steps:,} "
        f"steps of {run.batch_size}), and memorize them instead of what they have in common. "
        f"Add images, or train for fewer steps, such as {steps:,}."
    ]


def judge_settings(run: PlannedRun) -> list[str]:
    """Return remarks on settings that do not go together."""
    remarks: list[str] = []
    constant = run.steps - round(run.cooldown * run.steps)  # steps before the rate falls
    if run.warmup >= run.steps:
        remarks.append(
            f"the warm-up of {run.warmup:,} steps is as long as the run of {run.steps:,} or "
            "longer, so the learning rate is never reached. Set warmup to a twentieth of the steps."
        )
    elif run.warmup > constant and run.cooldown < 1:
        remarks.append(
            f"the learning rate begins to fall at step {constant:,}, in the warm-up of "
            f"{run.warmup:,} steps, so it is never reached. Make warmup or cooldown shorter."
        )
    if run.ema_halflife is not None and run.ema_halflife > run.steps * run.batch_size:
        remarks.append(
            f"the averaged weights have a half-life of {run.ema_halflife:,} images, and the run "
            f"sees {run.steps * run.batch_size:,}. Set ema_halflife to a hundredth of that, "
            f"{max(run.steps * run.batch_size // 100, 1):,}."
        )
    if run.save_every > run.steps >= LONG_RUN:
        remarks.append(
            f"no state is saved before the end (save_every {run.save_every:,}), so a run that is "
            "killed begins again."
        )
    if run.caption_dropout >= MUCH_DROPOUT:
        remarks.append(
            f"caption_dropout {run.caption_dropout:g}: so few captions are left that the model "
            "hardly learns to follow them. Usual is 0.1."
        )
    return remarks


def judge_batch(training: str, batch_size: int, images: int, held_out: int = 0) -> list[str]:
    """Return a problem if there are fewer images than a batch has.

    Args:
        training: its script, or what else to call it.
        images: that are trained on.
        held_out: images that are kept for validation, besides.
    """
    if images >= batch_size:
        return []
    others = f" ({held_out} of {images + held_out} held out)" if held_out else ""
    return [
        f"{images} images to train on{others} are fewer than one batch of {batch_size} of "
        f"{training}; train with batch_size {images} or smaller."
    ]


def judge_images(pairs: PairList, size: int) -> list[str]:
    """Return a remark if images are smaller than the size to train on."""
    small = int((shorter_sides(pairs) < size).sum())
    if not small:
        return []
    return [
        f"{small} of {len(pairs)} images are smaller than {size} pixels: they would be "
        "enlarged, and the model learns to draw blurred pictures. Train at a smaller size, or "
        "remove them."
    ]


def judge_captions(captions: CaptionStatistics) -> list[str]:
    """Return a problem if every caption will be cut off."""
    if not captions.all_cut:
        return []
    return [
        f"all {captions.captions} captions are longer than the {captions.room} tokens that the "
        f"text encoder reads (the shortest has {min(captions.lengths)}), so each loses its end. "
        "Shorten them, train a text encoder with a larger context_length, or use text_chunks."
    ]


@dataclass(frozen=True)
class SizeLoss:
    """What a training at a size does not see of the pictures.

    Args:
        cropped: max_aspect -> the fraction of the pixels that is cut off, on average.
        enlarged: images that are smaller than the size; None without a size.
        reduced: how many pixels of the median image become one; None without a size.
    """

    cropped: dict[float, float]
    enlarged: int | None = None
    reduced: float | None = None


def size_loss(folder: Folder, size: int | None) -> SizeLoss:
    """Compute what is lost at a size, for several values of max_aspect."""
    cropped = {aspect: 1 - remaining(folder, aspect, size or 512) for aspect in ASPECTS}
    if size is None:
        return SizeLoss(cropped)
    shorter = shorter_sides(folder.pairs)
    reduced = float(np.median(np.maximum(shorter / size, 1) ** 2))
    return SizeLoss(cropped, int((shorter < size).sum()), reduced)


def describe_loss(loss: SizeLoss, size: int | None) -> list[str]:
    """Return the lines on what is lost."""
    lines: list[str] = []
    if loss.cropped[1.0] > 0:
        others = ", ".join(
            f"{loss.cropped[aspect]:.0%} with max_aspect {aspect:g}" for aspect in ASPECTS[1:]
        )
        lines.append(
            f"  cropping to a centered square removes {loss.cropped[1.0]:.0%} of the pixels on "
            f"average, {others}"
        )
    if size is not None:
        lines.append(f"  {loss.enlarged} are smaller than {size} pixels and would be enlarged")
        if loss.reduced is not None and loss.reduced > 1:
            lines.append(
                f"  at {size} pixels, {loss.reduced:.3g} pixels of the median image become one"
            )
    return lines


def shorter_sides(pairs: PairList) -> Float64[np.ndarray, " images"]:
    """Return the shorter side of each image in pixels."""
    sides = [pairs.column(name) for name in ("width", "height")]
    return np.minimum(*sides).astype(np.float64)


def remaining(folder: Folder, max_aspect: float, size: int) -> float:
    """Compute which fraction of the pixels remains on average after cropping to the shapes."""
    if size % 8 or size > 1024:
        size = 512  # only ratios count, and shapes of such sizes would be too many
    multiple = next(m for m in (32, 16, 8, 4, 2, 1) if size % m == 0 and (8 * m <= size or m == 1))
    buckets = Buckets(bucket_shapes(max_aspect, size, multiple))
    shape_ratios = np.array([width / height for width, height in buckets.shapes])
    image_ratios = folder.pairs.column("width") / folder.pairs.column("height")
    nearest = shape_ratios[buckets.assign(folder.pairs)]
    return float(np.minimum(image_ratios / nearest, nearest / image_ratios).mean())
