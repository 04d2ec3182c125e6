"""The noising process  z_t = alpha_t z_0 + sigma_t noise,  from t = 0 (clean) to 999 (noise).

There are two families with the same interface: variance-preserving schedules, which have a table of
1000 whole timesteps, and rectified flow, straight lines between data and noise at real timesteps.
"""

import math

import numpy as np
import torch
from jaxtyping import Float, Float64, Int, Real
from torch import Tensor, nn

from foundation.errors import UserError
from foundation.shapes import PerSample, Scale, Timesteps
from ldm.config import TRAIN_TIMESTEPS, ScheduleConfig


class NoiseSchedule(nn.Module):
    """A variance-preserving schedule: alpha_t^2 + sigma_t^2 = 1."""

    alpha: Float[Tensor, " t"]
    sigma: Float[Tensor, " t"]

    def __init__(self, alpha_bar: Float[Tensor, " t"]):
        """Make the tables of alpha_t and sigma_t.

        alpha_bar: alpha_t^2 for t = 0, 1, ...; it falls, and the last may be 0. Give float64:
            float32 loses digits of sigma_t near the clean end.
        """
        super().__init__()
        if not (alpha_bar[0] < 1 and alpha_bar[-1] >= 0 and (alpha_bar.diff() < 0).all()):
            raise ValueError("alpha_bar must fall strictly inside [0, 1), from clean to noise.")
        self.alpha_bar = alpha_bar.cpu().double()
        # Derived from the config, so never part of a checkpoint.
        self.register_buffer("alpha", alpha_bar.sqrt().float(), persistent=False)
        self.register_buffer("sigma", (1 - alpha_bar).sqrt().float(), persistent=False)

    def __len__(self) -> int:
        return len(self.alpha)

    def forward(self, t: Timesteps) -> tuple[Scale, Scale]:
        """Return alpha_t and sigma_t, interpolated between whole timesteps."""
        if t.is_floating_point():
            alpha, sigma = interpolate(self.alpha, self.sigma, t)
        else:
            alpha, sigma = self.alpha[t], self.sigma[t]
        return alpha.view(-1, 1, 1, 1), sigma.view(-1, 1, 1, 1)

    def exact(self, t: Real[Tensor, " n"]) -> tuple[Float64[Tensor, " n"], Float64[Tensor, " n"]]:
        """Return alpha_t and sigma_t in float64 on the CPU.

        A sampler's coefficients are small differences of these, which float32 would round away.
        """
        alpha, sigma = self.alpha_bar.sqrt(), (1 - self.alpha_bar).sqrt()
        return interpolate(alpha, sigma, t) if t.is_floating_point() else (alpha[t], sigma[t])

    def timesteps_of_ratio(self, noise_to_signal: Float64[Tensor, " n"]) -> Float64[Tensor, " n"]:
        """Return the timesteps at which sigma_t / alpha_t has the given values.

        A value outside the range of the schedule gives the nearest end. This inverts `exact`.
        """
        alpha, sigma = self.alpha_bar.sqrt(), (1 - self.alpha_bar).sqrt()
        after = torch.searchsorted(sigma / alpha, noise_to_signal).clamp(1, len(self) - 1)
        before = after - 1
        # Between two table entries: (sigma + w rise) / (alpha + w fall) = noise_to_signal.
        rise, fall = sigma[after] - sigma[before], alpha[after] - alpha[before]
        w = (noise_to_signal * alpha[before] - sigma[before]) / (rise - noise_to_signal * fall)
        return before + torch.where(noise_to_signal.isinf(), 1.0, w).clamp(0, 1)

    def timesteps_of_quantile(self, quantile: PerSample) -> Int[Tensor, " b"]:
        """Map numbers in [0, 1) to the timesteps 0 ... 999 in equal shares; 0 is clean."""
        return (quantile * len(self)).long()

    def real_timesteps_of_quantile(self, quantile: PerSample) -> PerSample:
        """Map numbers in [0, 1) linearly to real timesteps from 0 to 999; 0 is clean."""
        return quantile * (len(self) - 1)

    def timesteps(self, steps: int) -> Int[Tensor, " steps"]:
        """Return the usual timesteps of a sampler: equal strides from 999 down, none at -1.

        "Trailing" spacing of Lin et al. 2023 (arXiv:2305.08891), table 2. It begins in pure noise,
        without which zero terminal SNR makes no sense.
        """
        check_steps(steps)
        # With diffusers' rounding, so that the timesteps are equal. diffusers adds a timestep -1
        # for some numbers of steps, the smallest of them 61; it is left out here.
        timesteps = np.arange(len(self), 0, -len(self) / steps)[:steps]
        return torch.as_tensor(timesteps.round()).long() - 1


def interpolate(
    alpha: Float[Tensor, " table"], sigma: Float[Tensor, " table"], t: Float[Tensor, " n"]
) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    """Return alpha and sigma at real timesteps, from tables for whole ones.

    (alpha, sigma) are interpolated linearly between two entries, then scaled to length 1.
    """
    before = t.floor().long()
    after = (before + 1).clamp(max=len(alpha) - 1)
    w = (t - before).to(alpha.dtype)
    alpha_t = alpha[before].lerp(alpha[after], w)
    sigma_t = sigma[before].lerp(sigma[after], w)
    length = alpha_t.hypot(sigma_t)
    return alpha_t / length, sigma_t / length


class RectifiedFlow(nn.Module):
    """Straight lines from data to noise: alpha_t = 1 - t / 1000, sigma_t = t / 1000, t real.

    Liu et al. 2022 (arXiv:2209.03003); as a latent model, Esser et al. 2024 (arXiv:2403.03206).
    """

    def __init__(self, shift: float = 1.0):
        """shift: above 1, the usual timesteps of a sampler lie more densely at high noise."""
        super().__init__()
        self.shift = shift

    def __len__(self) -> int:
        return TRAIN_TIMESTEPS

    def forward(self, t: Timesteps) -> tuple[Scale, Scale]:
        """Return alpha_t and sigma_t."""
        sigma = (t.float() / TRAIN_TIMESTEPS).view(-1, 1, 1, 1)
        return 1 - sigma, sigma

    def exact(self, t: Real[Tensor, " n"]) -> tuple[Float64[Tensor, " n"], Float64[Tensor, " n"]]:
        """Return alpha_t and sigma_t in float64 on the CPU."""
        sigma = t.cpu().double() / TRAIN_TIMESTEPS
        return 1 - sigma, sigma

    def timesteps_of_ratio(self, noise_to_signal: Float64[Tensor, " n"]) -> Float64[Tensor, " n"]:
        """Return the timesteps at which sigma_t / alpha_t has the given values."""
        return TRAIN_TIMESTEPS / (1 + 1 / noise_to_signal)

    def timesteps_of_quantile(self, quantile: PerSample) -> PerSample:
        """Map numbers in [0, 1) linearly to timesteps; 0 is clean."""
        return quantile * TRAIN_TIMESTEPS

    def real_timesteps_of_quantile(self, quantile: PerSample) -> PerSample:
        """Return the same: all timesteps of a flow are real."""
        return self.timesteps_of_quantile(quantile)

    def timesteps(self, steps: int) -> Float[Tensor, " steps"]:
        """Return the usual timesteps of a sampler: equal strides from 999 down, then shifted.

        A shift s maps sigma to s sigma / (1 + (s - 1) sigma); Esser et al. 2024, eq. 23. The
        numbers are those of diffusers' DPMSolverMultistepScheduler with use_flow_sigmas.
        """
        check_steps(steps)
        sigma = 1 - np.linspace(1, 1 / TRAIN_TIMESTEPS, steps + 1)[:0:-1]
        shifted = self.shift * sigma / (1 + (self.shift - 1) * sigma)
        t = torch.as_tensor(TRAIN_TIMESTEPS * shifted)
        # The network gets t rounded down, so rounding to float32 must not reach the next integer.
        rounded = t.float()
        return torch.where(rounded.floor() > t.floor(), rounded.nextafter(rounded - 1), rounded)


Schedule = NoiseSchedule | RectifiedFlow


def make_schedule(config: ScheduleConfig) -> Schedule:
    """Make the schedule that a config describes."""
    if config.noise_schedule == "flow":
        return RectifiedFlow(config.shift)
    if config.noise_schedule == "cosine":
        alpha_bar = cosine()
    elif config.noise_schedule == "linear":
        alpha_bar = linear(config.beta_start, config.beta_end)
    else:
        alpha_bar = scaled_linear(config.beta_start, config.beta_end)
    if config.zero_terminal_snr:
        alpha_bar = rescale_zero_terminal_snr(alpha_bar)
    return NoiseSchedule(alpha_bar)


def linear(beta_start: float, beta_end: float) -> Float64[Tensor, " t"]:
    """Return alpha_bar for beta that grows linearly: Ho et al. 2020 (arXiv:2006.11239), sect. 4.

    There beta grows from 1e-4 to 0.02. That is the variance-preserving SDE of Song et al. 2021
    (arXiv:2011.13456), eq. 11, with beta from 0.1 to 20, in 1000 steps.
    """
    beta = torch.linspace(beta_start, beta_end, TRAIN_TIMESTEPS, dtype=torch.float64)
    return (1 - beta).cumprod(dim=0)


def scaled_linear(beta_start: float, beta_end: float) -> Float64[Tensor, " t"]:
    """Return alpha_bar for beta whose square root grows linearly.

    This is the schedule of Stable Diffusion; the code of arXiv:2112.10752 calls it "linear".
    """
    root = torch.linspace(beta_start**0.5, beta_end**0.5, TRAIN_TIMESTEPS, dtype=torch.float64)
    return (1 - root**2).cumprod(dim=0)


def cosine() -> Float64[Tensor, " t"]:
    """Return alpha_bar of Nichol & Dhariwal 2021 (arXiv:2102.09672), eq. 17; beta <= 0.999."""
    t = torch.arange(TRAIN_TIMESTEPS + 1, dtype=torch.float64) / TRAIN_TIMESTEPS
    alpha_bar = ((t + 0.008) / 1.008 * math.pi / 2).cos() ** 2
    beta = (1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=0.999)
    return (1 - beta).cumprod(dim=0)


def rescale_zero_terminal_snr(alpha_bar: Float64[Tensor, " t"]) -> Float64[Tensor, " t"]:
    """Shift and scale alpha so that it ends in 0 and begins as before.

    Lin et al. 2023 (arXiv:2305.08891), algorithm 1. Without it, the noisiest latents of training
    still show a little of the image, above all its mean. A sampler begins with none of it, and then
    draws images of medium brightness only.
    """
    alpha = alpha_bar.sqrt()
    return ((alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])) ** 2


def check_steps(steps: int) -> None:
    """Refuse a number of sampler steps that the schedule does not have."""
    if not 1 <= steps <= TRAIN_TIMESTEPS:
        raise UserError(f"a sampler takes 1 to {TRAIN_TIMESTEPS} steps, not {steps}.")
