"""The weak model of autoguidance: an earlier state of the same run, or a smaller model.

Karras et al. 2024 (arXiv:2406.02507): guidance leads away from a worse version of the model.
"""

from pathlib import Path
from typing import Any

from foundation.errors import MissingFileError, UserError
from foundation.files import read_json
from foundation.hashing import tensors_sha256
from interop.safetensors_io import read_tensors
from interop.state_dict_check import check_state_dict
from ldm import TextToImage
from ldm.pipeline import scheduler_config
from ldm.unet import UNet
from ldm.unet.io import TEXT_CHUNKS, read_provenance, read_text_chunks

EMA_WEIGHTS = "ema.safetensors"  # in a state folder: the weights that a model is exported with


def open_weak_model(source: Path, strong: TextToImage) -> tuple[TextToImage, str]:
    """Open a weak U-Net in a pipeline that shares everything else with the strong one.

    Args:
        source: a run's state folder (RUN/state/step-0005000) of the same architecture, or a run
            folder, a pipeline folder or a U-Net folder.

    Returns:
        The pipeline, and the sha256 of the U-Net's weights.

    Raises:
        UserError: there is no model, or it was trained with another autoencoder, text encoder,
            number of text chunks, noise schedule or prediction type.
    """
    if (source / "state.json").is_file():
        unet, provenance = load_state_unet(source, strong.unet)
    else:
        unet, provenance = UNet.load(source), read_provenance(source)
        check_schedule(source, strong)
    check_hashes(source, provenance, strong)
    check_text_chunks(source, provenance, strong)
    sha256 = tensors_sha256(unet.state_dict())
    unet.eval().requires_grad_(False).to(strong.device, strong.unet.conv_in.weight.dtype)
    weak = TextToImage(
        unet,
        strong.autoencoder,
        strong.text_encoder,
        strong.schedule_config,
        strong.denoiser.prediction,
        classes=strong.classes,
        chunks=strong.chunks,
    )
    return weak, sha256


def load_state_unet(folder: Path, strong_unet: UNet) -> tuple[UNet, dict[str, Any]]:
    """Load the averaged U-Net of a state folder, and what the run's config says about it."""
    file = folder / EMA_WEIGHTS
    if not file.is_file():
        raise MissingFileError(
            f"{folder} has no {EMA_WEIGHTS}. A run with sharded weights has none; give a model "
            "folder instead."
        )
    weights = {name.removeprefix("/"): value for name, value in read_tensors(file).items()}
    unet = UNet(strong_unet.config)
    check_state_dict(
        weights, unet.state_dict(), file, "a U-Net of the stronger model's architecture"
    )
    unet.load_state_dict(weights)
    config = read_json(folder.parents[1] / "config.json")
    provenance = {
        "autoencoder_sha256": config.get("vae_sha256"),
        "text_encoder_sha256": config.get("text_encoder_sha256"),
        TEXT_CHUNKS: config.get("text_chunks") or 1,
    }
    return unet, provenance


def check_hashes(source: Path, provenance: dict[str, Any], strong: TextToImage) -> None:
    """Raise UserError unless both models were trained with the same parts."""
    parts = {"autoencoder": strong.autoencoder.sha256}
    if strong.text_encoder is not None:
        parts["text_encoder"] = strong.text_encoder.sha256
    for part, expected in parts.items():
        recorded_hash = provenance.get(f"{part}_sha256")
        if recorded_hash == expected:
            continue
        if recorded_hash is None:
            actual = "it does not say with which one it was trained"
        else:
            actual = f"it was trained with one of sha256 {recorded_hash}"
        raise UserError(
            f"--weak-model {source} must have been trained with the {part} of the stronger model, "
            f"sha256 {expected}; {actual}. Give an earlier state of the same run, or a smaller "
            "model trained with the same --vae and --text-encoder."
        )


def check_text_chunks(source: Path, provenance: dict[str, Any], strong: TextToImage) -> None:
    """Raise UserError unless both models read contexts of the same length."""
    if (chunks := read_text_chunks(provenance, source)) != strong.chunks:
        raise UserError(
            f"--weak-model {source} was trained with --text-chunks {chunks}, and the stronger "
            f"model with {strong.chunks}, so they cannot share a context. Give an earlier state "
            "of the same run."
        )


def check_schedule(source: Path, strong: TextToImage) -> None:
    """Raise UserError if the folder names another noise schedule or prediction type."""
    for folder in (source / "model", source, source.parent):
        file = folder / "scheduler" / "scheduler_config.json"
        if file.is_file():
            weak = scheduler_config.read_scheduler(file)
            if weak != (strong.schedule_config, strong.denoiser.prediction):
                raise UserError(
                    f"--weak-model {source} was trained on another noise schedule or with another "
                    f"prediction type: {weak}. Give an earlier state of the same run."
                )
            return
