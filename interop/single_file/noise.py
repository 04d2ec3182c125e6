"""Read the noise schedule and the prediction type of the U-Net in a single file."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from interop.single_file.reader import (
    ZERO_TERMINAL_SNR,
    SingleFile,
    component_config,
    open_file,
)

BETAS = (0.00085, 0.012)  # first and last beta of the scaled_linear schedule
UPSCALER_BETAS = (0.0001, 0.02)


@dataclass(frozen=True)
class NoiseSettings:
    """What a single file records, or its family implies, about noise."""

    scheduler: dict[str, Any] | None  # a whole scheduler_config.json; only in files written here
    betas: tuple[float, float]  # first and last beta of the family's scaled_linear schedule
    alpha_bar: Tensor | None  # the stored table
    prediction: str | None  # diffusers' prediction_type; None if it is unknown
    zero_terminal_snr: bool = False  # a mark in the file says that the schedule ends in pure noise


def read_noise_settings(path: Path) -> NoiseSettings:
    """Read what a single file says about noise."""
    file = open_file(path)
    config = component_config(file, "unet")
    is_upscaler = bool(config.get("num_class_embeds"))
    prediction = file.prediction
    if prediction is None and is_upscaler:
        prediction = "v_prediction"
    betas = UPSCALER_BETAS if is_upscaler else BETAS
    ends_in_noise = ZERO_TERMINAL_SNR in file.shapes
    table = stored_table(file)
    return NoiseSettings(file.header.get("scheduler"), betas, table, prediction, ends_in_noise)


def stored_table(file: SingleFile) -> Tensor | None:
    """Return alpha_bar in float64: the share of the image's variance that is left at each step."""
    for name in ("alphas_cumprod", "betas"):
        if name in file.shapes:
            table = file.read({name: name})[name].double()
            return table if name == "alphas_cumprod" else (1 - table).cumprod(dim=0)
    return None
