"""The loss of a denoiser on held-out images, by timestep."""

import torch
from jaxtyping import Float
from torch import Tensor

from foundation.shapes import Latents
from ldm import TextToImage
from ldm.config import ObjectiveConfig
from ldm.denoiser import Denoiser, concatenate
from ldm.validation import (
    validation_losses,
    validation_noise,
    validation_timesteps,
    without_network,
)
from stages.evaluation.blocks import Rows
from training.tools.curves import line_chart


def has_validation_loss(pipeline: TextToImage) -> bool:
    """Return whether the loss can be computed: the U-Net needs no other picture."""
    unet = pipeline.unet.config
    return unet.in_channels == unet.out_channels


def timesteps(pipeline: TextToImage) -> list[int]:
    """Return the timesteps at which the loss is measured."""
    return validation_timesteps(len(pipeline.denoiser.schedule))


def losses_by_timestep(
    pipeline: TextToImage, latents: Latents, captions: list[str], numbers: range, seed: int
) -> Rows:
    """Compute the squared error of what the network predicts, for each image and timestep.

    Every noise level counts the same. Image k has the same noise in every evaluation.

    Args:
        latents: clean, of some images.
        captions: theirs.
        numbers: of the images; their noise depends on them and on `seed`.

    Returns:
        "loss" of the network and "loss of zero", of one that outputs zero: one row each image.
    """
    encoded = {caption: pipeline.condition_on(caption)[0][0] for caption in dict.fromkeys(captions)}
    conditioning = concatenate([encoded[caption] for caption in captions]).to(latents.device)
    denoiser = pipeline.denoiser
    objective = ObjectiveConfig(prediction=denoiser.prediction)
    noise = validation_noise(latents, seed, numbers)
    t = torch.tensor(timesteps(pipeline), device=latents.device).expand(len(latents), -1)

    def losses(network: Denoiser) -> Float[Tensor, "n timesteps"]:
        found = validation_losses(network, objective, latents, conditioning, t, noise, len(latents))
        return found.float().cpu()

    return {"loss": losses(denoiser), "loss of zero": losses(without_network(denoiser))}


def loss_table(
    steps: list[int], losses: Float[Tensor, "n timesteps"], zero: Float[Tensor, "n timesteps"]
) -> list[dict[str, float]]:
    """Return the mean losses by timestep, as the tables of a report."""
    return [
        {"timestep": t, "loss": loss, "of a network that outputs zero": other}
        for t, loss, other in zip(
            steps, losses.mean(dim=0).tolist(), zero.mean(dim=0).tolist(), strict=True
        )
    ]


def loss_section(rows: list[dict[str, float]]) -> str:
    """Return HTML with the curve of the loss by timestep."""
    names = ("loss", "of a network that outputs zero")
    lines = {name: [(row["timestep"], row[name]) for row in rows] for name in names}
    chart = line_chart("Validation loss by timestep", lines, x_label="timestep", dots=True)
    return f"<h2>Validation loss</h2><div class=charts>{chart}</div>"
