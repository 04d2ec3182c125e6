"""Prompts -> pictures: the only place that knows autoencoder, text encoder and U-Net together."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from autoencoder import Autoencoder
from autoencoder.tiling import decode_tiled, encode_tiled
from conditioning import TextEncoder
from conditioning.prompt_syntax import parse, plain
from conditioning.prompt_weighting import encode_weighted
from foundation.errors import UserError
from foundation.shapes import Context
from ldm.denoiser import Denoiser, Prediction
from ldm.guidance import Guidance
from ldm.pipeline.batching import Request, cpu_group, draw_in_batches
from ldm.pipeline.compatibility import check_components
from ldm.pipeline.conditioning import (
    adapted,
    context_without_text,
    possible_guidance,
    preparer,
    reads_text,
)
from ldm.pipeline.image_processor import check_pixel_count, image_to_tensor, tensor_to_image
from ldm.pipeline.io import Components, load_components, save_components
from ldm.pipeline.memory import ran_out, tell
from ldm.pipeline.sampling import Sampling, draw_latents
from ldm.pipeline.scheduler_config import LowResSchedule
from ldm.schedule import ScheduleConfig, make_schedule
from ldm.tasks.base import TEXT_TO_IMAGE, Task, check_task
from ldm.tasks.multidiffusion import windowed
from ldm.unet import UNet

WHOLE = 128 * 128  # latent pixels that the autoencoder takes at once; more goes through in tiles


class TextToImage:
    """A whole model. Call it with prompts; image k is drawn from seed + k and from nothing else.

    On a CPU in fp32 an image is the same to the last bit whatever it was batched with; on a GPU
    only up to rounding, since kernels there depend on the batch.
    """

    def __init__(
        self,
        unet: UNet,
        autoencoder: Autoencoder,
        text_encoder: TextEncoder | None,
        schedule: ScheduleConfig,
        prediction: Prediction,
        classes: Sequence[str] = (),
        chunks: int = 1,
        low_res: LowResSchedule | None = None,
    ):
        """
        Args:
            text_encoder: None for a U-Net that reads no text.
            classes: their names, for a U-Net that draws classes instead of reading a text.
            chunks: contexts that a prompt fills, one after the other: as in training.
            low_res: how the small picture was noised that an upscaler saw in training.
        """
        self.unet = unet
        self.autoencoder = autoencoder
        self.text_encoder = text_encoder
        self.schedule_config = schedule
        self.classes = tuple(classes)
        self.chunks = chunks
        self.denoiser = Denoiser(unet, make_schedule(schedule), prediction, preparer(unet))
        self.low_res = low_res or LowResSchedule()
        width = None if text_encoder is None else text_encoder.width
        check_components(unet.config, autoencoder.config.latent_channels, width)

    def to(self, device: str | torch.device, dtype: torch.dtype | None = None) -> "TextToImage":
        """dtype: of the U-Net alone; text and pictures keep their precision, which costs little."""
        for module in filter(None, (self.denoiser, self.autoencoder, self.text_encoder)):
            module.to(device)
        self.unet.to(dtype)
        return self

    @property
    def device(self) -> torch.device:
        return self.unet.conv_in.weight.device

    @property
    def factor(self) -> int:
        """What divides both sides of its pictures: autoencoder and U-Net shrink them so often."""
        return self.autoencoder.factor * 2 ** (len(self.unet.config.block_out_channels) - 1)

    @property
    def size(self) -> int:
        """Side of the pictures it was trained on, in pixels."""
        side = self.unet.config.sample_size
        if side is None:
            raise UserError("the model does not say its pictures' size; give height and width.")
        return (side if isinstance(side, int) else side[0]) * self.autoencoder.factor

    def __call__(
        self,
        prompts: Sequence[str],
        *,
        negative_prompt: str | Sequence[str] = "",
        steps: int = 25,
        guidance_scale: float = 4.0,
        sampler: str = "dpmpp_2m",
        sampling: Sampling | None = None,
        seed: int | Sequence[int] = 0,
        signs: bool = False,
        task: Task = TEXT_TO_IMAGE,
        **how: Any,
    ) -> list[Image.Image]:
        """One picture per prompt.

        Args:
            prompts: repeat a prompt for several pictures of it; each has its own seed.
            negative_prompt: takes the place of the empty prompt that guidance leads away from.
            steps: of the sampler; most call the network once per step.
            guidance_scale: 0 ignores the prompt, 1 is plain conditional, above 1 is guided.
            sampling: all that can be said about it, in place of these three.
            seed: of the first image, where image k uses seed + k; or one for each.
            signs: whether brackets and AND in prompts weight words and part prompts, as
                `conditioning.prompt_syntax` says; if not, they are words as in a caption.
            task: what is drawn besides, see `ldm.tasks`.
            how: height, width, window, batch_size, progress, preview, weak: see `draw`.

        Raises:
            ValueError: unknown sampler, a size that the networks cannot halve often enough, or a
                U-Net that draws from more than it is given.
            FloatingPointError: the result is not finite.
        """
        check_task(self.unet, task)
        guidance = Guidance(scale=guidance_scale)
        sampling = sampling or Sampling(sampler=sampler, steps=steps, guidance=guidance)
        requests = self.requests(prompts, negative_prompt, seed, signs)
        return [self.picture(z, task) for z in self.draw(requests, sampling, task=task, **how)]

    def requests(
        self,
        prompts: Sequence[str],
        negative_prompt: str | Sequence[str] = "",
        seed: int | Sequence[int] = 0,
        signs: bool = False,
    ) -> list[Request]:
        """What is to be drawn, a picture per prompt."""
        seeds = range(seed, seed + len(prompts)) if isinstance(seed, int) else seed
        alike = isinstance(negative_prompt, str)
        negatives = [negative_prompt] * len(prompts) if alike else negative_prompt
        texts = dict.fromkeys([*prompts, *negatives])
        read = {text: self.conditions(text, signs) for text in texts}
        for negative in negatives:
            if len(read[negative]) > 1:
                raise UserError(f"AND parts prompts; {negative!r} is a negative one.")
        return [
            Request(read[prompt], read[negative][0][0], seed)
            for prompt, negative, seed in zip(prompts, negatives, seeds, strict=True)
        ]

    def conditions(self, prompt: str, signs: bool = False) -> list[tuple[Context, float]]:
        """What a prompt becomes: one context or more, and their shares of the guidance."""
        if reads_text(self.unet):
            parts = parse(prompt) if signs else plain(prompt)
            encode = partial(encode_weighted, self.text_encoder)
            return [(encode(part.spans, self.chunks), part.share) for part in parts]
        return [(context_without_text(self.unet, self.classes, prompt).to(self.device), 1.0)]

    @torch.no_grad()
    def draw(
        self,
        requests: Sequence[Request],
        sampling: Sampling,
        *,
        task: Task = TEXT_TO_IMAGE,
        weak: "TextToImage | None" = None,
        height: int | None = None,
        width: int | None = None,
        window: int | None = None,
        batch_size: int | None = None,
        progress: Callable[[int], None] | None = None,
        preview: Callable[[list[int], Float[Tensor, "b c h w"]], None] | None = None,
    ) -> list[Float[Tensor, "1 c h w"]]:
        """Their latents, which `picture` decodes.

        Args:
            weak: a worse model of the same kind that guidance leads away from (autoguidance).
            height, width: in pixels, by default the size trained on; a task may fix them.
            window: side in pixels of overlapping windows that a larger picture is drawn through.
            batch_size: pictures drawn at once; by default 16, and on a CPU few, by their size. On a
                CPU fewer are filled up to it, so the last bits depend on it and on nothing else.
            progress: called with the number of pictures after each evaluation of the network.
            preview: called then with the pictures' places and the estimates of their latents.
        """
        check_task(self.unet, task)
        guidance = possible_guidance(self.unet, requests, sampling.guidance, weak is not None)
        sampling = replace(sampling, guidance=guidance)
        shape = self.task_shape(task, height, width)
        denoiser = self.windowed(window)
        weaker = None if weak is None else weak.windowed(window)

        def draw(chosen: list[Request], watch: Callable[[Tensor], None]) -> Tensor:
            return draw_latents(
                denoiser, chosen, shape, sampling, task=task, weak=weaker, watch=watch
            )

        cpu = self.device.type == "cpu"
        size = batch_size or (cpu_group(shape) if cpu else 16)
        return draw_in_batches(draw, requests, size, cpu, progress, preview)

    def windowed(self, window: int | None) -> Denoiser:
        """What samplers call; with a window's side in pixels, it sees one after the other."""
        network = adapted(self.unet)
        if window is not None:
            _, side, _ = self.latent_shape(window, window)
            network = windowed(network, side, overlap=side // 2)
        return Denoiser(
            network, self.denoiser.schedule, self.denoiser.prediction, preparer(self.unet)
        )

    def picture(self, latents: Float[Tensor, "1 c h w"], task: Task = TEXT_TO_IMAGE) -> Image.Image:
        """Decodes one image; alone, so that it does not depend on others and memory stays small."""
        return task.finish(tensor_to_image(self.decode(latents)[0]))

    @torch.no_grad()
    def decode(self, latents: Float[Tensor, "1 c h w"]) -> Float[Tensor, "1 _ _ _"]:
        if latents.shape[-2] * latents.shape[-1] > WHOLE:
            return decode_tiled(self.autoencoder, latents)
        try:
            return self.autoencoder.decode(latents)
        except RuntimeError as error:
            if not ran_out(error):
                raise
        tell("the memory does not suffice to decode the picture as a whole; now tile by tile.")
        return decode_tiled(self.autoencoder, latents)

    @torch.no_grad()
    def encode(self, images: Float[Tensor, "1 c h w"] | Image.Image) -> Float[Tensor, "1 _ _ _"]:
        """The most likely latents of a picture, or of pixels in [-1, 1]."""
        if isinstance(images, Image.Image):
            images = image_to_tensor(images, self.autoencoder.config.in_channels)
        images, factor = images.to(self.device), self.autoencoder.factor
        large = images.shape[-2] * images.shape[-1] > WHOLE * factor**2
        encode = partial(encode_tiled, self.autoencoder) if large else self.autoencoder.encode
        return encode(images).mode()

    def task_shape(self, task: Task, height: int | None, width: int | None) -> tuple[int, int, int]:
        """Of its latents; the size that a task fixes may be given again, but no other."""
        size = task.size or (height, width)
        if (height or size[0], width or size[1]) != size:
            raise UserError(
                f"the picture of this task is {size[1]}x{size[0]}; leave out height and width."
            )
        return self.latent_shape(*size)

    def latent_shape(self, height: int | None, width: int | None) -> tuple[int, int, int]:
        """For pictures of this size in pixels; a side that is None is as trained."""
        height, width = (self.size if side is None else side for side in (height, width))
        check_pixel_count(width, height)
        factor = self.factor
        if height < factor or width < factor or height % factor or width % factor:
            raise UserError(
                f"pictures of {width}x{height} cannot be drawn: autoencoder and U-Net together "
                f"shrink both sides {factor} times, so both must be multiples of {factor}. Near: "
                f"{max(factor, width // factor * factor)}x{max(factor, height // factor * factor)}."
            )
        channels = self.autoencoder.config.latent_channels
        return channels, height // self.autoencoder.factor, width // self.autoencoder.factor

    def save(self, folder: str | Path, provenance: dict[str, Any] | None = None) -> None:
        """Writes the pipeline folder; atomic as a whole.

        provenance: facts worth keeping (JSON); under "autoencoder" and "text_encoder" those of
            the parts, as their own folders hold them.
        """
        components = Components(
            unet=self.unet,
            autoencoder=self.autoencoder,
            text_encoder=self.text_encoder,
            schedule=self.schedule_config,
            prediction=self.denoiser.prediction,
            classes=self.classes,
            chunks=self.chunks,
            low_res=self.low_res,
        )
        save_components(Path(folder), components, provenance or {})

    @classmethod
    def load(
        cls, source: str | Path, device: str | torch.device = "cpu", ema: bool = False
    ) -> "TextToImage":
        """From a run folder of train_ldm.py, a pipeline folder, ours or Stable Diffusion's, or a
        single file in CompVis' or Stability's layout.

        ema: from a single file that holds two U-Nets, the one averaged in training.

        Raises:
            FileNotFoundError: nothing of the kind is there.
            ValueError: a part is not the one that the U-Net was trained with.
        """
        pipeline = cls(**vars(load_components(Path(source), ema)))
        for module in (pipeline.unet, pipeline.autoencoder):
            module.eval().requires_grad_(False)
        return pipeline.to(device)
