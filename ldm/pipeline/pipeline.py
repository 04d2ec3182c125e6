"""TextToImage, a whole model: autoencoder, text encoder and U-Net turn prompts into pictures."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Real
from PIL import Image
from torch import Tensor

from autoencoder import Autoencoder
from autoencoder.tiling import decode_tiled, encode_tiled
from conditioning import TextEncoder
from conditioning.prompt_syntax import parse_prompt, plain_prompt
from conditioning.prompt_weighting import encode_weighted
from foundation.errors import UserError
from foundation.shapes import Context, Estimates, Latents, Timesteps
from ldm.config import Prediction, ScheduleConfig
from ldm.denoiser import BoundNetwork, Conditioning, Denoiser, RepeatedNetwork, concatenate
from ldm.guidance import Guidance
from ldm.pipeline.batching import (
    Request,
    cpu_batch_size,
    draw_in_batches,
    is_out_of_memory,
    say,
    show_progress,
)
from ldm.pipeline.compatibility import check_components
from ldm.pipeline.conditioning import (
    compose_without_text,
    effective_guidance,
    is_text_conditional,
)
from ldm.pipeline.image_processor import check_pixel_count, image_to_tensor, tensor_to_image
from ldm.pipeline.io import PipelineComponents, load_components, save_components
from ldm.pipeline.sampling import Sampling, sample_latents
from ldm.pipeline.scheduler_config import LowResSchedule
from ldm.schedule import make_schedule
from ldm.tasks.base import TEXT_TO_IMAGE, Task, check_task
from ldm.tasks.multidiffusion import WindowedNetwork
from ldm.unet import CachedUNet, UNet
from ldm.unet.cached import CachedForward

MAX_LATENT_PIXELS = 128 * 128  # that the autoencoder takes at once; larger images go in tiles
GPU_BATCH_SIZE = 16


class TextToImage:
    """A whole model. Call it with prompts; image k is drawn from seed + k and from nothing else.

    On a CPU in fp32 an image is the same to the last bit in any batch; on a GPU it is the same up
    to rounding, since kernels there depend on the batch.
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
            text_encoder: None for a U-Net that is not conditional on text.
            classes: names of the classes, for a U-Net that is conditional on them.
            chunks: how many contexts of the text encoder a prompt fills, as in training.
            low_res: for upscaling, the noise schedule of the small pictures in training.

        Raises:
            UserError: the parts were not made for each other.
        """
        self.unet = unet
        self.autoencoder = autoencoder
        self.text_encoder = text_encoder
        self.schedule_config = schedule
        self.classes = tuple(classes)
        self.chunks = chunks
        self.low_res = low_res or LowResSchedule()
        # Compiled code that runs in place of `ldm.unet.cached.forward_cached`, if it is set.
        self.cached_forward: CachedForward | None = None
        # Off where weights are sharded: FSDP gathers those of a block for its `forward` alone.
        self.use_cache = True
        self.denoiser = Denoiser(unet, make_schedule(schedule), prediction)
        width = None if text_encoder is None else text_encoder.width
        check_components(unet.config, autoencoder.config.latent_channels, width)

    def to(self, device: str | torch.device, dtype: torch.dtype | None = None) -> "TextToImage":
        """Move the model to a device.

        dtype: that of the U-Net alone; text encoder and autoencoder keep their precision, which
            costs little.
        """
        self.denoiser.to(device)
        self.autoencoder.to(device)
        if self.text_encoder is not None:
            self.text_encoder.to(device)
        self.unet.to(dtype=dtype)
        return self

    def __repr__(self) -> str:
        """Say what the model is, in one line."""
        sizes: dict[str, torch.nn.Module] = {"U-Net": self.unet, "autoencoder": self.autoencoder}
        if self.text_encoder is not None:
            sizes["text encoder"] = self.text_encoder
        millions = ", ".join(
            f"{name} {sum(weight.numel() for weight in part.parameters()) / 1e6:.1f} M"
            for name, part in sizes.items()
        )
        side = self.unet.config.sample_size
        pixels = "" if side is None else f"{self.size} pixels, "
        return f"{type(self).__name__}({pixels}{millions} weights, on {self.device})"

    @property
    def device(self) -> torch.device:
        return self.unet.device

    @property
    def latent_factor(self) -> int:
        """How many times the autoencoder shrinks both sides."""
        return self.autoencoder.factor

    @property
    def factor(self) -> int:
        """What the sides of a picture must be a multiple of: autoencoder and U-Net shrink them."""
        return self.latent_factor * 2 ** (len(self.unet.config.block_out_channels) - 1)

    @property
    def image_channels(self) -> int:
        return self.autoencoder.config.in_channels

    @property
    def size(self) -> int:
        """Side of the pictures in training, in pixels.

        Raises:
            UserError: the model does not say it.
        """
        side = self.unet.config.sample_size
        if side is None:
            raise UserError("the model does not say its pictures' size; give height and width.")
        return (side if isinstance(side, int) else side[0]) * self.latent_factor

    def __call__(
        self,
        prompts: str | Sequence[str],
        *,
        negative_prompt: str | Sequence[str] = "",
        steps: int = 25,
        guidance_scale: float = 4.0,
        sampler: str = "dpmpp_2m",
        sampling: Sampling | None = None,
        seed: int | Sequence[int] = 0,
        prompt_weights: bool = False,
        task: Task = TEXT_TO_IMAGE,
        weak: "TextToImage | None" = None,
        height: int | None = None,
        width: int | None = None,
        window: int | None = None,
        batch_size: int | None = None,
        progress: bool | Callable[[int], object] = True,
        preview: Callable[[list[int], Latents], None] | None = None,
    ) -> list[Image.Image]:
        """Draw one picture per prompt, and return them in a list.

        Args:
            prompts: one, or several. Repeat a prompt for several pictures of it; each has its own
                seed.
            negative_prompt: takes the place of the empty prompt that guidance moves away from; one
                for all pictures, or one each.
            steps: number of sampler steps; most samplers call the network once per step.
            guidance_scale: 0 ignores the prompt, 1 is plain conditional, above 1 is guided.
            sampler: a name of ldm.samplers.SAMPLERS.
            sampling: all settings of sampling, in place of the three above.
            seed: that of the first image, where image k uses seed + k; or one for each.
            prompt_weights: whether brackets and AND in prompts weight words and compose prompts
                (`conditioning.prompt_syntax`); if not, they are words as in a caption.
            task: what to begin with besides the prompts, see `ldm.tasks`.
            progress: whether to show a progress bar, in terminals and notebooks; or a function as
                in `draw`.
            weak, height, width, window, batch_size, preview: see `draw`.

        Raises:
            UserError: prompts, negative prompts and seeds differ in number; an unknown sampler; a
                size that the networks cannot halve often enough; a U-Net that needs more inputs
                than it is given.
            NotFiniteError: the result is not finite.
        """
        check_task(self.unet, task)
        if sampling is None:
            guidance = Guidance(scale=guidance_scale)
            sampling = Sampling(sampler=sampler, steps=steps, guidance=guidance)
        requests = self.make_requests(prompts, negative_prompt, seed, prompt_weights)
        with show_progress(progress, len(requests) * sampling.network_calls(task)) as count:
            latents = self.draw(
                requests,
                sampling,
                task=task,
                weak=weak,
                height=height,
                width=width,
                window=window,
                batch_size=batch_size,
                progress=count,
                preview=preview,
            )
        return [self.to_picture(z, task) for z in latents]

    def make_requests(
        self,
        prompts: str | Sequence[str],
        negative_prompt: str | Sequence[str] = "",
        seed: int | Sequence[int] = 0,
        prompt_weights: bool = False,
    ) -> list[Request]:
        """Encode prompts: one request per picture; arguments as in `__call__`.

        Raises:
            UserError: prompts, negative prompts and seeds differ in number; AND in a negative
                prompt.
        """
        prompts = [prompts] if isinstance(prompts, str) else prompts
        count = len(prompts)
        seeds = range(seed, seed + count) if isinstance(seed, int) else seed
        is_shared = isinstance(negative_prompt, str)
        negatives = [negative_prompt] * count if is_shared else negative_prompt
        for name, each in (("seed", seeds), ("negative_prompt", negatives)):
            if len(each) != count:
                raise UserError(
                    f"{name} has {len(each)} values for {count} prompts; give one for each, or a "
                    "single one for all."
                )
        texts = dict.fromkeys([*prompts, *negatives])
        encoded = {text: self.condition_on(text, prompt_weights) for text in texts}
        for negative in negatives:
            if len(encoded[negative]) > 1:
                raise UserError(f"AND composes prompts, but {negative!r} is a negative prompt.")
        return [
            Request(encoded[prompt], encoded[negative][0][0], seed)
            for prompt, negative, seed in zip(prompts, negatives, seeds, strict=True)
        ]

    def condition_on(
        self, prompt: str, prompt_weights: bool = False
    ) -> list[tuple[Conditioning, float]]:
        """Turn a prompt into one conditioning or more, and their weights in the guidance."""
        if not is_text_conditional(self.unet):
            named = compose_without_text(self.unet, self.classes, prompt, prompt_weights)
            return [(conditioning.to(self.device), share) for conditioning, share in named]
        assert self.text_encoder is not None  # see check_components
        encode = partial(encode_weighted, self.text_encoder)
        parts = parse_prompt(prompt) if prompt_weights else plain_prompt(prompt)
        return [(Conditioning(encode(part.spans, self.chunks)), part.share) for part in parts]

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
        progress: Callable[[int], object] | None = None,
        preview: Callable[[list[int], Latents], None] | None = None,
    ) -> list[Float[Tensor, "1 c h w"]]:
        """Draw the latents of each request; `to_picture` decodes them.

        Args:
            weak: a weaker model of the same kind that guidance moves away from (autoguidance).
            height, width: in pixels, by default those of the training; a task may fix them.
            window: side in pixels of overlapping windows, through which a larger picture is drawn.
            batch_size: pictures drawn at once; by default 16, and on a CPU few, by their size. On a
                CPU smaller batches are filled up to it, so that the last bits depend on this number
                and on no other.
            progress: called with the number of pictures after each call of the network.
            preview: called then with the pictures' indices and the estimates of their latents.

        Raises:
            UserError, NotFiniteError: as `__call__`.
        """
        check_task(self.unet, task)
        guidance = effective_guidance(self.unet, requests, sampling.guidance, weak is not None)
        shape = self.task_shape(task, height, width)
        draw_batch = partial(
            sample_latents,
            denoiser=self.make_denoiser(window),
            shape=shape,
            sampling=replace(sampling, guidance=guidance),
            device=self.device,
            task=task,
            weak=None if weak is None else weak.make_denoiser(window),
        )
        is_cpu = self.device.type == "cpu"
        size = batch_size or self.usual_batch_size(shape)
        return draw_in_batches(draw_batch, requests, size, is_cpu, progress, preview)

    def usual_batch_size(self, shape: tuple[int, int, int]) -> int:
        """Return how many latents of a shape are drawn at once, unless somebody says otherwise."""
        return cpu_batch_size(shape) if self.device.type == "cpu" else GPU_BATCH_SIZE

    def make_denoiser(self, window: int | None = None) -> Denoiser:
        """Return what samplers call; with a window's side in pixels, it sees one after another."""
        side = None if window is None else self.latent_shape(window, window)[1]

        def bind_network(conditionings: Sequence[Conditioning]) -> BoundNetwork:
            network = self.bind_network(conditionings)
            return network if side is None else WindowedNetwork(network, side, overlap=side // 2)

        schedule, prediction = self.denoiser.schedule, self.denoiser.prediction
        return Denoiser(self.call_unet, schedule, prediction, bind_network)

    def bind_network(self, conditionings: Sequence[Conditioning]) -> BoundNetwork:
        """Bind the U-Net to conditionings: with a cache, if it is conditional on text."""
        if not is_text_conditional(self.unet) or not self.use_cache:
            return RepeatedNetwork(self.call_unet, conditionings)
        context = concatenate(conditionings).text
        assert context is not None  # every conditioning of such a U-Net has a text
        return CachedUNet(self.unet, context, self.cached_forward)

    def call_unet(
        self,
        latents: Float[Tensor, "b c_in h w"],
        timesteps: Timesteps,
        context: Context | None = None,
        class_labels: Real[Tensor, " b"] | None = None,
    ) -> Estimates:
        """Call the U-Net in the precision of its weights."""
        dtype = self.unet.dtype
        context = None if context is None else context.to(dtype)
        return self.unet(latents.to(dtype), timesteps, context, class_labels)

    def to_picture(
        self, latents: Float[Tensor, "1 c h w"], task: Task = TEXT_TO_IMAGE
    ) -> Image.Image:
        """Decode one image; alone, so that it does not depend on others and memory stays small."""
        return task.postprocess(tensor_to_image(self.decode(latents)[0]))

    @torch.no_grad()
    def decode(self, latents: Float[Tensor, "1 c h w"]) -> Float[Tensor, "1 channels height width"]:
        """Decode the latents of one image to pixels, about [-1, 1]; in tiles, if it is large."""
        if latents.shape[-2] * latents.shape[-1] > MAX_LATENT_PIXELS:
            return decode_tiled(self.autoencoder, latents)
        try:
            return self.autoencoder.decode(latents)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        say("the memory does not suffice to decode the picture as a whole; now in tiles.")
        return decode_tiled(self.autoencoder, latents)

    @torch.no_grad()
    def encode(
        self, images: Float[Tensor, "1 c h w"] | Image.Image
    ) -> Float[Tensor, "1 c_latent h_latent w_latent"]:
        """Return the most likely latents of a picture, or of pixels in [-1, 1]."""
        if isinstance(images, Image.Image):
            images = image_to_tensor(images, self.image_channels)
        images = images.to(self.device)
        pixels = images.shape[-2] * images.shape[-1]
        if pixels > MAX_LATENT_PIXELS * self.latent_factor**2:
            return encode_tiled(self.autoencoder, images).mode()
        return self.autoencoder.encode(images).mode()

    def unscaled(self, latents: Latents) -> Latents:
        """Return latents as the encoder network gives them, before scale and shift."""
        return self.autoencoder.unscaled(latents)

    def task_shape(self, task: Task, height: int | None, width: int | None) -> tuple[int, int, int]:
        """Return the shape of the latents; the size that a task fixes may be given again."""
        if task.size is None:
            return self.latent_shape(height, width)
        if (height or task.size[0], width or task.size[1]) != task.size:
            raise UserError(
                f"the picture of this task is {task.size[1]}x{task.size[0]}; leave out height and "
                "width."
            )
        return self.latent_shape(*task.size)

    def latent_shape(self, height: int | None, width: int | None) -> tuple[int, int, int]:
        """Return the shape of the latents of a picture; None is the size of the training.

        Raises:
            UserError: the networks cannot halve such a picture often enough.
        """
        height, width = (self.size if side is None else side for side in (height, width))
        check_pixel_count(width, height)
        factor = self.factor
        if height < factor or width < factor or height % factor or width % factor:
            near = [max(factor, side // factor * factor) for side in (width, height)]
            raise UserError(
                f"pictures of {width}x{height} cannot be drawn: autoencoder and U-Net together "
                f"shrink both sides {factor} times, so both must be multiples of {factor}. Near: "
                f"{near[0]}x{near[1]}."
            )
        channels = self.autoencoder.config.latent_channels
        return channels, height // self.latent_factor, width // self.latent_factor

    def save(self, folder: str | Path, provenance: Mapping[str, Any] | None = None) -> None:
        """Write the pipeline folder, atomically as a whole.

        provenance: facts worth keeping (JSON); under "autoencoder" and "text_encoder" those of
            the parts, as their own folders hold them.
        """
        components = PipelineComponents(
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
        """Load a model.

        source: the folder of a training run, a pipeline folder (ours or Stable Diffusion's), or a
            single file in the layout of CompVis or Stability.
        ema: from a single file that holds two U-Nets, the one averaged in training.

        Raises:
            MissingFileError: nothing of the kind is there.
            UserError: a part is not the one that the U-Net was trained with.
        """
        pipeline = cls(**vars(load_components(Path(source), ema)))
        for module in (pipeline.unet, pipeline.autoencoder):
            module.eval().requires_grad_(False)
        return pipeline.to(device)
