"""Is the training healthy? A loss without the luck of the draw, and what it means in words.

The training loss jumps with the noise levels drawn. This one is measured on held-out pairs at
fixed noise and fixed levels, in buckets from nearly clean to nearly noise.
"""

from collections.abc import Callable

import torch
from jaxtyping import Int
from torch import Tensor, nn

from foundation.errors import UserError
from foundation.shapes import Context, Latents, PerSample, Timesteps
from ldm.denoiser import Denoiser
from ldm.loss import ObjectiveConfig, denoising_loss

BUCKETS = 4
STD_RANGE = (0.8, 1.25)  # of latents that are meant to have unit variance
STUCK = 0.9  # of the loss of a network that outputs zero


def check_latents(latents: Latents) -> None:
    """Refuses latents that are not normalized: training on them fails late and in silence."""
    std = latents.float().std().item()
    if not STD_RANGE[0] <= std <= STD_RANGE[1]:
        raise UserError(
            f"the latents of the first batch have a standard deviation of {std:.3g}; it must lie "
            f"in [{STD_RANGE[0]}, {STD_RANGE[1]}]. The autoencoder's statistics do not fit these "
            "images: train it on them (train_vae.py), or set scaling_factor in its config.json to "
            "1 / standard deviation."
        )


class Validation:
    """Held-out latents with their noise and timesteps, drawn once."""

    def __init__(
        self,
        latents: Latents,
        context: Context,
        schedule_steps: int,
        generator: torch.Generator,
        batch_size: int,
        places: Int[Tensor, " n"] | None = None,
        gather: Callable[[PerSample, int], PerSample] | None = None,
    ):
        """
        Args:
            places, gather: where processes share the work: the pairs that this one looks at, and
                what puts the losses of all of them in order again.
        """
        count, device = len(latents), latents.device
        self.bucket = (torch.arange(count) % BUCKETS).to(device)
        within = torch.rand(count, generator=generator).to(device)
        t = ((self.bucket + within) / BUCKETS * (schedule_steps - 1)).round().long()
        noise = torch.randn(latents.shape, generator=generator)
        places = torch.arange(count) if places is None else places
        self.t, self.noise = t[places.to(device)], noise[places].to(device)
        self.latents, self.context = latents[places.to(device)], context[places.to(device)]
        self.exchanged = context.roll(1, dims=0)[places.to(device)]
        self.alike = torch.equal(context.roll(1, dims=0), context)  # as with a single pair
        self.batch_size, self.gather = batch_size, gather

    @torch.no_grad()
    def loss(self, denoiser: Denoiser, objective: ObjectiveConfig) -> dict[str, float]:
        """Means: `val`; `val/t0-249` ... by bucket; `val/wrong_text` with captions exchanged."""
        losses = self.losses(denoiser, objective, self.context)
        means = {"val": losses.mean().item()}
        if not self.alike:
            wrong = self.losses(denoiser, objective, self.exchanged)
            means["val/wrong_text"] = wrong.mean().item()
        edges = [round(k * len(denoiser.schedule) / BUCKETS) for k in range(BUCKETS + 1)]
        for k in range(BUCKETS):
            if (self.bucket == k).any():
                mean = losses[self.bucket == k].mean().item()
                means[f"val/t{edges[k]}-{edges[k + 1] - 1}"] = mean
        return means

    @torch.no_grad()
    def baseline(self, denoiser: Denoiser, objective: ObjectiveConfig) -> float:
        """What a network that outputs zero would score."""
        nothing = Denoiser(Nothing(), denoiser.schedule, denoiser.prediction)
        return self.losses(nothing, objective, self.context).mean().item()

    def losses(self, denoiser: Denoiser, objective: ObjectiveConfig, context: Context) -> PerSample:
        parts = torch.arange(len(self.latents), device=self.latents.device).split(self.batch_size)
        losses = torch.cat(
            [
                denoising_loss(
                    denoiser,
                    self.latents[part],
                    context[part],
                    objective,
                    t=self.t[part],
                    noise=self.noise[part],
                )
                for part in parts
            ]
        )
        return losses if self.gather is None else self.gather(losses, len(self.bucket))


class Nothing(nn.Module):
    """The network that has learned nothing."""

    def forward(self, z_t: Latents, t: Timesteps, context: Context) -> Tensor:
        return torch.zeros_like(z_t)


def verdict(losses: dict[str, float], baseline: float) -> str:
    """One line: does it learn, and does it listen to the text?"""
    share = losses["val"] / baseline
    if not share < STUCK:  # also when it is not a number
        return (
            f"NOT LEARNING: validation loss {losses['val']:.3g} is {share:.0%} of what predicting "
            "nothing scores. Normal in the first hundred steps; later the usual causes are, in "
            "this order: a learning rate too high, or too low; latents of another autoencoder; "
            "images or captions that are noise."
        )
    if "val/wrong_text" not in losses:
        text = "too few held-out captions to tell whether it listens to the text"
    elif (gain := 1 - losses["val"] / losses["val/wrong_text"]) < 0.005:
        text = "ignores the text so far"
    else:
        text = f"right captions lower it by {gain:.1%}"
    return f"learning: validation loss at {share:.0%} of predicting nothing; {text}"
