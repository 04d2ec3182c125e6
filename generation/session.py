"""An open model that generates images, and what is recorded about them."""

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from foundation.errors import UserError, one_line
from foundation.hashing import tensors_sha256
from foundation.shapes import Latents
from generation.autoguidance import open_weak_model
from generation.compile import compile_unet
from generation.meaning import make_sampling, make_task
from generation.metadata import make_record
from generation.options import GenerationOptions
from generation.prompts import ImageSpec, error_location, prompt_notes
from generation.room import check_size
from ldm import TextToImage
from ldm.pipeline.batching import Request
from ldm.pipeline.conditioning import is_text_conditional
from ldm.pipeline.io import read_model_provenance
from ldm.tasks.base import TEXT_TO_IMAGE, Task, check_task
from training.logging.progress import print_line

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


@dataclass
class Survey:
    """What there is to do, summed over all images."""

    images: int = 0
    network_calls: int = 0  # where a guided pair counts as one
    has_input_files: bool = False
    is_guided: bool = False


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
        self.printed: set[int] = set()  # hashes of notes
        self.last_check: tuple[GenerationOptions, Task] | None = None
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
            if not is_text_conditional(self.pipeline.unet):
                raise UserError(
                    "--compile is made for models that read texts, and this one reads none. Leave "
                    "it out."
                )
            self.pipeline.cached_forward = compile_unet(self.pipeline.unet)

    @property
    def dtype(self) -> str:
        """The U-Net's current precision, a key of DTYPES."""
        current = self.pipeline.unet.conv_in.weight.dtype
        return next(name for name, dtype in DTYPES.items() if dtype == current)

    def survey(self, images: Iterable[ImageSpec]) -> Survey:
        """Check all images before the first is drawn, and count what there is to do.

        Raises:
            UserError: the options of an image do not suit the model.
        """
        survey = Survey()
        for options, members in groupby(images, same_call):
            calls = None
            for image in members:
                if calls is None:
                    with error_location(image.location):
                        task = self.check(options)
                    calls = make_sampling(options).network_calls(task)
                survey.images += 1
                survey.network_calls += calls
            survey.has_input_files |= bool(options.input_files())
            survey.is_guided |= options.guidance_scale != 1
        return survey

    def plan(self, images: Iterable[ImageSpec], *, by_batch: bool = False) -> Iterator[ImageGroup]:
        """Group consecutive images with the same options.

        by_batch: make one group of each batch, so that its images can be written before the next.
        """
        for options, members in groupby(images, same_call):
            task, size = self.check(options), MAX_GROUP
            if by_batch:
                shape = self.pipeline.task_shape(task, options.height, options.width)
                size = self.batch_size or self.pipeline.usual_batch_size(shape)
            while group := list(islice(members, size)):
                yield ImageGroup(group, task)

    def check(self, options: GenerationOptions) -> Task:
        """Return the task for such images; raise UserError if the model cannot generate them.

        The last result is kept: to encode an input image takes time.
        """
        if self.last_check is None or self.last_check[0] != options:
            self.last_check = options, self._check(options)
        return self.last_check[1]

    def _check(self, options: GenerationOptions) -> Task:
        self.pipeline.make_denoiser(options.window)
        self.weak_model(options)
        make_sampling(options).timesteps(self.pipeline.denoiser.schedule)
        if not options.input_files():
            self._check_size(options, TEXT_TO_IMAGE)
        task = make_task(options, self.pipeline)
        check_task(self.pipeline.unet, task)
        self._check_size(options, task)
        return task

    def _check_size(self, options: GenerationOptions, task: Task) -> None:
        shape = self.pipeline.task_shape(task, options.height, options.width)
        batch = 1 if self.batch_size is None else self.batch_size
        check_size(self.pipeline, shape, options.window, batch)

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

    def all_requests(self, images: Sequence[ImageSpec]) -> Iterator[Request]:
        """Encode the prompts of any number of images, some at a time."""
        for first in range(0, len(images), MAX_GROUP):
            yield from self.requests(images[first : first + MAX_GROUP])

    def pictures(
        self,
        requests: Iterator[Request],
        options: GenerationOptions,
        task: Task,
        progress: Callable[[int], object],
    ) -> Iterator[Image.Image]:
        """Generate the pictures of any number of requests, some at a time."""
        while group := list(islice(requests, MAX_GROUP)):
            for latents in self.generate(group, options, task, progress):
                yield self.pipeline.to_picture(latents, task)

    def picture_size(self, options: GenerationOptions, task: Task) -> tuple[int, int]:
        """Return width and height of a picture, as far as they are known before it is drawn."""
        shape = self.pipeline.task_shape(task, options.height, options.width)
        factor = self.pipeline.latent_factor
        return shape[2] * factor, shape[1] * factor

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
            make_sampling(options),
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

    def print_notes(self, images: Iterable[ImageSpec]) -> None:
        """Print how prompts are read, and which words are ignored; each note once."""
        texts = [
            (text, image.options.plain_prompts)
            for image in images
            for text in (image.prompt, image.options.negative_prompt)
        ]
        for text, is_plain in dict.fromkeys(texts):
            for note in prompt_notes(self.pipeline, text, prompt_weights=not is_plain):
                if hash(note) not in self.printed:
                    self.printed.add(hash(note))
                    print_line(note)

    def print_warning(self, survey: Survey) -> None:
        """Print a warning if guidance leads away from an empty prompt that was never learned.

        A model learns the empty prompt only by caption dropout.
        """
        training = read_model_provenance(self.model).get("config", {})
        if training.get("caption_dropout") == 0 and survey.is_guided:
            print(
                f"warning: {one_line(self.model)} was trained with --caption-dropout 0, so it has "
                "not learned the empty prompt, which guidance needs. Use --guidance-scale 1."
            )


def same_call(image: ImageSpec) -> GenerationOptions:
    """Return what images that are generated by one call have in common."""
    options = image.options
    return replace(options, negative_prompt="") if options.negative_prompt else options
