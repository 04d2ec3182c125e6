"""Is the training healthy? A loss without the luck of the draw, and what it means in words.

The training loss jumps with the noise levels drawn. This one is measured on held-out pairs at
fixed noise and fixed levels, in buckets from nearly clean to nearly noise.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ldm.denoiser import Denoiser
from ldm.objective import ObjectiveConfig, denoising_loss
from ldm.shapes import Context, Latents, PerSample

BUCKETS = 4


class Validation:
    """Held-out latents with their noise and timesteps, drawn once."""

    def __init__(
        self,
        latents: Latents,
        context: Context,
        steps: int,
        generator: torch.Generator,
        batch_size: int,
    ):
        """steps: len(schedule); sample k gets the middle of every bucket's k-th part."""
        count = len(latents)
        self.bucket = (torch.arange(count) % BUCKETS).to(latents.device)
        within = torch.rand(count, generator=generator).to(latents.device)
        self.timesteps = ((self.bucket + within) / BUCKETS * (steps - 1)).round().long()
        self.noise = torch.randn(latents.shape, generator=generator).to(latents.device)
        self.latents, self.context, self.batch_size = latents, context, batch_size

    @torch.no_grad()
    def loss(self, denoiser: Denoiser, objective: ObjectiveConfig) -> dict[str, float]:
        """`val` and `val/t0-249` ... : the mean over all, and over each bucket of timesteps."""
        losses = torch.cat(
            [
                denoising_loss(
                    denoiser,
                    self.latents[part],
                    self.context[part],
                    objective,
                    t=self.timesteps[part],
                    noise=self.noise[part],
                )
                for part in torch.arange(len(self.latents)).split(self.batch_size)
            ]
        )
        return {"val": losses.mean().item(), **self.by_bucket(losses, len(denoiser.schedule))}

    def by_bucket(self, losses: PerSample, steps: int) -> dict[str, float]:
        edges = [round(k * steps / BUCKETS) for k in range(BUCKETS + 1)]
        return {
            f"val/t{edges[k]}-{edges[k + 1] - 1}": losses[self.bucket == k].mean().item()
            for k in range(BUCKETS)
            if (self.bucket == k).any()
        }
