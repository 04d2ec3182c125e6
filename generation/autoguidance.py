"""The weaker model of autoguidance: an earlier state of the same run, or a smaller model."""

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

AVERAGED = "ema.safetensors"  # in a state folder: the weights that a model would be made of


def open_weak(source: Path, strong: TextToImage) -> tuple[TextToImage, str]:
    """A model around the weaker U-Net, whose sha256 comes along; all else is the stronger one's.

    source: a state folder of a run (RUN/state/step-0005000), which must be of the same
        architecture, or a run folder, a pipeline folder or a unet folder.
    """
    if (source / "state.json").is_file():
        unet, trained = from_state(source, strong.unet)
    else:
        unet, trained = UNet.load(source), read_provenance(source)
        check_process(source, strong)
    check_hashes(source, trained, strong)
    check_chunks(source, trained, strong)
    sha256 = tensors_sha256(unet.state_dict())
    unet.eval().requires_grad_(False).to(strong.device, strong.unet.conv_in.weight.dtype)
    model = TextToImage(
        unet,
        strong.autoencoder,
        strong.text_encoder,
        strong.schedule_config,
        strong.denoiser.prediction,
        chunks=strong.chunks,
    )
    return model, sha256


def from_state(folder: Path, like: UNet) -> tuple[UNet, dict[str, Any]]:
    """And what the run's config says that it was trained with."""
    file = folder / AVERAGED
    if not file.is_file():
        raise MissingFileError(
            f"{folder} has no {AVERAGED}. Of a run on several devices with spread weights, take a "
            "model folder."
        )
    weights = {name.removeprefix("/"): value for name, value in read_tensors(file).items()}
    unet = UNet(like.config)
    check_state_dict(
        weights, unet.state_dict(), file, "a U-Net of the stronger model's architecture"
    )
    unet.load_state_dict(weights)
    config = read_json(folder.parents[1] / "config.json")
    names = {"vae_sha256": "autoencoder_sha256", "text_encoder_sha256": "text_encoder_sha256"}
    facts = {theirs: config.get(ours) for ours, theirs in names.items()}
    return unet, facts | {TEXT_CHUNKS: config.get("text_chunks", 1)}


def check_hashes(source: Path, trained: dict[str, Any], strong: TextToImage) -> None:
    parts = ("autoencoder", "text_encoder") if strong.text_encoder else ("autoencoder",)
    for part in parts:
        expected, found = getattr(strong, part).sha256, trained.get(f"{part}_sha256")
        if found != expected:
            told = "does not say with which" if found is None else f"with that of sha256 {found}"
            raise UserError(
                f"--weak-model {source} must have been trained with the {part} of the stronger "
                f"model, sha256 {expected}; it was {told}. Take an earlier state of the same run, "
                "or a smaller model trained on the same --vae and --text-encoder."
            )


def check_chunks(source: Path, trained: dict[str, Any], strong: TextToImage) -> None:
    if (chunks := read_text_chunks(trained, source)) != strong.chunks:
        raise UserError(
            f"--weak-model {source} was trained with --text-chunks {chunks}, and the stronger "
            f"model with {strong.chunks}, so one context cannot serve both. Take an earlier state "
            "of the same run."
        )


def check_process(source: Path, strong: TextToImage) -> None:
    """Whether both predict the same of the same noise, as far as the folder says."""
    for folder in (source / "model", source, source.parent):
        file = folder / "scheduler" / "scheduler_config.json"
        if file.is_file():
            theirs = scheduler_config.from_diffusers(read_json(file))
            if theirs != (strong.schedule_config, strong.denoiser.prediction):
                raise UserError(
                    f"--weak-model {source} was trained on another noise schedule or predicts "
                    f"something else: {theirs}. Take an earlier state of the same run."
                )
            return
