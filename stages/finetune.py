"""Trainings that begin with the weights of another model, and take nothing else of its run."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from autoencoder import Autoencoder
from autoencoder.io import read_provenance as read_autoencoder_provenance
from autoencoder.training.latent_statistics import fold_config_scale
from dataset.images.pixel_format import PIXELS_KEY, PixelFormat, recorded_format
from foundation.errors import UserError, listed
from foundation.hashing import tensors_sha256
from foundation.json_reading import check_type
from foundation.shapes import Images
from interop.provenance import read_facts
from ldm.config import Prediction, ScheduleConfig
from ldm.pipeline import scheduler_config
from ldm.pipeline.compatibility import (
    SAME_LATENTS,
    UNET_KINDS,
    check_components,
    extra_channels,
    takes_noise_level,
    unet_kind,
)
from ldm.pipeline.io import infer_prediction
from ldm.unet import UNet, UNetConfig
from ldm.unet.io import PROVENANCE, read_text_chunks
from ldm.unet.io import read_provenance as read_unet_provenance
from stages.condition import SHOWN_CLASSES, Condition
from stages.tasks.base import DRAWING, TrainingTask

NoiseProcess = tuple[ScheduleConfig, Prediction]  # how noise is added, and what the U-Net predicts


# Autoencoders.


def load_autoencoder(source: Path, frozen_encoder: bool) -> Autoencoder:
    """Load an autoencoder to train on.

    frozen_encoder: keep the encoder and its latents, to the last bit. Then nothing is folded into
        it, neither the scale in its config nor statistics at the end, so that a U-Net trained on
        its latents still reads them. Otherwise the scale of the config is folded in.
    """
    autoencoder = Autoencoder.load(source)
    if not frozen_encoder:
        return fold_config_scale(autoencoder)
    for module in (autoencoder.encoder, autoencoder.quant_conv):
        module.requires_grad_(False)
    return autoencoder


def print_other_format(source: Path, pixels: PixelFormat) -> None:
    """Print a note if the autoencoder at `source` was trained on another pixel format."""
    provenance = read_autoencoder_provenance(source)
    if PIXELS_KEY not in provenance:
        return
    trained_on = recorded_format(provenance)
    if trained_on != pixels:
        print(f"note: {source} was trained on other numbers: {trained_on}; these are {pixels}.")


@torch.no_grad()
def verify_encoder(autoencoder: Autoencoder, source: Path, images: Images) -> None:
    """Check that an autoencoder encodes exactly as the one at `source`.

    images: encoded by both; the weights are compared too.

    Raises:
        UserError: they differ.
    """
    original = Autoencoder.load(source, images.device)
    ours, theirs = (encoder_weights(each) for each in (autoencoder, original))
    equal = ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)
    scales = zip(
        autoencoder.config.scale_and_shift(), original.config.scale_and_shift(), strict=True
    )
    same_scale = all(torch.equal(a, b) for a, b in scales)
    a, b = (each.encode(images, check=False) for each in (autoencoder, original))
    if not (equal and same_scale and torch.equal(a.mean, b.mean) and torch.equal(a.std, b.std)):
        raise UserError(
            f"the encoder should be that of {source}, but it encodes differently now. If the "
            "autoencoder there was trained anew in the meantime, put the old one back. The "
            "training's state is untouched."
        )
    print(f"encodings of {len(images)} images are bit for bit those of {source}.")


def encoder_weights(autoencoder: Autoencoder) -> dict[str, Tensor]:
    """Return the weights that the latents depend on."""
    prefixes = ("encoder.", "quant_conv.")
    return {k: v for k, v in autoencoder.state_dict().items() if k.startswith(prefixes)}


def save_with_frozen_encoder(
    autoencoder: Autoencoder,
    source: Path,
    images: Images,
    folder: Path,
    provenance: Mapping[str, Any],
) -> None:
    """Save an autoencoder whose encoder is that of `source`, after checking that it still is.

    The files record whose latents it decodes, so that a U-Net trained on those accepts it.
    """
    verify_encoder(autoencoder.eval(), source, images)
    original = read_autoencoder_provenance(source)
    facts = {
        "encoder": f"frozen: encodings are bit for bit those of {source}",
        SAME_LATENTS: [*original.get(SAME_LATENTS, []), Autoencoder.load(source).sha256],
    }
    if statistics := original.get("latent_statistics_folded_in"):
        facts["latent_statistics_folded_in"] = statistics
    autoencoder.save(folder, {**provenance, **facts})


# U-Nets.


def load_unet(
    source: Path,
    size: int,
    vae: Autoencoder,
    condition: Condition,
    task: TrainingTask = DRAWING,
) -> UNet:
    """Load a U-Net to train on; print a note if it was trained with other encoders.

    It was trained on the same task, or draws from noise alone.

    size: side of the training images in pixels.

    Raises:
        UserError: it was made for another task, or reads something else than is trained on here,
            or does not go with the encoders.
    """
    unet = UNet.load(source)
    config = unet.config
    check_task_of(source, config, task)
    has_classes = config.num_class_embeds is not None and not takes_noise_level(config)
    reads = "text" if config.conditional else "class" if has_classes else "none"
    if reads != condition.reads:
        raise UserError(
            f"--init-from {source}: this U-Net was trained with --condition {reads}, and here it "
            f"is {condition.reads}. Give the same, or train from the beginning."
        )
    if reads == "class":
        check_classes(source, config.num_class_embeds, condition.classes)
    encoder = condition.text_encoder
    width = None if encoder is None else encoder.width
    try:
        check_components(config, vae.config.latent_channels, context_width=width)
    except UserError as error:
        raise UserError(
            f"--init-from {source}: {error} Give its own --vae and --text-encoder, or train from "
            "the beginning."
        ) from error
    provenance = read_unet_provenance(source)
    encoders = {"autoencoder": vae.sha256}
    if encoder is not None:
        encoders["text_encoder"] = encoder.sha256
    for name, sha256 in encoders.items():
        trained_with = provenance.get(f"{name}_sha256", sha256)
        if trained_with != sha256:
            print(
                f"note: --init-from {source} was trained with the {name.replace('_', ' ')} of "
                f"sha256 {trained_with[:12]}..., and here it gets another one, which it has to "
                "learn first."
            )
    unet.config = replace(config, sample_size=size // vae.factor)
    return unet


def check_task_of(source: Path, unet: UNetConfig, task: TrainingTask) -> None:
    """Refuse a U-Net that was made for another task."""
    kind = unet_kind(unet)
    if kind == "draw":
        if not takes_noise_level(unet):
            return
        raise UserError(
            f"--init-from {source}: this U-Net draws from more than noise and a text or a class "
            "(it also takes a class label in addition to the text), which is not trained here."
        )
    if kind == task.name and extra_channels(unet) == task.channels:
        return
    raise UserError(
        f"--init-from {source}: this U-Net {UNET_KINDS[kind].partition(':')[0]} (it takes "
        f"{unet.in_channels} channels and gives {unet.out_channels}), and --task {task.name} needs "
        f"{unet.out_channels + task.channels}, or a U-Net that draws from noise alone. Give "
        "another one, or the task that it was made for, with the same settings."
    )


def with_inputs(unet: UNet, task: TrainingTask) -> UNet:
    """Return a U-Net that draws from noise alone with the inputs of a task.

    The weights of the new inputs are zero, so that it computes the same until they have learned.
    """
    wider = UNet(task.architecture(unet.config))
    weights = unet.state_dict()
    narrow = weights["conv_in.weight"]
    weights["conv_in.weight"] = torch.zeros_like(wider.conv_in.weight)
    weights["conv_in.weight"][:, : narrow.shape[1]] = narrow
    new = {name: each for name, each in wider.state_dict().items() if name not in weights}
    last = "class_embedding.linear_2."  # that of a noise level, which is added to that of the time
    for name in new:
        if name.startswith(last):
            new[name] = torch.zeros_like(new[name])
    wider.load_state_dict({**new, **weights})
    return wider


def check_classes(source: Path, count: int | None, classes: tuple[str, ...]) -> None:
    """Refuse a U-Net with other classes than those of the images."""
    theirs = read_classes(source)
    if count == len(classes) + 1 and theirs in (classes, None):
        return
    listing = "does not say their names" if theirs is None else listed(theirs, SHOWN_CLASSES)
    raise UserError(
        f"--init-from {source}: this U-Net draws {(count or 1) - 1} classes ({listing}), and the "
        f"images have {len(classes)} ({listed(classes, SHOWN_CLASSES)}). Give images of the same "
        "classes, or train from the beginning."
    )


def read_classes(source: Path) -> tuple[str, ...] | None:
    """Return the names of the classes of a model; None if its files do not say them."""
    for folder in (source / "model", source):
        facts = read_facts(folder / PROVENANCE)
        if names := facts.get("classes"):
            return check_type(names, tuple[str, ...], folder / PROVENANCE, "classes")
    return None


def choose_text_chunks(asked: int | None, source: Path | None) -> int:
    """Return how many contexts of the text encoder a caption fills.

    Args:
        asked: the flag; None for what the U-Net of `source` was trained with.
        source: U-Net to begin with; None for a new one.
    """
    trained = 1 if source is None else read_text_chunks(read_unet_provenance(source), source)
    if asked is None and trained > 1:
        print(f"captions fill {trained} contexts, one after the other, as {source} was trained.")
    elif source is not None and asked not in (None, trained):
        print(
            f"note: --init-from {source} was trained with --text-chunks {trained}, and here it "
            f"gets {asked} contexts one after the other, which it has to learn first."
        )
    return trained if asked is None else asked


def check_noise_process(source: Path, unet: UNet, condition: Condition, ours: NoiseProcess) -> None:
    """Check that the flags say what the U-Net of `source` was trained on.

    Where its files do not say, the flags are believed, with a note.

    ours: schedule and prediction by the flags.

    Raises:
        UserError: they differ; names the flags that it was trained with.
    """
    theirs = read_noise_process(source, unet, condition)
    if theirs is None:
        print(
            f"note: {source} does not say what its U-Net predicts, nor on which noise; it is taken "
            f"to be as the flags say: {noise_flags(ours)}"
        )
    elif comparable(theirs) != comparable(ours):
        raise UserError(
            f"--init-from {source}: its U-Net was trained with other flags: {noise_flags(theirs)}\n"
            f"Give these. The command has: {noise_flags(ours)}"
        )


def read_noise_process(source: Path, unet: UNet, condition: Condition) -> NoiseProcess | None:
    """Return what the files of a U-Net say that it was trained on; None if they do not say.

    A single file that does not name the prediction shows it by what the network outputs.
    """
    if source.is_file():
        schedule, prediction = scheduler_config.from_single_file(source)
        if prediction is None:
            encoder = condition.text_encoder
            null_context = None if encoder is None else encoder([""]).cpu()
            prediction = infer_prediction(unet.eval(), null_context)
            unet.train()
        return schedule, prediction
    for folder in (source / "model", source, source.parent):
        file = folder / "scheduler" / "scheduler_config.json"
        if file.is_file() and (folder / "unet").is_dir():
            return scheduler_config.read_scheduler(file)
    return None


def comparable(process: NoiseProcess) -> NoiseProcess:
    """Return a process without unused betas and without the shift, which only samplers use."""
    schedule, prediction = process
    schedule = replace(schedule, shift=1.0)
    if schedule.noise_schedule in ("flow", "cosine"):
        default = ScheduleConfig()
        schedule = replace(schedule, beta_start=default.beta_start, beta_end=default.beta_end)
    return schedule, prediction


def noise_flags(process: NoiseProcess) -> str:
    """Return the flags of train_ldm.py that stand for a process."""
    schedule, prediction = process
    flags = f"--prediction {prediction} --noise-schedule {schedule.noise_schedule}"
    if schedule.noise_schedule not in ("flow", "cosine"):
        flags += f" --beta-start {schedule.beta_start} --beta-end {schedule.beta_end}"
    if schedule.noise_schedule != "flow":
        flags += " --zero-terminal-snr" if schedule.zero_terminal_snr else " --no-zero-terminal-snr"
    return flags


def init_identity(source: Path | None, unet: UNet) -> dict[str, str]:
    """Return what identifies the initial weights, so that a run resumes with the same.

    Their path does not: it may come to hold other weights. Empty for new weights.
    """
    return {} if source is None else {"init_sha256": tensors_sha256(unet.state_dict())}
