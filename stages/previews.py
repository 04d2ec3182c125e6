"""The pictures that a training of stage 2 draws at each evaluation."""

from collections.abc import Sequence

import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from foundation import collectives
from ldm import TextToImage
from ldm.tasks.base import Task
from stages.tasks.base import TrainingTask
from training.logging.image_grid import pil_to_tensor


class PromptPreviews:
    """One picture for each prompt, from its own seed; the ranks share the work.

    Args:
        task: what is drawn besides text to image.
        examples: numbers of images with which tasks begin that need a picture; there may be fewer
            than prompts.
    """

    def __init__(
        self,
        prompts: Sequence[str],
        seed: int,
        guidance_scale: float,
        task: TrainingTask,
        examples: Sequence[int],
    ):
        self.prompts, self.seed, self.guidance_scale = prompts, seed, guidance_scale
        self.task, self.examples = task, examples

    def draw(self, pipeline: TextToImage) -> UInt8[Tensor, "n c h w"]:
        """Return all pictures, on every rank."""
        own = collectives.rank_rows(len(self.prompts)).tolist()
        if self.task.channels:
            drawn = [self.draw_example(pipeline, k) for k in own]
        else:
            prompts: list[str] = [self.prompts[int(k)] for k in own]
            seed = self.seed + own[0]
            drawn = pipeline(prompts, guidance_scale=self.guidance_scale, seed=seed)
        return collectives.gather_rows(pil_to_tensor(drawn), len(self.prompts))

    def draw_example(self, pipeline: TextToImage, number: int) -> Image.Image:
        """Draw one picture by the task."""
        task, _ = self.example(pipeline, number)
        (drawn,) = pipeline(
            [self.prompts[number]],
            guidance_scale=self.guidance_scale,
            seed=self.seed + number,
            task=task,
            batch_size=1,
        )
        return drawn

    def beginnings(self, pipeline: TextToImage) -> UInt8[Tensor, "n c h w"]:
        """Return the pictures that the task begins with: masked, small, or damaged."""
        numbers = range(len(self.prompts))
        return torch.cat([self.example(pipeline, number)[1] for number in numbers])

    def example(self, pipeline: TextToImage, number: int) -> tuple[Task, UInt8[Tensor, "1 c h w"]]:
        """Return the task of a picture, and what it begins with."""
        assert self.task.pixels is not None, "the pixels are set before the first evaluation"
        pixels = self.task.pixels.square(self.examples[number % len(self.examples)])
        return self.task.preview(pipeline, pixels, number)
