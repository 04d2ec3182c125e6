"""Whether a U-Net fits the autoencoder and the text encoder that it is used with.

Shapes are compared first. A trained U-Net is also bound to exact weights: it records the hashes of
the autoencoder and the text encoder, and one golden text embedding.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from conditioning import TextEncoder
from foundation.errors import UserError, one_line
from foundation.json_reading import check_type
from ldm.unet import UNetConfig

SAME_LATENTS = "same_latents_as_sha256"  # provenance of an autoencoder with an unchanged encoder
SMALL_CHANNELS = 3  # of the small picture that a U-Net upscales: RGB
GOLDEN_TOLERANCE = 1e-3  # relative to the largest value: machines round differently

UNetKind = Literal["draw", "inpaint", "upscale", "restore", "unknown"]
UNET_KINDS: dict[UNetKind, str] = {
    "draw": "draws from noise",
    "upscale": "upscales a small image: call it with task=ldm.tasks.upscale(...)",
    "restore": "restores a damaged image: call it with task=ldm.tasks.restore(...)",
    "inpaint": "inpaints, and needs an image and a mask: call it with task=ldm.tasks.inpaint(...)",
    "unknown": "of an unknown kind",
}


def extra_channels(unet: UNetConfig) -> int:
    """Return how many input channels a U-Net has beyond those of the latents."""
    return unet.in_channels - unet.out_channels


def takes_noise_level(unet: UNetConfig) -> bool:
    """Return whether the U-Net gets the noise level of a small picture where others get a class."""
    return unet.class_embed_type == "timestep" or (
        unet.conditional and unet.num_class_embeds is not None
    )


def unet_kind(unet: UNetConfig) -> UNetKind:
    """Return what a U-Net was made for, which its inputs show."""
    extra = extra_channels(unet)
    if extra == 0:
        return "draw"
    if takes_noise_level(unet):
        return "upscale" if extra % SMALL_CHANNELS == 0 else "unknown"
    if extra == 1 + unet.out_channels:  # a mask, and the latents of the masked picture
        return "inpaint"
    return "restore" if extra == unet.out_channels else "unknown"


def check_components(unet: UNetConfig, latent_channels: int, context_width: int | None) -> None:
    """Refuse a U-Net whose shapes do not fit the autoencoder or the text encoder.

    context_width: width of the text encoder's vectors; None without a text encoder.

    Raises:
        UserError: with both numbers.
    """
    if unet.out_channels != latent_channels:
        raise UserError(
            f"the U-Net predicts {unet.out_channels} channels, the autoencoder's latents have "
            f"{latent_channels}: this U-Net was trained on another autoencoder."
        )
    if unet.conditional and context_width is None:
        raise UserError("the U-Net reads text, so it needs the text encoder it was trained with.")
    if unet.conditional and unet.cross_attention_dim != context_width:
        raise UserError(
            f"the U-Net reads text vectors of width {unet.cross_attention_dim}, the text encoder "
            f"gives {context_width}: this U-Net was trained with another text encoder."
        )


def compute_bindings(autoencoder_sha256: str, text_encoder: TextEncoder | None) -> dict[str, Any]:
    """Return what latentsmith.json records about the parts that a U-Net is trained with.

    The golden embedding is the last token of the golden sentence, which has seen all of it: in a
    causal text model as the last one, in one that reads in both directions as any.
    """
    if text_encoder is None:
        return {"autoencoder_sha256": autoencoder_sha256}
    return {
        "autoencoder_sha256": autoencoder_sha256,
        "text_encoder_sha256": text_encoder.sha256,
        "golden": [round(float(value), 6) for value in text_encoder.golden_embedding()[-1]],
    }


def check_bindings(
    recorded: Mapping[str, Any],
    actual: Mapping[str, Any],
    folder: Path,
    equivalent_autoencoders: Sequence[str] = (),
) -> None:
    """Refuse a model whose parts are not those that its U-Net was trained with.

    Args:
        recorded: bindings in the folder's latentsmith.json.
        actual: bindings of the parts that lie in the folder.
        equivalent_autoencoders: sha256 of autoencoders that encode as the one in the folder does.

    Raises:
        UserError: with both hashes.
    """
    if not actual.keys() <= recorded.keys():
        raise UserError(
            f"{folder / 'latentsmith.json'} does not say what the U-Net was trained with. Copy the "
            "model folder again; or remove the file, to load the model without this check."
        )
    for part in ("autoencoder", "text_encoder"):
        key = f"{part}_sha256"
        if key not in actual:  # a model without text that was saved without a text encoder
            continue
        equivalent = part == "autoencoder" and recorded[key] in equivalent_autoencoders
        if actual[key] != recorded[key] and not equivalent:
            raise UserError(
                f"{folder} was trained with the {part} of sha256 {one_line(recorded[key], 80)}, "
                f"but the one in it has sha256 {actual[key]}. Put the right one back: with another "
                "one the U-Net gives noise."
            )
    if "golden" in actual:
        _check_golden(recorded["golden"], actual["golden"], folder)


def _check_golden(recorded: object, actual: list[float], folder: Path) -> None:
    kind, file = tuple[float, ...], folder / "latentsmith.json"
    expected = torch.tensor(check_type(recorded, kind, file, "bindings.golden"))
    if len(expected) != len(actual) or not expected.any():
        raise UserError(
            f"{file}: bindings.golden has {len(expected)} numbers, and the text encoder gives "
            f"{len(actual)}. Copy the model again."
        )
    drift = (torch.tensor(actual) - expected).abs().max() / expected.abs().max()
    if drift > GOLDEN_TOLERANCE:
        raise UserError(
            f"{folder}: the text encoder has the right weights, but its embedding of the golden "
            f"sentence differs from that in training (by {drift:.2g} of the largest value). The "
            "tokenizer files or the version of open_clip have changed."
        )
