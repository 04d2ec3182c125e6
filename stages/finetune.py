"""Trainings that begin with weights of another model: those alone, and nothing of its run."""

from dataclasses import replace
from pathlib import Path

import torch

from autoencoder import Autoencoder
from autoencoder.io import read_provenance as autoencoder_provenance
from autoencoder.training.latent_statistics import fold_config_scale
from conditioning import TextEncoder
from dataset.images.pixel_format import RECORD, PixelFormat, recorded_format
from foundation.errors import UserError
from foundation.files import read_json
from foundation.hashing import tensors_sha256
from ldm.denoiser import Prediction
from ldm.pipeline import scheduler_config
from ldm.pipeline.compatibility import SAME_LATENTS, check_components
from ldm.pipeline.io import infer_prediction
from ldm.schedule import ScheduleConfig
from ldm.unet import UNet
from ldm.unet import io as files
from ldm.unet.io import read_text_chunks

Process = tuple[ScheduleConfig, Prediction]  # what a U-Net was trained on, and to predict


def load_autoencoder(source: Path, frozen_encoder: bool) -> Autoencoder:
    """To be trained on. With a frozen encoder its latents stay what they are, to the last bit.

    So nothing is folded into it then, neither the scale of its config now nor statistics at the
    end: whatever reads its latents goes on reading them. Otherwise its scale is folded in.
    """
    autoencoder = Autoencoder.load(source)
    if not frozen_encoder:
        return fold_config_scale(autoencoder)
    for part in (autoencoder.encoder, autoencoder.quant_conv):
        part.requires_grad_(False)
    return autoencoder


def note_format(source: Path, pixels: PixelFormat) -> None:
    """Says so if the numbers in the files are others than the autoencoder was trained on."""
    told = autoencoder_provenance(source)
    if RECORD in told and (known := recorded_format(told)) != pixels:
        print(f"note: {source} was trained on other numbers: {known}; these are {pixels}.")


@torch.no_grad()
def verify_encoder(autoencoder: Autoencoder, source: Path, images: torch.Tensor) -> None:
    """Stops unless it encodes as the one at `source` does, bit for bit.

    images: in [-1, 1], to try it on; the weights are compared besides.
    """
    original = Autoencoder.load(source, images.device)
    ours, theirs = (encoding_weights(x) for x in (autoencoder, original))
    equal = ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)
    same_scale = all(
        torch.equal(a, b)
        for a, b in zip(
            autoencoder.config.scale_and_shift(), original.config.scale_and_shift(), strict=True
        )
    )
    a, b = (x.encode(images, check=False) for x in (autoencoder, original))
    if not (equal and same_scale and torch.equal(a.mean, b.mean) and torch.equal(a.std, b.std)):
        raise UserError(
            f"the encoder was to stay that of {source}, and it encodes otherwise now. If the "
            "autoencoder there was trained anew in the meantime, put the old one back. The "
            "training's state is untouched."
        )
    print(f"encodings of {len(images)} images are bit for bit those of {source}.")


def encoding_weights(autoencoder: Autoencoder) -> dict[str, torch.Tensor]:
    parts = ("encoder.", "quant_conv.")
    return {k: v for k, v in autoencoder.state_dict().items() if k.startswith(parts)}


def save_with_frozen_encoder(
    autoencoder: Autoencoder, source: Path, images: torch.Tensor, folder: Path, provenance: dict
) -> None:
    """Verified, and without anything folded in."""
    verify_encoder(autoencoder.eval(), source, images)
    kept = autoencoder_provenance(source)
    same = [*kept.get(SAME_LATENTS, []), Autoencoder.load(source).sha256]
    facts = {
        "encoder": f"frozen: encodings are bit for bit those of {source}",
        SAME_LATENTS: same,
    }
    if statistics := kept.get("latent_statistics_folded_in"):
        facts["latent_statistics_folded_in"] = statistics
    autoencoder.save(folder, {**provenance, **facts})


def load_unet(source: Path, size: int, vae: Autoencoder, encoder: TextEncoder) -> UNet:
    """A U-Net of Stable Diffusion's kind, that goes with this autoencoder and text encoder."""
    unet = UNet.load(source)
    config = unet.config
    if config.in_channels != config.out_channels or unet.class_embedding is not None:
        raise UserError(
            f"--init-from {source}: this U-Net draws from more than noise and a text (it takes "
            f"{config.in_channels} channels and gives {config.out_channels}), which is not trained "
            "here."
        )
    try:
        check_components(config, vae.config.latent_channels, context_width=encoder.width)
    except ValueError as error:
        raise UserError(
            f"--init-from {source}: {error} Give its own --vae and --text-encoder, or train from "
            "the beginning."
        ) from error
    bound = files.read_provenance(source)
    for part, found in (("autoencoder", vae.sha256), ("text_encoder", encoder.sha256)):
        told = bound.get(f"{part}_sha256", found)
        if told != found:
            print(
                f"note: --init-from {source} was trained with the {part.replace('_', ' ')} of "
                f"sha256 {told[:12]}..., and here it gets another one, which it has to learn first."
            )
    unet.config = replace(config, sample_size=size // vae.factor)
    return unet


def chunks_to_train(asked: int | None, source: Path | None) -> int:
    """Contexts that captions fill: as asked for, or else as the U-Net of `source` was trained."""
    known = 1 if source is None else read_text_chunks(files.read_provenance(source), source)
    if asked is None and known > 1:
        print(f"captions fill {known} contexts, one after the other, as {source} was trained.")
    elif source is not None and asked not in (None, known):
        print(
            f"note: --init-from {source} was trained with --text-chunks {known}, and here it gets "
            f"{asked} contexts one after the other, which it has to learn first."
        )
    return known if asked is None else asked


def check_process(source: Path, unet: UNet, encoder: TextEncoder, ours: Process) -> None:
    """The flags must say what the U-Net was trained on; where it is not known, they are believed.

    ours: schedule and prediction by the flags.
    """
    theirs = known_process(source, unet, encoder)
    if theirs is None:
        print(
            f"note: {source} does not say what its U-Net predicts, nor on which noise; it is taken "
            f"to be as the flags say: {flags_of(ours)}"
        )
    elif comparable(theirs) != comparable(ours):
        raise UserError(
            f"--init-from {source}: its U-Net was trained otherwise than the flags say. Give what "
            f"it was trained with: {flags_of(theirs)}\nAs it is: {flags_of(ours)}"
        )


def known_process(source: Path, unet: UNet, encoder: TextEncoder) -> Process | None:
    if source.is_file():
        schedule, prediction = scheduler_config.from_single_file(source)
        if prediction is None:
            prediction = infer_prediction(unet.eval(), encoder([""]).cpu())
            unet.train()
        return schedule, prediction
    for folder in (source / "model", source, source.parent):
        file = folder / "scheduler" / "scheduler_config.json"
        if file.is_file() and (folder / "unet").is_dir():
            return scheduler_config.from_diffusers(read_json(file))
    return None


def comparable(process: Process) -> Process:
    """Without what matters to samplers alone, and betas that a schedule does not have."""
    schedule, prediction = process
    schedule = replace(schedule, shift=1.0)
    if schedule.noise_schedule in ("flow", "cosine"):
        usual = ScheduleConfig()
        schedule = replace(schedule, beta_start=usual.beta_start, beta_end=usual.beta_end)
    return schedule, prediction


def flags_of(process: Process) -> str:
    schedule, prediction = process
    flags = f"--prediction {prediction} --noise-schedule {schedule.noise_schedule}"
    if schedule.noise_schedule not in ("flow", "cosine"):
        flags += f" --beta-start {schedule.beta_start} --beta-end {schedule.beta_end}"
    if schedule.noise_schedule != "flow":
        flags += " --zero-terminal-snr" if schedule.zero_terminal_snr else " --no-zero-terminal-snr"
    return flags


def origin(source: Path | None, unet: UNet) -> dict[str, str]:
    """What the run is bound to besides: the path may come to hold other weights."""
    return {} if source is None else {"init_sha256": tensors_sha256(unet.state_dict())}
