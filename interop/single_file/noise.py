"""The noise that the U-Net in a single file was trained on, as far as the file tells."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from interop.single_file.reader import SingleFile, config_of, open_file

BETAS = (0.00085, 0.012)  # first and last, their roots evenly spaced
UPSCALER_BETAS = (0.0001, 0.02)


@dataclass(frozen=True)
class Noise:
    """Each as far as it is told."""

    scheduler: dict[str, Any] | None  # a whole scheduler_config.json; what is written here has one
    betas: tuple[float, float]  # first and last of its family
    alpha_bar: Tensor | None  # the stored table
    prediction: str | None  # diffusers' prediction_type; None is not told


def read_noise(path: Path) -> Noise:
    file = open_file(path)
    config = config_of(file, "unet")
    upscaler = bool(config.get("num_class_embeds"))
    prediction = file.prediction
    if prediction is None and upscaler:
        prediction = "v_prediction"
    if prediction is None and config.get("cross_attention_dim") == 768:
        prediction = "epsilon"
    betas = UPSCALER_BETAS if upscaler else BETAS
    return Noise(file.header.get("scheduler"), betas, stored_table(file), prediction)


def stored_table(file: SingleFile) -> Tensor | None:
    """alpha_bar, the squared share of the image that is left at each time; in float64."""
    for name in ("alphas_cumprod", "betas"):
        if name in file.shapes:
            table = file.tensors({name: name})[name].double()
            return table if name == "alphas_cumprod" else (1 - table).cumprod(dim=0)
    return None
