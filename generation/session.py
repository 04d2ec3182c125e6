"""An open model that generates images, and what is recorded about them."""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from foundation.hashing import tensors_sha256
from foundation.shapes import Latents
from generation.autoguidance import open_weak_model
from generation.compile import compile_unet
from generation.metadata import make_record
from generation.options import GenerationOptions
from generation.prompts import ImageSpec, error_location, prompt_notes
from ldm import TextToImage
from ldm.pipeline.batching import Request
from ldm.pipeline.io import read_model_provenance
from ldm.tasks.base import Task, check_task

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
MAX_GROUP = 32  # images generated before the first of them is written


@dataclass(frozen=True)
class ImageGroup:
    """Images with the same options but for prompts and seeds, which one call generates."""

    images: list[ImageSpec]
    task: Task

    @property
    def options(self) -> GenerationOptions:
        """Options of the first image; only the negative prompts of the others differ."""
        return self.images[0].options

    @property
    def network_calls(self) -> int:
        """Network calls for all images, where a guided pair counts as one."""
        return len(self.images) * self.options.sampling().network_calls(self.task)


class GenerationSession:
    """A model that generates groups of images; where half precision overflows, again in fp32."""

    def __init__(
        self,
        model: Path,
        device: torch.device,
        *,
        ema: bool = False,
        dtype: str = "fp32",
        compiled: bool = False,
        batch_size: int | None = None,
        modify: Callable[[TextToImage], dict[str, str]] | None = None,
        extra_record: Mapping[str, Any] | None = None,
    ):
        """Open the model.

        Args:
            model: see `TextToImage.load`.
            ema: see `TextToImage.load`.
            dtype: of the U-Net, a key of DTYPES.
            compiled: whether to compile the U-Net.
            batch_size: see `TextToImage.draw`.
            modify: changes the pipeline's weights, for example by a LoRA; returns the sha256 of
                what it used, by name.
            extra_record: entries that every image's record ends with.
        """
        self.model, self.ema, self.batch_size, self.modify = model, ema, batch_size, modify
        self.extra_record = dict(extra_record or {})
        self.weak_models: dict[Path, tuple[TextToImage, str]] = {}  # with the sha256 of the U-Net
        self.pipeline = TextToImage.load(model, ema=ema)
        self.hashes = {  # of the weights in the file
            "unet": tensors_sha256(self.pipeline.unet.state_dict()),
            "autoencoder": self.pipeline.autoencoder.sha256,
        }
        if self.pipeline.text_encoder is not None:
            self.hashes["text_encoder"] = self.pipeline.text_encoder.sha256
        if modify is not None:
            self.hashes |= modify(self.pipeline)
        self.pipeline.to(device, DTYPES[dtype])
        if compiled:
            self.pipeline.cached_forward = compile_unet(self.pipeline.unet)

    @property
    def dtype(self) -> str:
        """The U-Net's current precision, a key of DTYPES."""
        current = self.pipeline.unet.conv_in.weight.dtype
        return next(name for name, dtype in DTYPES.items() if dtype == current)

    def plan(self, images: Sequence[ImageSpec]) -> list[ImageGroup]:
        """Group consecutive images with the same options.

        Raises:
            UserError: the options of an image do not suit the model.
        """
        groups = []
        for options, members in groupby(
            images, lambda image: replace(image.options, negative_prompt="")
        ):
            members = list(members)
            with error_location(members[0].location):
                task = self.check(options)
            for first in range(0, len(members), MAX_GROUP):
                groups.append(ImageGroup(members[first : first + MAX_GROUP], task))
        return groups

    def check(self, options: GenerationOptions) -> Task:
        """Return the task for such images; raise UserError if the model cannot generate them."""
        self.pipeline.make_denoiser(options.window)
        self.weak_model(options)
        options.sampling().timesteps(self.pipeline.denoiser.schedule)
        task = options.make_task(self.pipeline)
        check_task(self.pipeline.unet, task)
        self.pipeline.task_shape(task, options.height, options.width)
        return task

    def weak_model(self, options: GenerationOptions) -> TextToImage | None:
        """Return the weak model of autoguidance, if the options name one."""
        return None if options.weak_model is None else self._open_weak(options.weak_model)[0]

    def _open_weak(self, source: Path) -> tuple[TextToImage, str]:
        if source not in self.weak_models:
            self.weak_models[source] = open_weak_model(source, self.pipeline)
        return self.weak_models[source]

    def weight_hashes(self, options: GenerationOptions) -> dict[str, str]:
        """Return the sha256 of all weights that such images depend on, by part of the model."""
        if options.weak_model is None:
            return self.hashes
        return self.hashes | {"weak_model": self._open_weak(options.weak_model)[1]}

    def requests(self, images: Sequence[ImageSpec]) -> list[Request]:
        """Encode the prompts of images with the same options."""
        return self.pipeline.make_requests(
            [image.prompt for image in images],
            [image.options.negative_prompt for image in images],
            [image.seed for image in images],
            prompt_weights=not images[0].options.plain_prompts,
        )

    def generate(
        self,
        requests: Sequence[Request],
        options: GenerationOptions,
        task: Task,
        progress: Callable[[int], object],
        preview: Callable[[list[int], Tensor], None] | None = None,
    ) -> list[Latents]:
        """Generate latents.

        If the result is not finite in half precision, it is generated once more in fp32, and so is
        everything after it.

        Args:
            progress: see `TextToImage.draw`.
            preview: see `TextToImage.draw`.

        Raises:
            FloatingPointError: the result is not finite in fp32.
        """
        draw = partial(
            self.pipeline.draw,
            requests,
            options.sampling(),
            task=task,
            height=options.height,
            width=options.width,
            window=options.window,
            batch_size=self.batch_size,
            progress=progress,
            preview=preview,
        )
        try:
            return draw(weak=self.weak_model(options))
        except FloatingPointError as error:
            if self.dtype == "fp32":
                raise
            print(f"warning: in {self.dtype}, {error} Now once more in fp32.", file=sys.stderr)
        self._reload_in_fp32()
        return draw(weak=self.weak_model(options))

    def _reload_in_fp32(self) -> None:
        exact = TextToImage.load(self.model, ema=self.ema)
        if self.modify is not None:
            self.modify(exact)
        self.pipeline.cached_forward = None  # compiled for the weights in half precision
        self.pipeline.unet.float().load_state_dict(exact.unet.state_dict())
        self.weak_models.clear()  # they take the strong model's precision when opened

    def record(self, image: ImageSpec) -> dict[str, Any]:
        """Make the record of an image, with which it can be generated again."""
        hashes = self.weight_hashes(image.options)
        record = make_record(image, self.model, self.ema, self.dtype, hashes)
        if self.pipeline.cached_forward is not None:
            record["compile"] = True
        if self.batch_size is not None and self.pipeline.device.type == "cpu":
            record["batch_size"] = self.batch_size  # decides the last bits
        return record | self.extra_record

    def print_notes(self, images: Sequence[ImageSpec]) -> None:
        """Print how prompts are read, which words are ignored, and a warning about guidance.

        Guidance leads away from the empty prompt, which a model learns only by caption dropout.
        """
        texts = [
            (text, image.options.plain_prompts, image.location)
            for image in images
            for text in (image.prompt, image.options.negative_prompt)
        ]
        for text, is_plain, location in dict.fromkeys(texts):
            with error_location(location):
                notes = prompt_notes(self.pipeline, text, prompt_weights=not is_plain)
            for note in notes:
                print(note)
        training = read_model_provenance(self.model).get("config", {})
        guided = any(image.options.guidance_scale != 1 for image in images)
        if training.get("caption_dropout") == 0 and guided:
            print(
                f"warning: {self.model} was trained with --caption-dropout 0, so it has not "
                "learned the empty prompt, which guidance needs. Use --guidance-scale 1."
            )
