"""An opened model at work: the same pictures whatever happens on the way, or a clear end."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from foundation.hashing import tensors_sha256
from generation.autoguidance import open_weak
from generation.compile import compile_unet
from generation.notes import notes
from generation.options import Options
from generation.prompts import Picture, told
from generation.record import record_of
from ldm import TextToImage
from ldm.pipeline.batching import Request
from ldm.pipeline.io import read_model_provenance
from ldm.tasks.base import Task, check_task

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
AT_ONCE = 32  # pictures drawn before they are written


class Studio:
    def __init__(
        self,
        model: Path,
        device: torch.device,
        *,
        ema: bool = False,
        dtype: str = "fp32",
        compiled: bool = False,
        batch_size: int | None = None,
        adapt: Callable[[TextToImage], dict[str, str]] | None = None,
    ):
        """batch_size: as the pipeline takes it. adapt: changes the weights, and gives the hashes of
        what it changes them by."""
        self.model, self.ema, self.batch_size, self.adapt = model, ema, batch_size, adapt
        self.weaker: dict[Path, tuple[TextToImage, str]] = {}  # opened so far, with their sha256
        self.pipeline = TextToImage.load(model, ema=ema)
        self.hashes = {  # of the weights as they are in the file
            "unet": tensors_sha256(self.pipeline.unet.state_dict()),
            "autoencoder": self.pipeline.autoencoder.sha256,
        }
        if self.pipeline.text_encoder is not None:
            self.hashes["text_encoder"] = self.pipeline.text_encoder.sha256
        self.hashes |= adapt(self.pipeline) if adapt else {}
        self.pipeline.to(device, DTYPES[dtype])
        if compiled:
            self.pipeline.cached_forward = compile_unet(self.pipeline.unet)

    @property
    def dtype(self) -> str:
        now = self.pipeline.unet.conv_in.weight.dtype
        return next(name for name, dtype in DTYPES.items() if dtype == now)

    def jobs(self, pictures: Sequence[Picture]) -> list[tuple[list[Picture], Task]]:
        """Pictures of the same options one after the other, and what to draw them with.

        What cannot be drawn is refused here, before the first picture is.
        """
        jobs = []
        for options, alike in groupby(pictures, lambda p: replace(p.options, negative_prompt="")):
            alike = list(alike)
            with told(alike[0].where):
                task = self.checked(options)
            jobs += [(alike[k : k + AT_ONCE], task) for k in range(0, len(alike), AT_ONCE)]
        return jobs

    def checked(self, options: Options) -> Task:
        """What to draw, if it can be drawn."""
        self.pipeline.make_denoiser(options.window)
        self.weak(options.weak_model)
        options.sampling().timesteps(self.pipeline.denoiser.schedule)
        task = options.task(self.pipeline)
        check_task(self.pipeline.unet, task)
        self.pipeline.task_shape(task, options.height, options.width)
        return task

    def weak(self, source: Path | None) -> TextToImage | None:
        return None if source is None else self.opened(source)[0]

    def opened(self, source: Path) -> tuple[TextToImage, str]:
        if source not in self.weaker:
            self.weaker[source] = open_weak(source, self.pipeline)
        return self.weaker[source]

    def hashes_of(self, options: Options) -> dict[str, str]:
        """Of all weights that such pictures are drawn with."""
        if options.weak_model is None:
            return self.hashes
        return self.hashes | {"weak_model": self.opened(options.weak_model)[1]}

    def requests(self, pictures: Sequence[Picture]) -> list[Request]:
        prompts, negatives, seeds = zip(
            *((p.prompt, p.options.negative_prompt, p.seed) for p in pictures), strict=True
        )
        signs = not pictures[0].options.plain_prompts
        return self.pipeline.make_requests(prompts, negatives, seeds, signs)

    def draw(
        self,
        requests: Sequence[Request],
        picture: Picture,
        task: Task,
        progress: Callable[[int], Any],
        preview: Callable[[list[int], Tensor], None] | None = None,
    ) -> list[Tensor]:
        """Latents of pictures with the options of this one.

        What comes to nothing in half precision is drawn once more in fp32, as is all that follows.
        progress, preview: as the pipeline takes them.
        """
        options = picture.options
        draw = partial(
            self.pipeline.draw,
            requests,
            options.sampling(),
            task=task,
            height=options.height,
            width=options.width,
            window=options.window,
            weak=self.weak(options.weak_model),
            batch_size=self.batch_size,
            progress=progress,
            preview=preview,
        )
        try:
            return draw()
        except FloatingPointError as error:
            if self.dtype == "fp32":
                raise
            print(f"warning: in {self.dtype}, {error} Now once more in fp32.", file=sys.stderr)
        exact = TextToImage.load(self.model, ema=self.ema)
        if self.adapt:
            self.adapt(exact)
        self.pipeline.cached_forward = None  # compiled for the weights in half precision
        self.pipeline.unet.float().load_state_dict(exact.unet.state_dict())
        self.weaker.clear()  # to be opened again, as precise
        return draw(weak=self.weak(options.weak_model))

    def record(self, picture: Picture) -> dict[str, Any]:
        hashes = self.hashes_of(picture.options)
        record = record_of(picture, self.model, self.ema, self.dtype, hashes)
        return record | ({"compile": True} if self.pipeline.cached_forward is not None else {})

    def warn(self, pictures: Sequence[Picture]) -> None:
        """Of prompts that are cut, and of guidance that leads away from what was never learned.

        That is the empty prompt, which a model learns by caption dropout alone.
        """
        asked = [
            (text, picture.options.plain_prompts, picture.where)
            for picture in pictures
            for text in (picture.prompt, picture.options.negative_prompt)
        ]
        for text, plain, where in dict.fromkeys(asked):
            with told(where):
                lines = notes(self.pipeline, text, signs=not plain)
            for line in lines:
                print(line)
        trained = read_model_provenance(self.model).get("config", {})
        guided = any(picture.options.guidance_scale != 1 for picture in pictures)
        if trained.get("caption_dropout") == 0 and guided:
            print(
                f"warning: {self.model} was trained with --caption-dropout 0, so it does not know "
                "the empty prompt that guidance leads away from. Use --guidance-scale 1."
            )
