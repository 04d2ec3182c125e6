"""A whole model on disk: a Stable Diffusion pipeline folder, which diffusers opens as it is.

    model_index.json  unet/  vae/  scheduler/
    text_encoder/  tokenizer/   unless the U-Net reads no text
    low_res_scheduler/          upscaling models: how noise is added to the small image
    latentsmith.json            which parts belong together (hashes, a golden text embedding),
                                contexts per prompt, class names, provenance
    README.md                   the model card

Single files in CompVis' or Stability's layout are read, too.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

import autoencoder.io
from autoencoder import Autoencoder
from conditioning import TextEncoder
from foundation.errors import MissingFileError
from foundation.files import atomic_folder, read_json, restore, write_json
from foundation.json_reading import check_type
from foundation.run_kind import hub_hint, run_hint
from foundation.shapes import Context
from interop.lora import WEIGHTS as LORA
from interop.model_card import CARD
from interop.provenance import read_facts, without_paths
from interop.single_file import reader as single_file
from interop.state_dict_check import class_hint
from ldm.config import TRAIN_TIMESTEPS, Prediction, ScheduleConfig
from ldm.pipeline import scheduler_config
from ldm.pipeline.compatibility import (
    SAME_LATENTS,
    UNetKind,
    check_bindings,
    compute_bindings,
    extra_channels,
    unet_kind,
)
from ldm.pipeline.model_card import pipeline_card
from ldm.pipeline.scheduler_config import INDEX, LOW_RES_SCHEDULER, SCHEDULER, LowResSchedule
from ldm.unet import UNet
from ldm.unet.io import PROVENANCE, TEXT_CHUNKS, read_text_chunks

INDEX_ENTRIES = {
    "_class_name": "StableDiffusionPipeline",
    "feature_extractor": [None, None],
    "requires_safety_checker": False,
    "safety_checker": [None, None],
    "text_encoder": ["transformers", "CLIPTextModel"],  # or another class
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}
# Classes of diffusers, by what the U-Net was made for. Models that read no text are of the same
# classes, with null in place of the text encoder.
PIPELINE_CLASSES: dict[UNetKind, str] = {
    "draw": "StableDiffusionPipeline",
    "upscale": "StableDiffusionUpscalePipeline",
    "restore": "StableDiffusionInstructPix2PixPipeline",
    "inpaint": "StableDiffusionInpaintPipeline",
}
# diffusers' pipeline for inpainting does not open a folder that names no version of diffusers.
DIFFUSERS_VERSION = "0.32.0"

PROBE_SIDE = 4  # pixels of the smallest feature maps when the prediction type is inferred


@dataclass(frozen=True, kw_only=True)
class PipelineComponents:
    """The parts and settings of a whole model; the arguments of `TextToImage`."""

    unet: UNet
    autoencoder: Autoencoder
    text_encoder: TextEncoder | None
    schedule: ScheduleConfig
    prediction: Prediction
    classes: tuple[str, ...] = ()
    chunks: int = 1
    low_res: LowResSchedule = field(default_factory=LowResSchedule)


# Loading ------------------------------------------------------------------------------------------


def find_pipeline(folder: Path) -> Path:
    """Return the pipeline folder inside a training run's folder, or the folder itself.

    Raises:
        MissingFileError: there is no model_index.json in either.
    """
    candidates = (folder / "model", folder)
    restore(*candidates)
    for candidate in candidates:
        if (candidate / INDEX).is_file():
            return candidate
    hint = run_hint(folder, "train_ldm.py") or class_hint(folder)
    if any((candidate / LORA).is_file() for candidate in candidates):
        hint = " It holds a LoRA: load the model that the LoRA changes, then apply the LoRA to it."
    raise MissingFileError(
        f"no model in {folder}: looked for {INDEX} there and in {folder / 'model'}."
        f"{hint} Give the folder of a training run or a pipeline folder.{hub_hint(folder)}"
    )


def read_model_provenance(source: Path) -> dict[str, Any]:
    """Read the provenance that a whole model was saved with; empty for a foreign model.

    source: run folder, pipeline folder or single file.
    """
    if source.is_file():
        return single_file.read_provenance(source)
    return read_facts(find_pipeline(source) / PROVENANCE).get("provenance", {})


def load_components(source: Path, ema: bool = False) -> PipelineComponents:
    """Load the parts of a whole model.

    Args:
        source: run folder, pipeline folder (of Latentsmith or of diffusers), or a single file in
            CompVis' or Stability's layout.
        ema: of a single file that holds two U-Nets, load the one averaged in training.

    Raises:
        MissingFileError: there is no model.
        UserError: a part is damaged, or is not the one that the U-Net was trained with.
    """
    if source.is_file():
        return load_single_file(source, ema)
    return load_folder(find_pipeline(source), ema)


def load_folder(folder: Path, ema: bool = False) -> PipelineComponents:
    """Load a pipeline folder of Latentsmith or of diffusers."""
    schedule, prediction = scheduler_config.read_scheduler(folder / SCHEDULER)
    unet, vae = UNet.load(folder / "unet", ema), Autoencoder.load(folder / "vae")
    has_text_encoder = unet.config.conditional or (folder / "text_encoder").exists()
    text_encoder = TextEncoder.load(folder) if has_text_encoder else None
    facts = read_facts(folder / PROVENANCE)
    classes = check_type(facts.get("classes", ()), tuple[str, ...], folder / PROVENANCE, "classes")
    if facts:
        equivalent = autoencoder.io.read_provenance(folder / "vae").get(SAME_LATENTS, ())
        actual = compute_bindings(vae.sha256, text_encoder)
        bindings = facts.get("bindings", {})
        bindings = check_type(bindings, dict, folder / PROVENANCE, "bindings")
        check_bindings(bindings, actual, folder, equivalent)
    return PipelineComponents(
        unet=unet,
        autoencoder=vae,
        text_encoder=text_encoder,
        schedule=schedule,
        prediction=prediction,
        classes=classes,
        chunks=read_text_chunks(facts, folder),
        low_res=scheduler_config.read_low_res(folder, read_json(folder / INDEX)),
    )


def load_single_file(file: Path, ema: bool = False) -> PipelineComponents:
    """Load a single file in CompVis' or Stability's layout."""
    schedule, prediction = scheduler_config.from_single_file(file)
    unet = UNet.load(file, ema).eval()
    text_encoder = TextEncoder.load(file) if unet.config.conditional else None
    if prediction is None:
        null_context = None if text_encoder is None else text_encoder([""])
        prediction = infer_prediction(unet, null_context)
    if unet.config.sample_size is None:
        side = single_file.SAMPLE_SIZES.get(scheduler_config.PREDICTION_TYPES[prediction])
        unet.config = replace(unet.config, sample_size=side)
    chunks = read_text_chunks(single_file.open_file(file).header, file)
    return PipelineComponents(
        unet=unet,
        autoencoder=Autoencoder.load(file),
        text_encoder=text_encoder,
        schedule=schedule,
        prediction=prediction,
        chunks=chunks,
    )


@torch.no_grad()
def infer_prediction(network: UNet, context: Context | None) -> Prediction:
    """Find out whether a U-Net predicts noise or velocity, by one call of the network.

    Files of Stable Diffusion 1.x and 2.x come with either prediction and do not say which.

    The network gets noise at the noisiest timestep. A network that predicts noise returns nearly
    its whole input. Velocity is alpha noise - sigma z_0 with a small alpha, and of z_0 little more
    than the mean can be predicted there, so nearly nothing of the input returns.

    Args:
        network: a U-Net; channels that it takes beyond the latents are zeros.
        context: the null context, a batch of one; None if the network reads no text.
    """
    config, device = network.config, network.conv_in.weight.device
    side = PROBE_SIDE * 2 ** (len(config.block_out_channels) - 1)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(1, config.out_channels, side, side, generator=generator).to(device)
    extra = noise.new_zeros(1, extra_channels(config), side, side)
    t = torch.tensor([TRAIN_TIMESTEPS - 1], device=device)
    output = network(torch.cat([noise, extra], dim=1), t, context).float()
    slope = (output * noise).sum() / noise.square().sum()  # of a regression of output on noise
    return "noise" if slope > 0.5 else "velocity"


# Saving -------------------------------------------------------------------------------------------


def save_components(
    folder: Path, components: PipelineComponents, provenance: Mapping[str, Any]
) -> None:
    """Write a pipeline folder, atomically: after a crash it is the old folder or the new one.

    provenance: JSON for latentsmith.json; the entries "autoencoder" and "text_encoder" also go into
        the folders of these parts.
    """
    with atomic_folder(folder) as partial:
        _write_folder(partial, components, provenance)


def _write_folder(
    folder: Path, components: PipelineComponents, provenance: Mapping[str, Any]
) -> None:
    vae, text_encoder = components.autoencoder, components.text_encoder
    provenance = without_paths(provenance)
    vae.save(folder / "vae", provenance.get("autoencoder"))
    if text_encoder is not None:
        text_encoder.save(folder, provenance.get("text_encoder"))
    bindings = compute_bindings(vae.sha256, text_encoder)
    chunks = {TEXT_CHUNKS: components.chunks}
    components.unet.save(folder / "unet", {**bindings, **provenance, **chunks})
    _write_index_and_schedulers(folder, components)
    facts: dict[str, Any] = {"bindings": bindings, **chunks, "provenance": dict(provenance)}
    if components.classes:
        facts["classes"] = list(components.classes)
    write_json(folder / PROVENANCE, facts)
    card = pipeline_card(
        sample_size=components.unet.config.sample_size,
        autoencoder_factor=vae.factor,
        context_tokens=None if text_encoder is None else text_encoder.tokens,
        chunks=components.chunks,
        text_to_image=extra_channels(components.unet.config) == 0,
        schedule=components.schedule,
        prediction=components.prediction,
        bindings=bindings,
        provenance=provenance,
    )
    (folder / CARD).write_text(card, encoding="utf-8")


def _write_index_and_schedulers(folder: Path, components: PipelineComponents) -> None:
    """Write model_index.json and the scheduler folders that it names."""
    kind = unet_kind(components.unet.config)
    scheduler = scheduler_config.to_diffusers(components.schedule, components.prediction)
    index: dict[str, Any] = dict(INDEX_ENTRIES)
    index["_class_name"] = PIPELINE_CLASSES.get(kind, PIPELINE_CLASSES["draw"])
    index["scheduler"] = ["diffusers", scheduler["_class_name"]]
    write_json(folder / SCHEDULER, scheduler)
    if kind == "inpaint":
        index["_diffusers_version"] = DIFFUSERS_VERSION
    if (text_encoder := components.text_encoder) is None:
        index |= {"text_encoder": [None, None], "tokenizer": [None, None]}
    else:
        index["text_encoder"] = ["transformers", text_encoder.config.MODEL_CLASS]
        index["tokenizer"] = ["transformers", text_encoder.config.TOKENIZER_CLASS]
    if kind == "upscale":
        low_res = scheduler_config.low_res_to_diffusers(components.low_res)
        write_json(folder / LOW_RES_SCHEDULER, low_res)
        index["low_res_scheduler"] = ["diffusers", low_res["_class_name"]]
        index["max_noise_level"] = components.low_res.max_noise_level
        del index["requires_safety_checker"]  # not a setting of this class
    write_json(folder / INDEX, index)
