"""Inpainting and outpainting: a part of a picture is drawn anew, the rest stays as it is.

A mask is 1 where to draw, 0 where to keep, and in between where to mix. Plain models are held to
the known part at every step; those made for it (9 channels) are told the mask and the known part.
Afterwards what was kept is put back pixel by pixel, and what was drawn takes on its tone at the
seam.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from foundation.errors import UserError
from foundation.shapes import Denoise, Estimates, Latents, Network, Timesteps
from ldm.samplers.levels import DrawNoise, Path
from ldm.samplers.noise import SeededNoise
from ldm.schedule import Schedule
from ldm.tasks.img2img import ImageToImage
from ldm.timesteps import Times

Mask = Float[Tensor, "1 1 height width"]


class Inpainting(ImageToImage):
    """By a plain model."""

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
            latents: of the picture.
            mask: of its pixels.
            resample: how often a step is taken, with fresh noise between, so that both parts grow
                together: RePaint, Lugmayr et al. 2022 (arXiv:2201.09865), algorithm 1.
        """
        super().__init__(latents, (picture.height, picture.width), strength)
        if resample < 1:
            raise UserError(f"resample is {resample}; a step is taken once or more.")
        self.picture, self.mask, self.resample = picture, mask, resample
        self.factor = picture.height // latents.shape[-2]
        self.cells = F.max_pool2d(mask, self.factor).ceil()  # what a drawn pixel lies in is drawn

    def bind(self, denoise: Denoise) -> Denoise:
        return pinned(denoise, self.latents, self.cells)

    def sampler(self, name: str, noise: SeededNoise) -> Callable[..., Latents]:
        if self.resample == 1:
            return super().sampler(name, noise)
        if name != "ddpm":
            raise UserError(
                f"resampling goes with the sampler ddpm, whose steps can be taken back, not with "
                f"{name}. Choose ddpm, or resample 1."
            )
        return partial(repaint, rounds=self.resample, stream=lambda k: noise.stream(k).between)

    def rounds(self) -> int:
        return self.resample

    def finish(self, picture: Image.Image) -> Image.Image:
        return composite(self.picture, picture, self.mask, radius=2 * self.factor)


class NativeInpainting(Inpainting):
    """By a model that is told the mask and the picture without what lies under it."""

    beside = 5

    def __init__(
        self,
        latents: Float[Tensor, "1 c h w"],
        picture: Image.Image,
        mask: Mask,
        kept: Float[Tensor, "1 c h w"],
        strength: float = 1.0,
    ):
        """kept: latents of the picture that is gray, 0, under the mask."""
        super().__init__(latents, picture, mask, strength)
        seen = F.interpolate((mask >= 0.5).to(latents), latents.shape[-2:])
        if not seen.any():
            raise UserError(
                f"this model sees the mask black and white, and one pixel in {self.factor} each "
                "way, so that nothing of this one is left: make it lighter or wider."
            )
        self.channels = torch.cat([seen, kept], dim=1)
        self.beside = self.channels.shape[1]

    def network(self, network: Network, noise: SeededNoise) -> Network:
        def told(z_t: Latents, t: Timesteps, *more: Any) -> Estimates:
            beside = self.channels.to(z_t).expand(len(z_t), -1, -1, -1)
            return network(torch.cat([z_t, beside], dim=1), t, *more)

        return told

    def bind(self, denoise: Denoise) -> Denoise:
        return denoise


def pinned(
    denoise: Denoise, known: Float[Tensor, "1 c h w"], cells: Float[Tensor, "1 1 h w"]
) -> Denoise:
    """The same, but sure of what is known.

    A sampler then carries the known part along from noise by itself: where the estimate stays the
    same, every solver goes straight to it, with the noise that belongs to each time.
    """

    def call(z_t: Latents, t: Timesteps) -> Latents:
        z_0 = denoise(z_t, t)
        return torch.where(cells.to(z_0) > 0, z_0, known.to(z_0))

    return call


@torch.no_grad()
def repaint(
    denoise: Denoise,
    noise: Latents,
    schedule: Schedule,
    times: Times,
    draw_noise: DrawNoise,
    *,
    rounds: int,
    stream: Callable[[int], DrawNoise],
) -> Latents:
    """`ddpm`, whose every step is taken back and taken again; Lugmayr et al. 2022, algorithm 1.

    stream: other noise on the same way, by number: each round goes down and up by its own.
    """
    path = Path(schedule, times, noise, start_at_sigma=False)
    z = path.start
    for i in range(len(path)):
        angles = path.angle[i], path.angle[i + 1]
        kept = path.shrink[i] * path.sigma[i + 1] / path.sigma[i]
        for k in range(rounds):
            z_0 = denoise(z, path.time(i))
            down = kept * z + path.alpha[i + 1] * (1 - path.shrink[i] ** 2) * z_0
            if path.last(i):  # ends in the clean image, from where there is no way back
                break
            fresh = stream(2 * k)(*angles) if k else draw_noise(*angles)
            down = down + path.posterior_std(i) * fresh
            if k < rounds - 1:
                ratio = path.alpha[i] / path.alpha[i + 1]
                std = (path.sigma[i] ** 2 - (ratio * path.sigma[i + 1]) ** 2).sqrt()
                z = ratio * down + std * stream(2 * k + 1)(*angles)
        z = down
    return z


def composite(original: Image.Image, drawn: Image.Image, mask: Mask, radius: float) -> Image.Image:
    """The original where the mask is 0, to the bit; elsewhere what was drawn, in its tone there.

    radius: over which a difference of tone at the seam fades, in pixels.
    """
    before, after = (np.atleast_3d(np.asarray(picture)) for picture in (original, drawn))
    share = mask[0, 0].cpu()
    old, new = (torch.from_numpy(x.astype(np.float32)).permute(2, 0, 1) for x in (before, after))
    new = matched(new, old, share == 0, radius)
    mixed = (old + share * (new - old)).round().clamp(0, 255).to(torch.uint8)
    pixels = np.where((share == 0)[..., None].numpy(), before, mixed.permute(1, 2, 0).numpy())
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)


def matched(
    drawn: Float[Tensor, "c h w"],
    original: Float[Tensor, "c h w"],
    outside: Tensor,
    radius: float,
) -> Float[Tensor, "c h w"]:
    """What was drawn, less how it differs in tone from the original just outside.

    The difference is known outside alone. Blurred, it is what a pixel sees of it: at a straight
    seam half of what it is, deep inside nothing.
    """
    outside = outside.to(drawn)[None]
    difference = blurred(torch.cat([(original - drawn) * outside, outside]), radius)
    return drawn + difference[:-1] / difference[-1:].clamp(min=0.5)


def blurred(images: Float[Tensor, "c h w"], radius: float) -> Float[Tensor, "c h w"]:
    """By a Gaussian of this deviation; at the border, of what there is."""
    reach = min(int(3 * radius), *(side - 1 for side in images.shape[-2:]))
    kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / radius) ** 2)
    kernel = (kernel / kernel.sum()).to(images)
    padded = F.pad(images[:, None], [reach] * 4, mode="reflect")
    return F.conv2d(F.conv2d(padded, kernel.view(1, 1, 1, -1)), kernel.view(1, 1, -1, 1))[:, 0]


def canvas(
    picture: Image.Image, left: int, top: int, right: int, bottom: int
) -> tuple[Image.Image, UInt8[np.ndarray, "h w"]]:
    """The picture on a larger canvas, its border drawn out, and the mask of what is new (255)."""
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
