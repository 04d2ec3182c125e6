"""The loss on held-out latents by timestep, and what it says of a training.

The training loss jumps with the noise levels that are drawn. This one is measured on held-out pairs
with the same noise every time, at ten timesteps from clean to noise that count the same. An
evaluation measures each pair at all of them; a training shares them out among the pairs.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Literal

import torch
from jaxtyping import Float, Int, Real
from torch import Tensor, nn

from foundation.errors import UserError
from foundation.hashing import generators
from foundation.shapes import Context, Latents, PerSample, Timesteps
from ldm.config import ObjectiveConfig
from ldm.denoiser import NOTHING, Conditioning, Denoiser
from ldm.loss import denoising_loss

TIMESTEPS = 10  # from clean to noise, equally far apart
BUCKETS = 4  # of timesteps, for which a training gives means
STD_RANGE = (0.8, 1.25)  # of latents that are meant to have unit variance
NOT_LEARNING = 0.9  # share of the loss of a network that outputs zero
FEW_HELD_OUT = 8  # images; figures of fewer say little
TEXT_GAIN = 0.005  # share by which the right caption or class lowers the loss if it is used


def check_latent_std(latents: Latents) -> None:
    """Refuse latents that are not normalized: training on them fails late and without an error.

    Raises:
        UserError: their standard deviation is not near 1.
    """
    std = latents.float().std().item()
    if not STD_RANGE[0] <= std <= STD_RANGE[1]:
        raise UserError(
            f"the latents of the first batch have a standard deviation of {std:.3g}; it must lie "
            f"in [{STD_RANGE[0]}, {STD_RANGE[1]}]. The autoencoder was trained on other images: "
            "train one on these, or set scaling_factor in its config.json to "
            "1 / standard deviation."
        )


Losses = Float[Tensor, "pairs timesteps"]


def validation_timesteps(schedule_steps: int) -> list[int]:
    """Return the timesteps at which the loss is measured."""
    last = schedule_steps - 1
    return [round((k + 0.5) / TIMESTEPS * last) for k in range(TIMESTEPS)]


def validation_noise(latents: Latents, seed: int, numbers: Sequence[int]) -> Latents:
    """Return the noise for latents: that of pair k depends on the seed and k alone.

    numbers: of the pairs.
    """
    random = generators(seed, "validation noise", numbers)
    noise = torch.stack([torch.randn(latents.shape[1:], generator=one) for one in random])
    return noise.to(latents.device)


@torch.no_grad()
def validation_losses(
    denoiser: Denoiser,
    objective: ObjectiveConfig,
    latents: Latents,
    conditioning: Conditioning,
    t: Int[Tensor, "pairs timesteps"],
    noise: Latents,
    batch_size: int,
) -> Losses:
    """Return the squared error of what the network predicts, for each pair at its timesteps.

    batch_size: pairs that the network sees at once.
    """
    columns: list[Tensor] = []
    for times in t.unbind(dim=1):
        losses: list[PerSample] = []
        for some in torch.split(torch.arange(len(latents), device=latents.device), batch_size):
            losses.append(
                denoising_loss(
                    denoiser,
                    latents[some],
                    conditioning.map(lambda rows, some=some: rows[some]),
                    objective,
                    t=times[some],
                    noise=noise[some],
                )
            )
        columns.append(torch.cat(losses))
    return torch.stack(columns, dim=1)


def without_network(denoiser: Denoiser) -> Denoiser:
    """Return a denoiser whose network outputs zero, as one that has learned nothing."""
    return Denoiser(ZeroNetwork(), denoiser.schedule, denoiser.prediction)


class Validation:
    """Held-out latents with their noise and timesteps, which are the same at every call."""

    def __init__(
        self,
        latents: Latents,
        conditioning: Conditioning,
        schedule_steps: int,
        seed: int,
        batch_size: int,
        indices: Int[Tensor, " n"] | None = None,
        gather: Callable[[Losses, int], Losses] | None = None,
    ):
        """Choose timesteps and noise for each of the latents.

        Pairs take turns at the timesteps; each has one, or several if there are few pairs.

        Args:
            schedule_steps: number of timesteps of the schedule.
            seed: of the noise.
            batch_size: pairs that the network sees at once.
            indices: the pairs that this process evaluates, where several share the work.
            gather: collects the losses of all processes in order; called with the losses of this
                one and with the number of all pairs.
        """
        count, device = len(latents), latents.device
        own = (torch.arange(count) if indices is None else indices).to(device)
        turns = torch.arange(count * -(-TIMESTEPS // count)).view(-1, count).T % TIMESTEPS
        self.t = torch.tensor(validation_timesteps(schedule_steps))[turns].to(device)  # of all
        noise = validation_noise(latents, seed, range(count))
        other = conditioning.map(lambda rows: rows.roll(1, dims=0))
        wrong = replace(conditioning, text=other.text, labels=other.labels)
        self.differs = are_different(wrong, conditioning)
        self.latents, self.own_t, self.noise = latents[own], self.t[own], noise[own]
        self.conditioning = conditioning.map(lambda rows: rows[own])
        self.wrong_conditioning = wrong.map(lambda rows: rows[own])
        self.batch_size, self.gather = batch_size, gather
        self.images = count  # over all processes

    def loss(self, denoiser: Denoiser, objective: ObjectiveConfig) -> dict[str, float]:
        """Return mean losses: in all, by bucket, and with the caption or class of another pair.

        The names are `val`, `val/t0-249` and so on by timesteps, and `val/wrong_text` or
        `val/wrong_class`.
        """
        losses = self.losses(denoiser, objective, self.conditioning)
        means = {"val": losses.mean().item()}
        if self.differs:
            wrong = self.losses(denoiser, objective, self.wrong_conditioning)
            kind = "class" if self.conditioning.text is None else "text"
            means[f"val/wrong_{kind}"] = wrong.mean().item()
        edges = [round(k * len(denoiser.schedule) / BUCKETS) for k in range(BUCKETS + 1)]
        for low, high in pairwise(edges):
            in_bucket = (low <= self.t) & (self.t < high)
            if in_bucket.any():
                means[f"val/t{low}-{high - 1}"] = losses[in_bucket].mean().item()
        return means

    def baseline(self, denoiser: Denoiser, objective: ObjectiveConfig) -> float:
        """Return the mean loss of a network that outputs zero."""
        return self.losses(without_network(denoiser), objective, NOTHING).mean().item()

    def losses(
        self, denoiser: Denoiser, objective: ObjectiveConfig, conditioning: Conditioning
    ) -> Losses:
        """Return the losses of the pairs of all processes, in order.

        conditioning: of the pairs that this process evaluates.
        """
        own = validation_losses(
            *(denoiser, objective, self.latents, conditioning),
            *(self.own_t, self.noise, self.batch_size),
        )
        return own if self.gather is None else self.gather(own, len(self.t))


def are_different(one: Conditioning, other: Conditioning) -> bool:
    """Return whether two conditionings of one kind have different values."""
    pairs = ((one.text, other.text), (one.labels, other.labels))
    return any(not torch.equal(a, b) for a, b in pairs if a is not None and b is not None)


class ZeroNetwork(nn.Module):
    """A network that outputs zero, as one that has learned nothing."""

    def forward(
        self,
        z_t: Latents,
        t: Timesteps,
        context: Context | None = None,
        class_labels: Real[Tensor, " b"] | None = None,
    ) -> Latents:
        return torch.zeros_like(z_t)


def only_held_out(images: int) -> str:
    """Return how few images are held out, as the beginning of a sentence on what follows."""
    return f"only {'1 image is' if images == 1 else f'{images} images are'} held out"


def learning_status(
    losses: Mapping[str, float],
    baseline: float,
    reads: Literal["text", "class", "none"] = "text",
    held_out: int = FEW_HELD_OUT,
) -> str:
    """Say in one line whether the network learns and whether it uses what it reads.

    Args:
        losses: as `Validation.loss` returns them.
        baseline: as `Validation.baseline` returns it.
        reads: what the network is conditioned on.
        held_out: images that the losses were measured on.
    """
    relative = losses["val"] / baseline
    if not relative < NOT_LEARNING:  # this is also true for NaN
        return (
            f"NOT LEARNING: validation loss {losses['val']:.3g} is {relative:.0%} of the untrained "
            "baseline. This is normal in the first hundred steps. Later the usual "
            "causes are, most frequent first: a learning rate that is too high or too low; latents "
            "of another autoencoder; images or captions that are noise."
        )
    learning = f"learning: validation loss {1 - relative:.0%} below the untrained baseline"
    if reads == "none":
        return learning
    many, wrong = ("captions", "text") if reads == "text" else ("classes", "class")
    if held_out < FEW_HELD_OUT:
        return (
            f"{learning}; {only_held_out(held_out)}, too few to see whether it uses the {wrong}: "
            "the fraction is set by held_out"
        )
    if f"val/wrong_{wrong}" not in losses:
        return f"{learning}; hold out more {many} to see whether it uses the {wrong}"
    gain = 1 - losses["val"] / losses[f"val/wrong_{wrong}"]
    if gain < TEXT_GAIN:
        return f"{learning}; it ignores the {wrong} so far"
    return f"{learning}; right {many} lower it by {gain:.1%}"
