"""Whether a training is healthy: a loss on held-out latents that does not jump, and its meaning.

The training loss jumps with the noise levels that are drawn. This one is measured on held-out pairs
with the same noise and noise levels every time, also in four buckets from clean to noise.
"""

from collections.abc import Callable, Mapping
from typing import Literal

import torch
from jaxtyping import Float, Int, Real
from torch import Tensor, nn

from foundation.errors import UserError
from foundation.shapes import Context, Latents, PerSample, Timesteps
from ldm.denoiser import Conditioning, Denoiser
from ldm.loss import ObjectiveConfig, denoising_loss

BUCKETS = 4
STD_RANGE = (0.8, 1.25)  # of latents that are meant to have unit variance
NOT_LEARNING = 0.9  # share of the loss of a network that outputs zero
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


class Validation:
    """Held-out latents with their noise and timesteps, which are drawn once."""

    def __init__(
        self,
        latents: Latents,
        conditioning: Conditioning,
        schedule_steps: int,
        generator: torch.Generator,
        batch_size: int,
        indices: Int[Tensor, " n"] | None = None,
        gather: Callable[[PerSample, int], Float[Tensor, " all"]] | None = None,
    ):
        """Draw a timestep and noise for each of the latents.

        Args:
            schedule_steps: number of timesteps of the schedule.
            batch_size: pairs that the network sees at once.
            indices: the pairs that this process evaluates, where several share the work.
            gather: collects the losses of all processes in order; called with the losses of this
                one and with the number of all pairs.
        """
        count, device = len(latents), latents.device
        indices = torch.arange(count) if indices is None else indices
        self.bucket = (torch.arange(count) % BUCKETS).to(device)
        within = torch.rand(count, generator=generator).to(device)
        t = ((self.bucket + within) / BUCKETS * (schedule_steps - 1)).round().long()
        noise = torch.randn(latents.shape, generator=generator)
        wrong = conditioning.map(lambda rows: rows.roll(1, dims=0))
        self.differs = are_different(wrong, conditioning)
        self.t, self.noise = t[indices.to(device)], noise[indices].to(device)
        self.latents = latents[indices.to(device)]
        self.conditioning = conditioning.map(lambda rows: rows[indices.to(device)])
        self.wrong_conditioning = wrong.map(lambda rows: rows[indices.to(device)])
        self.batch_size, self.gather = batch_size, gather

    @torch.no_grad()
    def loss(self, denoiser: Denoiser, objective: ObjectiveConfig) -> dict[str, float]:
        """Return mean losses: in all, by bucket, and with the caption or class of another pair.

        The names are `val`, `val/t0-249` and so on by timesteps, and `val/wrong_text` or
        `val/wrong_class`.
        """
        losses = self.losses(denoiser, objective, self.conditioning)
        means = {"val": losses.mean().item()}
        if self.differs:
            wrong = self.losses(denoiser, objective, self.wrong_conditioning)
            kind = "text" if self.conditioning.labels is None else "class"
            means[f"val/wrong_{kind}"] = wrong.mean().item()
        edges = [round(k * len(denoiser.schedule) / BUCKETS) for k in range(BUCKETS + 1)]
        for k in range(BUCKETS):
            in_bucket = self.bucket == k
            if in_bucket.any():
                means[f"val/t{edges[k]}-{edges[k + 1] - 1}"] = losses[in_bucket].mean().item()
        return means

    @torch.no_grad()
    def baseline(self, denoiser: Denoiser, objective: ObjectiveConfig) -> float:
        """Return the mean loss of a network that outputs zero."""
        untrained = Denoiser(ZeroNetwork(), denoiser.schedule, denoiser.prediction)
        return self.losses(untrained, objective, self.conditioning).mean().item()

    def losses(
        self, denoiser: Denoiser, objective: ObjectiveConfig, conditioning: Conditioning
    ) -> Float[Tensor, " all"]:
        """Return the losses of the pairs of all processes, in order.

        conditioning: of the pairs that this process evaluates.
        """
        losses: list[PerSample] = []
        order = torch.arange(len(self.latents), device=self.latents.device)
        for batch in torch.split(order, self.batch_size):
            losses.append(
                denoising_loss(
                    denoiser,
                    self.latents[batch],
                    conditioning.map(lambda rows, batch=batch: rows[batch]),
                    objective,
                    t=self.t[batch],
                    noise=self.noise[batch],
                )
            )
        together = torch.cat(losses)
        return together if self.gather is None else self.gather(together, len(self.bucket))


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


def learning_status(
    losses: Mapping[str, float], baseline: float, reads: Literal["text", "class", "none"] = "text"
) -> str:
    """Say in one line whether the network learns and whether it uses what it reads.

    Args:
        losses: as `Validation.loss` returns them.
        baseline: as `Validation.baseline` returns it.
        reads: what the network is conditioned on.
    """
    relative = losses["val"] / baseline
    if not relative < NOT_LEARNING:  # this is also true for NaN
        return (
            f"NOT LEARNING: validation loss {losses['val']:.3g} is {relative:.0%} of that of a "
            "network that outputs zero. This is normal in the first hundred steps. Later the usual "
            "causes are, most frequent first: a learning rate that is too high or too low; latents "
            "of another autoencoder; images or captions that are noise."
        )
    learning = f"learning: validation loss at {relative:.0%} of a network that outputs zero"
    if reads == "none":
        return learning
    many, wrong = ("captions", "text") if reads == "text" else ("classes", "class")
    if f"val/wrong_{wrong}" not in losses:
        return f"{learning}; too few held-out {many} to say whether it uses the {wrong}"
    gain = 1 - losses["val"] / losses[f"val/wrong_{wrong}"]
    if gain < TEXT_GAIN:
        return f"{learning}; it ignores the {wrong} so far"
    return f"{learning}; right {many} lower it by {gain:.1%}"
