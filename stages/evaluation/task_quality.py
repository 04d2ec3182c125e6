"""Measures models made for a task: `evaluate.py task`, compared with what else could do the task.

Each held-out picture is masked, made small or damaged as in training, and drawn again; the result
is compared with the picture. An ordinary model keeps a picture by its latents, and those at the rim
of a mask contain what lies behind it. So it gets pictures with something else there.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from PIL import Image, ImageFilter
from torch import Tensor

from conditioning.clip import Clip
from dataset.images.transform import ImageTransform, normalize_pixels
from dataset.loader import PixelStore
from evaluation.estimates import Estimate, mean_estimate
from evaluation.reconstruction import psnr
from foundation.errors import UserError
from foundation.files import write_json
from interop.model_card import as_mapping
from ldm import TextToImage, tasks
from ldm.pipeline.compatibility import UNET_KINDS, extra_channels, unet_kind
from ldm.pipeline.conditioning import reads_prompt
from ldm.pipeline.image_processor import tensor_to_image
from ldm.pipeline.sampling import Sampling
from ldm.tasks.base import Task
from ldm.tasks.upscale import cell_side
from stages.evaluation.data import ChosenImages, to_rgb
from stages.tasks.base import TrainingTask
from stages.tasks.degradation import Degradation
from stages.tasks.inpaint import InpaintingTask
from stages.tasks.restore import RestoringTask
from stages.tasks.upscale import UpscalingTask
from training.logging.image_grid import pil_to_tensor, save_grid
from training.logging.progress import progress_bar

SHOWN = 8  # pictures of the grid
MODEL, GIVEN, CEILING = "this model", "what it begins with", "autoencoder (ceiling)"
PLAIN = "ordinary model"
SEAM, UNMATCHED, VISIBLE = "seam", "seam, colors not matched", "visible seam"
DISTANCE = "judge's distance"
LOWER_IS_BETTER = (SEAM, UNMATCHED, VISIBLE, DISTANCE)
Picture = UInt8[Tensor, "1 c h w"]
Draw = Callable[[int], tuple[Picture, Picture]]  # a picture as decoded, and finished by the task


@dataclass(frozen=True)
class TaskResult:
    """Numbers of all ways to do the task, and their pictures."""

    metrics: Mapping[str, Mapping[str, Estimate]]  # way -> metric
    differences: Mapping[str, Mapping[str, Estimate]]  # another way -> this model minus that way
    pictures: Mapping[str, UInt8[Tensor, "n c h w"]]  # way -> finished pictures

    def table(self) -> str:
        """Return the numbers as a table in Markdown.

        The last rows are means of differences on the same picture, whose intervals are narrower.
        """
        names = list(next(iter(self.metrics.values())))
        rows = [["", *names], ["---"] * (len(names) + 1)]
        rows += [
            [way, *(str(found[name]) for name in names)] for way, found in self.metrics.items()
        ]
        rows += [
            [f"{MODEL} minus {way}", *(signed(found[name]) for name in names)]
            for way, found in self.differences.items()
        ]
        return "\n".join(f"| {' | '.join(row)} |" for row in rows)

    def write(self, folder: Path, facts: Mapping[str, Any]) -> None:
        """Write task.json and task.png, whose rows are the ways in the order of the table."""
        numbers = {
            key: {
                way: {name: estimate.to_json() for name, estimate in found.items()}
                for way, found in ways.items()
            }
            for key, ways in (("metrics", self.metrics), ("differences", self.differences))
        }
        write_json(folder / "task.json", {**numbers, **facts})
        rows = torch.cat([pictures[:SHOWN] for pictures in self.pictures.values()])
        save_grid(rows, len(rows) // len(self.pictures), folder / "task.png")


class TaskMeasurement:
    """Does the task of a model on pictures by the model and in other ways.

    Args:
        plain: an ordinary model that does the same task its own way; None: not compared.
        judge: a CLIP whose distance between pictures counts; None: not measured.
        config: flags of the training of the model, which say how inputs are made.

    Raises:
        UserError: the model was made for no task.
    """

    def __init__(
        self,
        pipeline: TextToImage,
        plain: TextToImage | None,
        judge: Clip | None,
        images: ChosenImages,
        sampling: Sampling,
        seed: int,
        config: Mapping[str, Any],
    ):
        self.pipeline, self.plain, self.judge = pipeline, plain, judge
        self.images, self.sampling, self.seed = images, sampling, seed
        self.task = recorded_task(pipeline, config)
        if plain is not None and isinstance(self.task, RestoringTask):
            raise UserError("ordinary models have no way to restore pictures: leave out --plain.")
        transform = ImageTransform(pipeline.size, pipeline.image_channels)
        self.task.pixels = PixelStore(images.pairs, transform)
        self.captions = [pair.captions[0] if pair.captions else "" for pair in images.pairs]

    @cached_property
    def originals(self) -> UInt8[Tensor, "n c h w"]:
        return self.task.pixels_of(torch.arange(len(self.captions)))

    def ways(self) -> dict[str, Draw]:
        """Return the ways to do the task, by name."""
        ways: dict[str, Draw] = {MODEL: lambda k: self.draw(self.pipeline, self.given(k)[0], k)}
        if self.plain is not None:
            ways[PLAIN] = self.draw_plain
        for name, function in self.filters().items():
            ways[name] = partial(self.filtered, function)
        if not isinstance(self.task, UpscalingTask):
            ways[GIVEN] = lambda k: twice(self.given(k)[1])
        ways[CEILING] = lambda k: twice(self.reconstruct(k))
        return ways

    def filters(self) -> dict[str, Callable[[Image.Image], Image.Image]]:
        """Return what ordinary filters make of a picture that the task begins with."""
        resampling = Image.Resampling
        if isinstance(self.task, UpscalingTask):
            scale = self.task.scale

            def enlarge(shown: Image.Image, how: Image.Resampling) -> Image.Image:
                small = shown.resize((shown.width // scale, shown.height // scale), resampling.BOX)
                return small.resize(shown.size, how)

            return {
                "Lanczos": partial(enlarge, how=resampling.LANCZOS),
                "bicubic": partial(enlarge, how=resampling.BICUBIC),
            }
        if isinstance(self.task, RestoringTask):

            def halve(picture: Image.Image) -> Image.Image:
                half = picture.resize((picture.width // 2, picture.height // 2), resampling.BICUBIC)
                return half.resize(picture.size, resampling.BICUBIC)

            median = ImageFilter.MedianFilter(3)
            return {"median filter": lambda x: x.filter(median), "bicubic, half size": halve}
        return {}

    def measure(self) -> TaskResult:
        """Draw all pictures in all ways, and compare them with the originals."""
        values: dict[str, dict[str, Float[Tensor, " n"]]] = {}
        pictures: dict[str, Tensor] = {"original": self.originals}
        for name, way in self.ways().items():
            numbers = range(len(self.captions))
            drawn = [way(k) for k in progress_bar(numbers, name, len(numbers))]
            decoded, finished = (torch.cat(column) for column in zip(*drawn, strict=True))
            values[name] = self.numbers(decoded, finished)
            pictures[name] = finished
        ours = values[MODEL]
        return TaskResult(
            {way: estimates(found) for way, found in values.items()},
            {
                way: estimates({name: ours[name] - found[name] for name in found})
                for way, found in values.items()
                if way not in (MODEL, GIVEN, CEILING)
            },
            pictures,
        )

    def numbers(
        self, decoded: UInt8[Tensor, "n c h w"], finished: UInt8[Tensor, "n c h w"]
    ) -> dict[str, Float[Tensor, " n"]]:
        """Compare pictures with the originals."""
        found: dict[str, Float[Tensor, " n"]] = {}
        if isinstance(self.task, InpaintingTask):
            masks = torch.cat([self.mask(k) for k in range(len(finished))])
            found["PSNR outside, as decoded"] = masked_psnr(self.originals, decoded, 1 - masks)
            found["PSNR inside"] = masked_psnr(self.originals, finished, masks)
            pasted = torch.where(masks > 0, decoded, self.originals)
            found[SEAM] = seam(self.originals, finished, masks)
            found[UNMATCHED] = seam(self.originals, pasted, masks)
            found[VISIBLE] = visible_seam(self.originals, finished, masks)
        else:
            found["PSNR"] = psnr(self.originals, finished)
        if self.judge is not None:
            ours, theirs = (
                self.judge.encode_images(to_rgb(x)).cpu() for x in (self.originals, finished)
            )
            found[DISTANCE] = 1 - (ours * theirs).sum(dim=1)
        return found

    def given(self, number: int) -> tuple[Task, Picture]:
        """Return the task of a picture, and the picture that it begins with."""
        return self.task.preview(
            self.pipeline, self.originals[number : number + 1], self.seed + number
        )

    def mask(self, number: int) -> Picture:
        """Return the mask of a picture: 1 where it is drawn."""
        assert isinstance(self.task, InpaintingTask)
        return self.task.preview_mask(self.originals[number : number + 1], self.seed + number)

    def draw(self, pipeline: TextToImage, task: Task, number: int) -> tuple[Picture, Picture]:
        """Draw one picture; return it as decoded, and finished by the task."""
        prompt = self.captions[number] if reads_prompt(pipeline.unet) else ""
        requests = pipeline.make_requests(prompt, seed=[self.seed + number])
        (latents,) = pipeline.draw(requests, self.sampling, task=task, batch_size=1)
        pictures = (pipeline.to_picture(latents), pipeline.to_picture(latents, task))
        first, second = (pil_to_tensor([picture]) for picture in pictures)
        return first, second

    def draw_plain(self, number: int) -> tuple[Picture, Picture]:
        """Draw one picture by the ordinary model."""
        assert self.plain is not None
        original = self.originals[number : number + 1]
        if isinstance(self.task, UpscalingTask):
            small = as_picture(self.task.shrunk(original))
            return self.draw(self.plain, tasks.upscale(self.plain, small, self.task.scale), number)
        mask = self.mask(number)
        another = self.originals[(number + 1) % len(self.originals)]
        given = as_picture(torch.where(mask > 0, another, original))
        task = tasks.inpaint(self.plain, given, as_picture(255 * mask))
        return self.draw(self.plain, task, number)

    def filtered(
        self, function: Callable[[Image.Image], Image.Image], number: int
    ) -> tuple[Picture, Picture]:
        return twice(pil_to_tensor([function(as_picture(self.given(number)[1]))]))

    def reconstruct(self, number: int) -> Picture:
        """Return what the autoencoder makes of the original."""
        images = normalize_pixels(self.originals[number : number + 1])
        picture = self.pipeline.to_picture(self.pipeline.encode(images))
        return pil_to_tensor([picture])


def recorded_task(pipeline: TextToImage, config: Mapping[str, Any]) -> TrainingTask:
    """Return the task of a model, with the settings of its training where these are recorded."""
    kind, autoencoder = unet_kind(pipeline.unet.config), pipeline.autoencoder
    if kind == "inpaint":
        return InpaintingTask(autoencoder)
    if kind == "upscale":
        scale = autoencoder.factor // cell_side(extra_channels(pipeline.unet.config))
        return UpscalingTask(autoencoder, scale, pipeline.low_res.max_noise_level)
    if kind == "restore":
        return RestoringTask(autoencoder, Degradation(**as_mapping(config.get("degradation"))))
    raise UserError(
        f"this model was made for no task: its U-Net {UNET_KINDS[kind]}. Measure it with "
        "evaluate.py model."
    )


def signed(difference: Estimate) -> str:
    """Write a difference and its interval with their signs."""
    text = f"{difference.value:+.3g}"
    if difference.low is None or difference.high is None:
        return text
    return f"{text} [{difference.low:+.3g}, {difference.high:+.3g}]"


def estimates(found: Mapping[str, Float[Tensor, " n"]]) -> dict[str, Estimate]:
    """Return the mean of each metric over the pictures."""
    return {
        name: mean_estimate(values, "lower" if name in LOWER_IS_BETTER else "higher")
        for name, values in found.items()
    }


def twice(picture: Picture) -> tuple[Picture, Picture]:
    """Return a picture as decoded and as finished, where both are the same."""
    return picture, picture


def as_picture(pixels: UInt8[Tensor, "1 c h w"]) -> Image.Image:
    return tensor_to_image(normalize_pixels(pixels)[0])


def masked_psnr(
    images: UInt8[Tensor, "n c h w"],
    others: UInt8[Tensor, "n c h w"],
    masks: UInt8[Tensor, "n 1 h w"],
) -> Float[Tensor, " n"]:
    """Return the PSNR of each pair where the mask is 1."""
    error = (images.double() - others.double()).square().mean(dim=1, keepdim=True)
    mean = (error * masks).sum(dim=(1, 2, 3)) / masks.sum(dim=(1, 2, 3)).clamp(min=1)
    return 10 * torch.log10(255**2 / mean.clamp(min=1e-4))


def seam(
    images: UInt8[Tensor, "n c h w"],
    others: UInt8[Tensor, "n c h w"],
    masks: UInt8[Tensor, "n 1 h w"],
) -> Float[Tensor, " n"]:
    """Return how much steps across the border of the mask differ from the original's.

    The mean over neighbors of which one is drawn and one is kept, in gray levels.
    """
    return mean_at_border(lambda a, b: (b - a).abs(), images, others, masks)


def visible_seam(
    images: UInt8[Tensor, "n c h w"],
    others: UInt8[Tensor, "n c h w"],
    masks: UInt8[Tensor, "n 1 h w"],
) -> Float[Tensor, " n"]:
    """Return by how much steps across the border of the mask are larger than the original's.

    The mean over neighbors of which one is drawn and one is kept, in gray levels. Something else
    than the original that continues what is kept as well as that does has 0; a visible seam has
    more, and what is too smooth has less.
    """
    return mean_at_border(lambda a, b: b.abs() - a.abs(), images, others, masks)


def mean_at_border(
    compare: Callable[[Tensor, Tensor], Tensor],
    images: UInt8[Tensor, "n c h w"],
    others: UInt8[Tensor, "n c h w"],
    masks: UInt8[Tensor, "n 1 h w"],
) -> Float[Tensor, " n"]:
    """Compare the steps of both between neighbors of which one is drawn and one is kept."""
    total, count = torch.zeros(len(masks)), torch.zeros(len(masks))
    for axis in (2, 3):
        border = masks.diff(dim=axis).ne(0).float()  # of 8 bits: -1 is 255
        first, second = (pixels.float().diff(dim=axis) for pixels in (images, others))
        change = compare(first, second).mean(dim=1, keepdim=True)
        total += (change * border).sum(dim=(1, 2, 3))
        count += border.sum(dim=(1, 2, 3))
    return total / count.clamp(min=1)
