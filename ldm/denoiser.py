"""Network + schedule + what the network predicts -> an estimate of the clean latents.

The only place that knows what the network was trained to predict.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import nn

from foundation.errors import UserError
from foundation.shapes import Context, Estimates, Latents, Number, Scale, Timesteps
from ldm.schedule import RectifiedFlow, Schedule

# noise: what was added (Ho et al. 2020, arXiv:2006.11239)
# velocity: alpha noise - sigma z_0 (Salimans & Ho 2022, arXiv:2202.00512)
# sample: z_0
# flow: noise - z_0, the speed along a straight path (Liu et al. 2022, arXiv:2209.03003)
Prediction = Literal["noise", "velocity", "sample", "flow"]


class Denoiser(nn.Module):
    """Estimates E[z_0 | z_t, context], whatever the network was trained to predict.

    On a flow the network sees whole times: so do diffusers' schedulers sample, and a thousandth of
    the way makes no other difference. Near the clean end of a table it does.
    """

    def __init__(
        self,
        network: Callable[..., Latents],
        schedule: Schedule,
        prediction: Prediction,
        prepare: Callable[[Context], Any] | None = None,
    ):
        """
        Args:
            network: of (z_t, t, context), a U-Net or a function around one that is told more.
            prepare: turns a context, for many calls, into what the network takes in its place:
                `UNet.prepare`. A function around a U-Net only has to pass it on.
        """
        super().__init__()
        check_prediction(schedule, prediction)
        self.network = network
        self.schedule = schedule
        self.prediction = prediction
        self.prepare = prepare

    def forward(self, z_t: Latents, t: Timesteps, context: Context | None = None) -> Latents:
        t = t.to(z_t.device)
        output = self.predict(z_t, t, context)
        return convert(output, self.prediction, "sample", z_t, *self.schedule(t))

    def bind(self, contexts: Sequence[Context]) -> Callable[[Latents, Timesteps], Estimates]:
        """For a sampler: its latents under each of the contexts, in one call of the network.

        The estimates come one context after the other. The times of a call are all alike and lie on
        the CPU, so that nothing waits for a GPU.
        """
        context, count = torch.cat(list(contexts)), len(contexts)
        prepared = None if self.prepare is None else self.prepare(context)

        def estimates(z_t: Latents, t: Timesteps) -> Estimates:
            many = torch.cat([z_t] * count)
            alike = t[:1].expand(len(many))
            if prepared is None:
                output = self.predict(many, alike.to(z_t.device), context)
            else:  # which shares the work on the latents up to where the text comes in
                output = self.predict(z_t, t, prepared)
            return self.from_output(output, many, alike)

        return estimates

    def from_output(self, output: Latents, z_t: Latents, t: Timesteps) -> Latents:
        """z_0, of what the network gives; at times that are all alike, on the CPU."""
        return convert(output, self.prediction, "sample", z_t, *self.scales(t))

    def as_output(self, z_0: Latents, z_t: Latents, t: Timesteps) -> Latents:
        """What the network gives where it estimates z_0; at times that are all alike."""
        return convert(z_0, "sample", self.prediction, z_t, *self.scales(t))

    def scales(self, t: Timesteps) -> tuple[Number, Number]:
        """alpha and sigma as numbers on the CPU, which any device takes without waiting."""
        return tuple(x.reshape(()) for x in self.schedule.exact(t[:1].cpu()))

    def predict(self, z_t: Latents, t: Timesteps, context: Any = None) -> Estimates:
        """The network's own output; fp32, so that the maths after it stays so under autocast."""
        t = t.floor() if isinstance(self.schedule, RectifiedFlow) else t
        return self.network(z_t, t, context).float()

    def target(self, z_0: Latents, noise: Latents, t: Timesteps) -> Latents:
        """What the network should output for z_t = alpha_t z_0 + sigma_t noise."""
        return combine(z_0, noise, self.prediction, *self.schedule(t))


def convert(
    output: Latents,
    given: Prediction,
    wanted: Prediction,
    z_t: Latents,
    alpha: Scale | Number,
    sigma: Scale | Number,
) -> Latents:
    """Turns one prediction into another, at the same z_t.

    Each fixes z_0 and noise, since alpha z_0 + sigma noise = z_t. Infinite only where it must be:
    from noise at alpha = 0, and from sample to others at sigma = 0.
    """
    if given == wanted:
        return output
    if given == "noise":
        z_0, noise = (z_t - sigma * output) / alpha, output
    elif given == "sample":
        z_0, noise = output, (z_t - alpha * output) / sigma
    elif given == "velocity":
        norm = alpha.square() + sigma.square()  # 1 if variance preserving
        z_0, noise = (alpha * z_t - sigma * output) / norm, (sigma * z_t + alpha * output) / norm
    else:
        norm = alpha + sigma  # 1 on the straight path
        z_0, noise = (z_t - sigma * output) / norm, (z_t + alpha * output) / norm
    return combine(z_0, noise, wanted, alpha, sigma)


def combine(
    z_0: Latents,
    noise: Latents,
    wanted: Prediction,
    alpha: Scale | Number,
    sigma: Scale | Number,
) -> Latents:
    """The quantity of that name, from its two parts."""
    if wanted == "noise":
        return noise
    if wanted == "sample":
        return z_0
    return alpha * noise - sigma * z_0 if wanted == "velocity" else noise - z_0


def check_prediction(schedule: Schedule, prediction: Prediction) -> None:
    """Refuses pairs that cannot be sampled from, or that no scheduler file can express."""
    flow = isinstance(schedule, RectifiedFlow)
    if flow and prediction == "velocity":
        raise UserError(
            "prediction velocity belongs to variance-preserving schedules; on the flow's straight "
            "path use prediction flow, which is its speed, or noise_schedule scaled_linear."
        )
    if not flow and prediction == "flow":
        raise UserError(
            "prediction flow is the speed along a straight path, so it needs noise_schedule flow; "
            "its counterpart on a variance-preserving schedule is prediction velocity."
        )
    if not flow and prediction == "noise" and not schedule.alpha.all():
        raise UserError(
            "prediction noise cannot be used with zero terminal SNR: at t = 999 the latents are "
            "noise alone, so that predicting it says nothing about the image (z_0 would be divided "
            "by alpha = 0). Use prediction velocity or sample, or a schedule without it."
        )
