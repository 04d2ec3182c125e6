"""Whether a U-Net goes with the autoencoder and the text encoder beside it, and with a task."""

from foundation.errors import UserError
from ldm.unet import UNetConfig

# What else than text a U-Net draws from, by the channels beside those of the latents.
KINDS = {
    0: "draws from noise",
    3: "upscales small pictures: give one with --upscale, or ldm.tasks.upscale",
    4: "edits pictures, which is not done here",
    5: "inpaints: it wants a mask and the masked picture; give them with --init-image and --mask, "
    "or ldm.tasks.inpaint",
}


def check_parts(unet: UNetConfig, latent_channels: int, context_width: int | None) -> None:
    """Refuses parts that were not made for each other.

    context_width: that the text encoder gives; None without one.
    """
    if unet.out_channels != latent_channels:
        raise UserError(
            f"the U-Net predicts {unet.out_channels} channels, the autoencoder's latents have "
            f"{latent_channels}: this U-Net was trained on another autoencoder."
        )
    if unet.conditional and context_width is None:
        raise UserError("the U-Net reads a text, so it needs the text encoder it was trained with.")
    if unet.conditional and unet.cross_attention_dim != context_width:
        raise UserError(
            f"the U-Net reads text vectors of width {unet.cross_attention_dim}, the text encoder "
            f"gives {context_width}: it was trained with another one."
        )


def beside(unet: UNetConfig) -> int:
    """Channels that a U-Net wants beside those of the latents."""
    return unet.in_channels - unet.out_channels
