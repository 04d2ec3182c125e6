"""What is chosen about the process: the noise schedule, what the network predicts, and the loss.

Nothing here imports torch, so that flags and presets can be read without it.
"""

from dataclasses import dataclass
from typing import Literal

from foundation.errors import UserError

TRAIN_TIMESTEPS = 1000  # a U-Net is trained on the timesteps 0 ... 999, in both families

# noise: what was added (Ho et al. 2020, arXiv:2006.11239)
# velocity: alpha noise - sigma z_0 (Salimans & Ho 2022, arXiv:2202.00512)
# sample: z_0
# flow: noise - z_0, the speed along a straight path (Liu et al. 2022, arXiv:2209.03003)
Prediction = Literal["noise", "velocity", "sample", "flow"]


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """How noise grows with time; the names are those of diffusers where it has them."""

    # how noise grows with time; flow: straight lines from images to noise
    noise_schedule: Literal["scaled_linear", "linear", "cosine", "flow"] = "scaled_linear"
    beta_start: float = 0.00085  # noise added by the first step; linear and scaled_linear only
    beta_end: float = 0.012  # noise added by the last step; linear and scaled_linear only
    zero_terminal_snr: bool = False  # rescale the schedule so that t = 999 is pure noise
    shift: float = 1.0  # flow: above 1, samplers spend more of their steps at high noise

    def __post_init__(self):
        if self.noise_schedule == "flow" and self.zero_terminal_snr:
            raise UserError(
                "zero_terminal_snr rescales the table of a variance-preserving schedule; the flow "
                "has no table, and it ends in pure noise anyway. Leave it out."
            )
        if self.noise_schedule != "flow" and self.shift != 1:
            raise UserError(
                f"shift={self.shift} is for the flow; {self.noise_schedule} has no shift."
            )
        if self.shift <= 0:
            raise UserError(f"shift={self.shift} must be positive; 1 is no shift.")
        if not 0 < self.beta_start <= self.beta_end < 1:
            raise UserError(
                f"beta must rise inside (0, 1), not from {self.beta_start} to {self.beta_end}."
            )


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """What the network learns to predict, and how noise levels are drawn and weighted."""

    prediction: Prediction = "velocity"  # what the network learns to output
    weighting: Literal["uniform", "min_snr", "soft_min_snr"] = "uniform"  # of the noise levels
    gamma: float = 5.0  # min_snr, soft_min_snr: the signal-to-noise ratio that weights are cut at
    # how often each noise level is trained; uniform: whole timesteps where the schedule has a
    # table, as in DDPM; continuous: real ones, as in score-based models
    times: Literal["uniform", "continuous", "logit_normal"] = "uniform"
    logit_mean: float = 0.0  # logit_normal: above 0, more often at high noise
    logit_std: float = 1.0  # logit_normal: the smaller, the more often around the mean
    offset_noise: float = 0.0  # std of noise common to all pixels of a channel; 0.1 is much

    def __post_init__(self):
        for name in ("gamma", "logit_std"):
            if getattr(self, name) <= 0:
                raise UserError(f"{name}={getattr(self, name)} must be positive.")
        if self.offset_noise < 0:
            raise UserError(f"offset_noise={self.offset_noise} must not be negative; 0 is none.")
