"""The training loss of a denoiser: which noise levels, which noise, which weights."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F

from foundation.errors import UserError
from foundation.shapes import Context, Latents, PerSample, Scale, Timesteps
from ldm.denoiser import Denoiser, Prediction
from ldm.schedule import Schedule


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    prediction: Prediction = "velocity"  # what the network learns to output
    weighting: Literal["uniform", "min_snr", "soft_min_snr"] = "uniform"  # of the noise levels
    gamma: float = 5.0  # signal-to-noise ratio at which min_snr stops to favor clean latents
    times: Literal["uniform", "logit_normal"] = "uniform"  # how often each noise level is trained
    logit_mean: float = 0.0  # logit_normal: above 0, more often at high noise
    logit_std: float = 1.0  # logit_normal: the smaller, the more often around the mean
    offset_noise: float = 0.0  # std of noise common to all pixels of a channel; 0.1 is much

    def __post_init__(self):
        for name in ("gamma", "logit_std"):
            if getattr(self, name) <= 0:
                raise UserError(f"{name}={getattr(self, name)} must be positive.")
        if self.offset_noise < 0:
            raise UserError(f"offset_noise={self.offset_noise} must not be negative; 0 is none.")


def sample_times(
    schedule: Schedule, objective: ObjectiveConfig, generators: Sequence[torch.Generator]
) -> Timesteps:
    """A random time from each generator.

    logit_normal: the sigmoid of a normal number; Esser et al. 2024 (arXiv:2403.03206), eq. 19.
    """
    if objective.times == "uniform":
        quantile = torch.stack([torch.rand((), generator=each) for each in generators])
    else:
        normal = torch.stack([torch.randn((), generator=each) for each in generators])
        quantile = (objective.logit_mean + objective.logit_std * normal).sigmoid()
    return schedule.at(quantile.clamp(max=1 - 2**-24))  # the sigmoid of a large number rounds to 1


def draw_noise(
    latents: Latents,
    schedule: Schedule,
    objective: ObjectiveConfig,
    generators: Sequence[torch.Generator],
) -> tuple[Timesteps, Latents]:
    """A time and the noise for each sample; all that is random about the loss.

    generators: one for each sample, on the CPU, so that what is drawn for it does not depend on
        the batch that it is in.

    offset_noise lets the network change the mean of a whole image, which zero terminal SNR does
    better (Guttenberg 2023, "Diffusion with offset noise").
    """
    t = sample_times(schedule, objective, generators)
    noise = torch.stack([torch.randn(latents.shape[1:], generator=each) for each in generators])
    if objective.offset_noise:
        shape = (latents.shape[1], 1, 1)
        offset = torch.stack([torch.randn(shape, generator=each) for each in generators])
        noise += objective.offset_noise * offset
    return t.to(latents.device), noise.to(latents.device)


def denoising_loss(
    denoiser: Denoiser,
    latents: Latents,
    context: Context | None,
    objective: ObjectiveConfig,
    *,
    t: Timesteps,
    noise: Latents,
) -> PerSample:
    """Weighted squared error of the network's prediction at the given noise.

    Args:
        latents: clean z_0, of unit variance per channel.
        context: text embedding; the null embedding where the caption was dropped.
        t, noise: from `draw_noise` in training; fixed ones make a loss that can be compared.

    Returns:
        Mean over (c, h, w) for each sample, so that the caller can average or bin by sample.

    Source: Ho et al. 2020 (arXiv:2006.11239), eq. 14.
    """
    alpha, sigma = denoiser.schedule(t)
    output = denoiser.predict(alpha * latents + sigma * noise, t, context)
    target = denoiser.target(latents, noise, t)
    error = F.mse_loss(output, target, reduction="none").mean(dim=(1, 2, 3))
    return weight(alpha, sigma, denoiser.prediction, objective).flatten() * error


def weight(alpha: Scale, sigma: Scale, prediction: Prediction, objective: ObjectiveConfig) -> Scale:
    """Weight of the squared error of the prediction.

    min_snr: min(snr, gamma) for the error of z_0, with snr = alpha^2 / sigma^2 (Hang et al. 2023,
    arXiv:2303.09556). The errors of noise, velocity and flow are that of z_0 times snr, 1 / sigma^2
    and 1 / sigma^2, so these are divided by it. soft_min_snr: half the harmonic mean in place of
    the minimum, without its corner (Crowson et al. 2024, arXiv:2401.11605).

    Either goes to 0 at high noise, for velocity and flow too: a network learns little there.
    """
    if objective.weighting == "uniform":
        return torch.ones_like(alpha)
    signal, ceiling = alpha.square(), objective.gamma * sigma.square()
    if objective.weighting == "min_snr":
        at_z_0 = (signal / sigma.square()).clamp(max=objective.gamma)
    else:
        at_z_0 = objective.gamma * signal / (signal + ceiling)
    if prediction == "sample":
        return at_z_0
    return at_z_0 * sigma.square() / (signal if prediction == "noise" else 1)
