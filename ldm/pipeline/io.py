"""Files -> the parts of a whole model, and what was recorded of how they belong together."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from autoencoder import Autoencoder
from autoencoder.io import read_provenance
from conditioning import TextEncoder
from foundation.files import read_json
from interop.single_file import reader as single_file
from ldm.pipeline import scheduler_config as scheduler_files
from ldm.pipeline.bindings import SAME_LATENTS, bindings, check_bindings
from ldm.pipeline.conditioning import reads_text
from ldm.pipeline.low_res_schedule import read_low_res
from ldm.pipeline.prediction_probe import measure_prediction
from ldm.text_chunks import recorded
from ldm.unet import UNet

Model = TypeVar("Model")


def from_folder(make: Callable[..., Model], folder: Path, ema: bool) -> Model:
    """make: TextToImage itself, of its parts. folder: a pipeline folder, ours or diffusers'."""
    schedule, prediction = scheduler_files.from_diffusers(
        read_json(folder / "scheduler" / "scheduler_config.json")
    )
    unet, vae = UNet.load(folder / "unet", ema), Autoencoder.load(folder / "vae")
    needed = reads_text(unet) or (folder / "text_encoder").exists()
    text_encoder = TextEncoder.load(folder) if needed else None
    told = folder / "latentsmith.json"
    facts = read_json(told) if told.exists() else {}
    if facts:
        same = read_provenance(folder / "vae").get(SAME_LATENTS, ())
        found = bindings(vae.sha256, text_encoder)
        check_bindings(facts.get("bindings", {}), found, folder, same)
    return make(
        unet,
        vae,
        text_encoder,
        schedule,
        prediction,
        classes=facts.get("classes", ()),
        chunks=recorded(facts, folder),
        low_res=read_low_res(folder),
    )


def from_file(make: Callable[..., Model], file: Path, ema: bool) -> Model:
    """file: in CompVis' or Stability's layout."""
    schedule, prediction = scheduler_files.from_single_file(file)
    unet = UNet.load(file, ema).eval()
    text_encoder = TextEncoder.load(file) if reads_text(unet) else None
    if prediction is None:
        prediction = measure_prediction(unet, text_encoder and text_encoder([""]))
    if unet.config.sample_size is None:
        side = single_file.SAMPLE_SIZES.get(scheduler_files.NAMES[prediction])
        unet.config = replace(unet.config, sample_size=side)
    chunks = recorded(single_file.open_file(file).header, file)
    vae = Autoencoder.load(file)
    return make(unet, vae, text_encoder, schedule, prediction, chunks=chunks)
