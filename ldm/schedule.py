"""The noising process:  z_t = alpha_t z_0 + sigma_t noise,  t = 0 (clean) ... 999 (noise).

Two families: variance preserving with a table for 1000 whole times, and rectified flow, straight
lines between data and noise at real times. Samplers see no difference.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Float64, Int, Real
from torch import Tensor, nn

from foundation.errors import UserError
from foundation.shapes import PerSample, Scale, Timesteps

TIMES = 1000  # of the table; the times a U-Net knows are 0 ... 999, in either family


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    # how noise grows with time; flow: straight lines from images to noise
    noise_schedule: Literal["scaled_linear", "linear", "cosine", "flow"] = "scaled_linear"
    beta_start: float = 0.00085  # noise added by the first step; linear and scaled_linear
    beta_end: float = 0.012  # noise added by the last step; linear and scaled_linear
    zero_terminal_snr: bool = False  # stretch the table so that t = 999 is noise alone
    shift: float = 1.0  # flow: above 1, samplers spend more of their steps at high noise

    def __post_init__(self):
        if self.noise_schedule == "flow" and self.zero_terminal_snr:
            raise UserError(
                "zero_terminal_snr stretches the table of a variance-preserving schedule; the flow "
                "has no table and ends in noise anyway. Leave it out."
            )
        if self.noise_schedule != "flow" and self.shift != 1:
            raise UserError(f"shift={self.shift} is for the flow; {self.noise_schedule} has none.")
        if self.shift <= 0:
            raise UserError(f"shift={self.shift} must be positive; 1 is no shift.")
        if not 0 < self.beta_start <= self.beta_end < 1:
            raise UserError(
                f"beta must rise inside (0, 1), not from {self.beta_start} to {self.beta_end}."
            )


class NoiseSchedule(nn.Module):
    """Variance preserving: alpha_t^2 + sigma_t^2 = 1."""

    def __init__(self, alpha_bar: Float[Tensor, " t"]):
        """alpha_bar: alpha_t^2, falling; the last may be 0. Better in float64."""
        super().__init__()
        if not (alpha_bar[0] < 1 and alpha_bar[-1] >= 0 and (alpha_bar.diff() < 0).all()):
            raise UserError("alpha_bar must fall inside [0, 1), from clean to noise.")
        self.alpha_bar = alpha_bar.double().cpu()
        # Derived from the config, so never part of a checkpoint.
        self.register_buffer("alpha", alpha_bar.sqrt().float(), persistent=False)
        self.register_buffer("sigma", (1 - alpha_bar).sqrt().float(), persistent=False)

    def __len__(self) -> int:
        return len(self.alpha)

    def forward(self, t: Timesteps) -> tuple[Scale, Scale]:
        """alpha_t and sigma_t. Between whole times, the point on the unit circle on the chord."""
        if t.is_floating_point():
            alpha, sigma = between(self.alpha, self.sigma, t)
        else:
            alpha, sigma = self.alpha[t], self.sigma[t]
        return alpha.view(-1, 1, 1, 1), sigma.view(-1, 1, 1, 1)

    def exact(self, t: Real[Tensor, " n"]) -> tuple[Float64[Tensor, " n"], Float64[Tensor, " n"]]:
        """alpha_t and sigma_t on the CPU, for coefficients that are small differences of these."""
        alpha, sigma = self.alpha_bar.sqrt(), (1 - self.alpha_bar).sqrt()
        return between(alpha, sigma, t) if t.is_floating_point() else (alpha[t], sigma[t])

    def time_of(self, ratio: Float64[Tensor, " n"]) -> Float64[Tensor, " n"]:
        """The times at which sigma_t / alpha_t is this; the nearest there is where it never is."""
        alpha, sigma = self.alpha_bar.sqrt(), (1 - self.alpha_bar).sqrt()
        after = torch.searchsorted(sigma / alpha, ratio).clamp(1, len(self) - 1)
        before = after - 1
        # On the chord: (sigma + w rise) / (alpha + w fall) = ratio.
        rise, fall = sigma[after] - sigma[before], alpha[after] - alpha[before]
        w = (ratio * alpha[before] - sigma[before]) / (rise - ratio * fall)
        return before + torch.where(ratio.isinf(), 1.0, w).clamp(0, 1)

    def at(self, quantile: PerSample) -> Int[Tensor, " b"]:
        """The times that split 0 ... 999 so: quantile in [0, 1), 0 is clean."""
        return (quantile * len(self)).long()

    def timesteps(self, steps: int) -> Int[Tensor, " steps"]:
        """Times for a sampler, noise first: from 999 in equal strides, the clean end left out.

        "Trailing" in Lin et al. 2023 (arXiv:2305.08891), table 2: the spacing that starts at the
        noise, without which zero terminal SNR makes no sense.
        """
        check_steps(steps)
        # The times of diffusers, whose rounding it takes to be equal; less the time -1 that this
        # adds for some numbers of steps, the smallest of them 61.
        ends = np.arange(len(self), 0, -len(self) / steps)[:steps]
        return torch.from_numpy(ends.round()).long() - 1


def between(
    alpha: Float[Tensor, " steps"], sigma: Float[Tensor, " steps"], t: Float[Tensor, " n"]
) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    """Both tables at real times: the point of the unit circle on the chord of its neighbors."""
    before = t.floor().long()
    after = (before + 1).clamp(max=len(alpha) - 1)
    w = (t - before).to(alpha.dtype)
    alpha, sigma = (table[before].lerp(table[after], w) for table in (alpha, sigma))
    norm = alpha.hypot(sigma)
    return alpha / norm, sigma / norm


class RectifiedFlow(nn.Module):
    """Straight lines: alpha_t = 1 - t / 1000, sigma_t = t / 1000, at real times t.

    Liu et al. 2022 (arXiv:2209.03003); as a latent model, Esser et al. 2024 (arXiv:2403.03206).
    """

    def __init__(self, shift: float = 1.0):
        super().__init__()
        self.shift = shift

    def __len__(self) -> int:
        return TIMES

    def forward(self, t: Timesteps) -> tuple[Scale, Scale]:
        sigma = (t.float() / TIMES).view(-1, 1, 1, 1)
        return 1 - sigma, sigma

    def exact(self, t: Real[Tensor, " n"]) -> tuple[Float64[Tensor, " n"], Float64[Tensor, " n"]]:
        """alpha_t and sigma_t on the CPU, for coefficients that are small differences of these."""
        sigma = t.double().cpu() / TIMES
        return 1 - sigma, sigma

    def time_of(self, ratio: Float64[Tensor, " n"]) -> Float64[Tensor, " n"]:
        """The times at which sigma_t / alpha_t is this."""
        return TIMES / (1 + 1 / ratio)

    def at(self, quantile: PerSample) -> PerSample:
        """The time at this share of the way: quantile in [0, 1), 0 is clean."""
        return quantile * TIMES

    def timesteps(self, steps: int) -> Float[Tensor, " steps"]:
        """Times for a sampler, noise first: from 999 in equal strides, the clean end left out.

        A shift s moves them to s sigma / (1 + (s - 1) sigma); Esser et al. 2024, eq. 23. The same
        numbers as diffusers' DPMSolverMultistepScheduler with use_flow_sigmas.
        """
        check_steps(steps)
        sigma = 1 - np.linspace(1, 1 / TIMES, steps + 1)[:0:-1]
        t = torch.from_numpy(TIMES * (self.shift * sigma / (1 + (self.shift - 1) * sigma)))
        # A network sees the whole time below, so rounding to fp32 must not reach the next one.
        rounded = t.float()
        return torch.where(rounded.floor() > t.floor(), rounded.nextafter(rounded - 1), rounded)


Schedule = NoiseSchedule | RectifiedFlow


def make_schedule(config: ScheduleConfig) -> Schedule:
    if config.noise_schedule == "flow":
        return RectifiedFlow(config.shift)
    if config.noise_schedule == "cosine":
        alpha_bar = cosine()
    elif config.noise_schedule == "linear":
        alpha_bar = linear(config.beta_start, config.beta_end)
    else:
        alpha_bar = scaled_linear(config.beta_start, config.beta_end)
    return NoiseSchedule(zero_terminal_snr(alpha_bar) if config.zero_terminal_snr else alpha_bar)


def linear(beta_start: float, beta_end: float) -> Float[Tensor, " t"]:
    """alpha_bar of Ho et al. 2020 (arXiv:2006.11239), section 4."""
    beta = torch.linspace(beta_start, beta_end, TIMES, dtype=torch.float64)
    return (1 - beta).cumprod(dim=0)


def scaled_linear(beta_start: float, beta_end: float) -> Float[Tensor, " t"]:
    """alpha_bar with beta linear in its square root: what arXiv:2112.10752's code calls linear."""
    beta = torch.linspace(beta_start**0.5, beta_end**0.5, TIMES, dtype=torch.float64) ** 2
    return (1 - beta).cumprod(dim=0)


def cosine() -> Float[Tensor, " t"]:
    """alpha_bar of Nichol & Dhariwal 2021 (arXiv:2102.09672), eq. 17; beta at most 0.999."""
    t = torch.arange(TIMES + 1, dtype=torch.float64) / TIMES
    alpha_bar = ((t + 0.008) / 1.008 * math.pi / 2).cos() ** 2
    beta = (1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=0.999)
    return (1 - beta).cumprod(dim=0)


def zero_terminal_snr(alpha_bar: Float[Tensor, " t"]) -> Float[Tensor, " t"]:
    """Shifts and stretches alpha so that it ends in 0 and starts as it did.

    Lin et al. 2023 (arXiv:2305.08891), algorithm 1. Without it the last step still shows a little
    of the image, its mean above all, and a sampler that starts from noise alone gives gray means.
    """
    alpha = alpha_bar.sqrt()
    return ((alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])) ** 2


def check_steps(steps: int) -> None:
    if not 1 <= steps <= TIMES:
        raise UserError(f"a sampler takes 1 to {TIMES} steps, not {steps}.")
