"""Whether a U-Net goes with the autoencoder and the text encoder beside it, and what it needs."""

from ldm.unet import UNet, UNetConfig

# What else than text a U-Net draws from, by the channels beside those of the latents.
KINDS = {
    3: "upscales small pictures",
    4: "edits pictures",
    5: "inpaints: it wants a mask and the masked picture",
}


def check_parts(unet: UNetConfig, latent_channels: int, context_width: int) -> None:
    """Refuses parts that were not made for each other."""
    if unet.out_channels != latent_channels:
        raise ValueError(
            f"the U-Net predicts {unet.out_channels} channels, the autoencoder's latents have "
            f"{latent_channels}: this U-Net was trained on another autoencoder."
        )
    if unet.conditional and unet.cross_attention_dim != context_width:
        raise ValueError(
            f"the U-Net reads text vectors of width {unet.cross_attention_dim}, the text encoder "
            f"gives {context_width}: it was trained with another one."
        )


def check_plain(unet: UNet) -> None:
    """Refuses a U-Net that does not draw from noise and a text alone."""
    more = unet.config.in_channels - unet.config.out_channels
    wanted = [f"{more} channels beside those of the latents"] * (more != 0)
    wanted += ["a class or a noise level"] * (unet.class_embedding is not None)
    if wanted:
        kind = f" ({KINDS[more]})" if more in KINDS else ""
        raise ValueError(
            f"this U-Net does not draw from text alone, it also wants {' and '.join(wanted)}"
            f"{kind}. Here only plain text-to-image models are sampled; the network itself can be "
            "called as pipeline.unet."
        )
