"""Inpainting and outpainting: a part of a picture is drawn anew, the rest stays as it is.

A mask is 1 where to draw, 0 where to keep, and in between where to mix. A plain model is held to
the kept part in every step. A model trained for inpainting (9 channels) gets the mask and the kept
part as inputs. Afterwards the kept part is put back pixel by pixel, and the colors of the drawn
part are matched to it at the seam.
"""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, UInt8
from PIL import Image
from torch import Tensor

from foundation.errors import UserError
from foundation.shapes import Denoise, Estimates, Latents, Timesteps
from ldm.denoiser import BoundNetwork
from ldm.pipeline.compatibility import extra_channels
from ldm.pipeline.image_processor import (
    check_image_size,
    check_pixel_count,
    image_to_tensor,
    mask_to_tensor,
)
from ldm.samplers import Sampler
from ldm.samplers.ddim import posterior_mean
from ldm.samplers.levels import DrawNoise, NoiseLevels
from ldm.samplers.noise import SeededNoise
from ldm.tasks.base import Task, TaskPipeline
from ldm.tasks.img2img import ImageToImage

Mask = Float[Tensor, "1 1 height width"]


def inpaint(
    pipeline: TaskPipeline,
    picture: Image.Image,
    mask: Image.Image,
    strength: float = 1.0,
    *,
    resample: int = 1,
) -> Task:
    """Make the task of drawing the masked part of a picture anew.

    Args:
        mask: as large as the picture; white is drawn, black is kept to the bit, gray is mixed.
        strength: below 1, the drawn part starts from what is in the picture there.
        resample: how often each step is taken (RePaint), with the sampler ddpm; not for models
            trained for inpainting, which are recognized by their channels.

    Raises:
        UserError: picture, mask and model do not go together.
    """
    check_image_size(picture, pipeline.factor, pipeline.factor)
    shares = mask_to_tensor(mask, (picture.height, picture.width))
    latents = pipeline.encode(picture)
    if not extra_channels(pipeline.unet.config):
        if shares.min() == 1:
            raise UserError(
                "the mask is all white, so nothing of the picture is kept: draw without picture "
                "and mask, or image to image, which takes no mask."
            )
        return Inpainting(latents, picture, shares, strength, resample)
    if resample != 1:
        raise UserError("this model takes the mask as an input: leave out resample.")
    pixels = image_to_tensor(picture, pipeline.image_channels)
    kept = pipeline.encode(pixels * (shares < 0.5))
    return NativeInpainting(latents, picture, shares, kept, strength)


def outpaint(
    pipeline: TaskPipeline,
    picture: Image.Image,
    grow: tuple[int, int, int, int],
    strength: float = 1.0,
    *,
    resample: int = 1,
) -> Task:
    """Make the task of continuing a picture beyond its borders.

    grow: pixels by which the picture becomes larger at the left, top, right and bottom.
    """
    left, top, right, bottom = grow
    check_pixel_count(picture.width + left + right, picture.height + top + bottom)
    larger, mask = extend_canvas(picture, *grow)
    return inpaint(pipeline, larger, Image.fromarray(mask), strength, resample=resample)


class Inpainting(ImageToImage):
    """Inpainting with a plain model."""

    def __init__(
        self,
        latents: Float[Tensor, "1 c h w"],
        picture: Image.Image,
        mask: Mask,
        strength: float = 1.0,
        resample: int = 1,
    ):
        """
        Args:
            latents: those of the picture.
            mask: one value per pixel of the picture.
            resample: how often each step is taken, with fresh noise between, so that both parts
                grow together: RePaint, Lugmayr et al. 2022 (arXiv:2201.09865), algorithm 1.
        """
        super().__init__(latents, (picture.height, picture.width), strength)
        if resample < 1:
            raise UserError(f"resample is {resample}; a step is taken once or more.")
        self.picture, self.mask, self.resample = picture, mask, resample
        self.factor = picture.height // latents.shape[-2]
        # A latent pixel is drawn if any of its pixels is.
        self.latent_mask = F.max_pool2d(mask, self.factor).ceil()

    def constrain(self, z_0: Latents) -> Latents:
        """Replace the kept part of an estimate by the picture's latents.

        A sampler then carries the kept part along from noise by itself: where the estimate stays
        the same, every solver goes straight to it, with the noise that belongs to each time.
        """
        return torch.where(self.latent_mask.to(z_0) > 0, z_0, self.latents.to(z_0))

    def find_sampler(self, name: str, noise: SeededNoise) -> Sampler:
        if self.resample == 1:
            return super().find_sampler(name, noise)
        if name != "ddpm":
            raise UserError(
                f"resampling goes with the sampler ddpm, whose steps can be taken back, not with "
                f"{name}. Choose ddpm, or resample 1."
            )
        streams = partial(stream_noise, noise)
        return partial(repaint, repeats=self.resample, streams=streams)

    def repeats_per_step(self) -> int:
        return self.resample

    def postprocess(self, picture: Image.Image) -> Image.Image:
        return composite(self.picture, picture, self.mask, radius=2 * self.factor)


class NativeInpainting(Inpainting):
    """Inpainting with a model that takes the mask and the masked picture as inputs."""

    def __init__(
        self,
        latents: Float[Tensor, "1 c h w"],
        picture: Image.Image,
        mask: Mask,
        kept: Float[Tensor, "1 c h w"],
        strength: float = 1.0,
    ):
        """kept: latents of the picture with gray (0) under the mask."""
        super().__init__(latents, picture, mask, strength)
        visible = mask_of_latents(mask, latents)
        if not visible.any():
            raise UserError(
                f"this model sees the mask in black and white, and only one pixel in {self.factor} "
                "in each direction, so that nothing of this mask is left: make it lighter or wider."
            )
        self.inputs = torch.cat([visible, kept], dim=1)
        self.extra_channels = self.inputs.shape[1]

    def add_inputs(self, network: BoundNetwork, noise: SeededNoise) -> BoundNetwork:
        def network_with_mask(z_t: Latents, t: Timesteps) -> Estimates:
            inputs = self.inputs.to(z_t).expand(len(z_t), -1, -1, -1)
            return network(torch.cat([z_t, inputs], dim=1), t)

        return network_with_mask

    def constrain(self, z_0: Latents) -> Latents:
        return z_0


def mask_of_latents(
    masks: Float[Tensor, "b 1 height width"], latents: Float[Tensor, "b c h w"]
) -> Float[Tensor, "b 1 h w"]:
    """Return masks as networks for inpainting see them: black and white, as large as the latents.

    Each is reduced by taking the pixel at the corner of every cell, as Stable Diffusion does.
    """
    return F.interpolate((masks >= 0.5).to(latents), latents.shape[-2:])


def stream_noise(noise: SeededNoise, number: int) -> DrawNoise:
    return noise.stream(number).between


@torch.no_grad()
def repaint(
    denoise: Denoise,
    z: Latents,
    levels: NoiseLevels,
    draw_noise: DrawNoise,
    *,
    repeats: int,
    streams: Callable[[int], DrawNoise],
) -> Latents:
    """Ancestral sampling (`ddpm`) that takes every step back and again several times.

    streams: other noise for the same steps, by number: each repetition uses its own.

    Lugmayr et al. 2022 (arXiv:2201.09865), algorithm 1.
    """
    for i in range(len(levels)):
        angles = levels.angle[i], levels.angle[i + 1]
        z_next = z
        for k in range(repeats):
            z_next = posterior_mean(levels, z, denoise(z, levels.time(i, z)), i)
            if levels.is_last(i):  # ends in the clean image, from where there is no way back
                break
            noise = streams(2 * k)(*angles) if k else draw_noise(*angles)
            z_next = z_next + levels.posterior_std(i) * noise
            if k < repeats - 1:
                ratio = levels.alpha[i] / levels.alpha[i + 1]
                std = (levels.sigma[i] ** 2 - (ratio * levels.sigma[i + 1]) ** 2).sqrt()
                z = ratio * z_next + std * streams(2 * k + 1)(*angles)
        z = z_next
    return z


def composite(original: Image.Image, drawn: Image.Image, mask: Mask, radius: float) -> Image.Image:
    """Combine the original where the mask is 0 (to the bit) with the drawn picture elsewhere.

    radius: over which a difference in color at the seam fades out, in pixels.
    """
    before, after = (np.atleast_3d(np.asarray(picture)) for picture in (original, drawn))
    share = mask[0, 0].cpu()
    old, new = (torch.tensor(x, dtype=torch.float32).permute(2, 0, 1) for x in (before, after))
    new = match_colors(new, old, share == 0, radius)
    mixed = (old + share * (new - old)).round().clamp(0, 255).to(torch.uint8)
    pixels = np.where((share == 0)[..., None].numpy(), before, mixed.permute(1, 2, 0).numpy())
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)


def match_colors(
    drawn: Float[Tensor, "c h w"],
    original: Float[Tensor, "c h w"],
    outside: Bool[Tensor, "h w"],
    radius: float,
) -> Float[Tensor, "c h w"]:
    """Remove the difference in color between the drawn part and the original around it.

    The difference is known only outside the mask. Blurred, it reaches into the drawn part: half of
    it at a straight seam, nothing deep inside.
    """
    weight = outside.to(drawn)[None]
    difference = blur(torch.cat([(original - drawn) * weight, weight]), radius)
    return drawn + difference[:-1] / difference[-1:].clamp(min=0.5)


def blur(images: Float[Tensor, "c h w"], radius: float) -> Float[Tensor, "c h w"]:
    """Blur by a Gaussian of this standard deviation; mirrored at the border."""
    reach = min(int(3 * radius), *(side - 1 for side in images.shape[-2:]))
    kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / radius) ** 2)
    kernel = (kernel / kernel.sum()).to(images)
    padded = F.pad(images[:, None], [reach] * 4, mode="reflect")
    return F.conv2d(F.conv2d(padded, kernel.view(1, 1, 1, -1)), kernel.view(1, 1, -1, 1))[:, 0]


def extend_canvas(
    picture: Image.Image, left: int, top: int, right: int, bottom: int
) -> tuple[Image.Image, UInt8[np.ndarray, "h w"]]:
    """Put a picture on a larger canvas and continue its border; also return the mask (255: new)."""
    if min(left, top, right, bottom) < 0 or not max(left, top, right, bottom):
        raise UserError(
            f"a picture cannot grow by {left}, {top}, {right}, {bottom} pixels (left, top, right, "
            "bottom): none may be negative, and one must be above 0."
        )
    pixels = np.asarray(picture)
    grown = ((top, bottom), (left, right))
    mask = np.pad(np.zeros(pixels.shape[:2], np.uint8), grown, constant_values=255)
    edges = np.pad(pixels, (*grown, *[(0, 0)] * (pixels.ndim - 2)), mode="edge")
    return Image.fromarray(edges), mask
