"""Network + schedule + what the network predicts -> an estimate of the clean latents.

The only place that knows what the network was trained to predict.
"""

from collections.abc import Callable
from typing import Literal

from torch import nn

from ldm.schedule import RectifiedFlow, Schedule
from ldm.shapes import Context, Latents, Scale, Timesteps

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

    def __init__(self, network: Callable[..., Latents], schedule: Schedule, prediction: Prediction):
        """network: of (z_t, t, context), a U-Net or a function around one that is told more."""
        super().__init__()
        check_prediction(schedule, prediction)
        self.network = network
        self.schedule = schedule
        self.prediction = prediction

    def forward(self, z_t: Latents, t: Timesteps, context: Context | None = None) -> Latents:
        """t may lie on the CPU, where it can be looked at without waiting for a GPU."""
        t = t.to(z_t.device, non_blocking=True)
        return self.from_output(self.predict(z_t, t, context), z_t, t)

    def from_output(self, output: Latents, z_t: Latents, t: Timesteps) -> Latents:
        """z_0, of what the network gives."""
        return convert(output, self.prediction, "sample", z_t, *self.schedule(t.to(z_t.device)))

    def as_output(self, z_0: Latents, z_t: Latents, t: Timesteps) -> Latents:
        """What the network gives where it estimates z_0."""
        return convert(z_0, "sample", self.prediction, z_t, *self.schedule(t.to(z_t.device)))

    def predict(self, z_t: Latents, t: Timesteps, context: Context | None = None) -> Latents:
        """The network's own output; fp32, so that the maths after it stays so under autocast."""
        t = t.floor() if isinstance(self.schedule, RectifiedFlow) else t
        return self.network(z_t, t, context).float()

    def target(self, z_0: Latents, noise: Latents, t: Timesteps) -> Latents:
        """What the network should output for z_t = alpha_t z_0 + sigma_t noise."""
        return combine(z_0, noise, self.prediction, *self.schedule(t))


def convert(
    output: Latents, given: Prediction, wanted: Prediction, z_t: Latents, alpha: Scale, sigma: Scale
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
    z_0: Latents, noise: Latents, wanted: Prediction, alpha: Scale, sigma: Scale
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
        raise ValueError(
            "prediction velocity belongs to variance-preserving schedules; on the flow's straight "
            "path use prediction flow, which is its speed, or noise_schedule scaled_linear."
        )
    if not flow and prediction == "flow":
        raise ValueError(
            "prediction flow is the speed along a straight path, so it needs noise_schedule flow; "
            "its counterpart on a variance-preserving schedule is prediction velocity."
        )
    if not flow and prediction == "noise" and not schedule.alpha.all():
        raise ValueError(
            "prediction noise cannot be used with zero terminal SNR: at t = 999 the latents are "
            "noise alone, so that predicting it says nothing about the image (z_0 would be divided "
            "by alpha = 0). Use prediction velocity or sample, or a schedule without it."
        )
