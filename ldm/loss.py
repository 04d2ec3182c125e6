"""The training loss of a denoiser: which noise levels, which noise, which weights."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from foundation.shapes import Latents, PerSample, Scale, Timesteps
from ldm.config import ObjectiveConfig, Prediction
from ldm.denoiser import Conditioning, Denoiser
from ldm.schedule import Schedule


def sample_timesteps(
    schedule: Schedule, objective: ObjectiveConfig, generators: Sequence[torch.Generator]
) -> Timesteps:
    """Draw one timestep from each generator.

    logit_normal: the sigmoid of a normal number; Esser et al. 2024 (arXiv:2403.03206), eq. 19.
    continuous: Song et al. 2021 (arXiv:2011.13456), eq. 7.
    """
    if objective.times in ("uniform", "continuous"):
        quantile = torch.stack([torch.rand((), generator=each) for each in generators])
    else:
        normal = torch.stack([torch.randn((), generator=each) for each in generators])
        quantile = (objective.logit_mean + objective.logit_std * normal).sigmoid()
    largest = 1 - 2**-24  # below 1 in float32, to which the sigmoid of a large number rounds
    quantile = quantile.clamp(max=largest)
    if objective.times == "continuous":
        return schedule.real_timesteps_of_quantile(quantile)
    return schedule.timesteps_of_quantile(quantile)


def sample_timesteps_and_noise(
    latents: Latents,
    schedule: Schedule,
    objective: ObjectiveConfig,
    generators: Sequence[torch.Generator],
) -> tuple[Timesteps, Latents]:
    """Draw all that is random about the loss: a timestep and the noise for each sample.

    generators: one for each sample, on the CPU; so what is drawn for a sample does not depend on
        the batch that it is in.

    With offset_noise the network learns to change the mean of a whole image; zero terminal SNR
    does that better (Guttenberg 2023, "Diffusion with offset noise").
    """
    t = sample_timesteps(schedule, objective, generators)
    noise = torch.stack([torch.randn(latents.shape[1:], generator=each) for each in generators])
    if objective.offset_noise:
        shape = (latents.shape[1], 1, 1)
        offset = torch.stack([torch.randn(shape, generator=each) for each in generators])
        noise += objective.offset_noise * offset
    return t.to(latents.device), noise.to(latents.device)


def denoising_loss(
    denoiser: Denoiser,
    latents: Latents,
    conditioning: Conditioning,
    objective: ObjectiveConfig,
    *,
    t: Timesteps,
    noise: Latents,
) -> PerSample:
    """Compute the weighted squared error of the network's prediction at the given noise.

    Args:
        latents: clean z_0, of unit variance per channel.
        conditioning: text embeddings, those of the empty caption where a caption was dropped; or
            class labels; or nothing.
        t, noise: from `sample_timesteps_and_noise` in training; fixed ones give losses that can be
            compared.

    Returns:
        The mean over (c, h, w) for each sample, so that the caller can average or bin by sample.

    Source: Ho et al. 2020 (arXiv:2006.11239), eq. 14.
    """
    alpha, sigma = denoiser.schedule(t)
    output = denoiser.predict(alpha * latents + sigma * noise, t, conditioning)
    target = denoiser.target(latents, noise, t)
    error = F.mse_loss(output, target, reduction="none").mean(dim=(1, 2, 3))
    return loss_weight(alpha, sigma, denoiser.prediction, objective).flatten() * error


def loss_weight(
    alpha: Scale, sigma: Scale, prediction: Prediction, objective: ObjectiveConfig
) -> Scale:
    """Return the weight of the squared error of a prediction at a noise level.

    min_snr weights the error of z_0 by min(snr, gamma), with snr = alpha^2 / sigma^2 (Hang et al.
    2023, arXiv:2303.09556). soft_min_snr takes half the harmonic mean of snr and gamma in place of
    the minimum, which has no corner (Crowson et al. 2024, arXiv:2401.11605).

    The error of the noise is that of z_0 times snr, the errors of velocity and flow are that of z_0
    divided by sigma^2; the weight is divided by the same factor. It goes to 0 at high noise, for
    velocity and flow too: a network learns little there.
    """
    if objective.weighting == "uniform":
        return torch.ones_like(alpha)
    signal, noise = alpha.square(), sigma.square()
    if objective.weighting == "min_snr":
        weight_of_z_0 = (signal / noise).clamp(max=objective.gamma)
    else:
        weight_of_z_0 = objective.gamma * signal / (signal + objective.gamma * noise)
    if prediction == "sample":
        return weight_of_z_0
    if prediction == "noise":
        return weight_of_z_0 * noise / signal
    return weight_of_z_0 * noise
