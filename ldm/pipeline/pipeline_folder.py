"""A whole model on disk: a Stable Diffusion pipeline folder, which diffusers opens as it stands.

model_index.json  unet/  vae/  scheduler/
text_encoder/  tokenizer/   unless the U-Net reads no text
low_res_scheduler/          of models that upscale: how the small picture was noised
latentsmith.json  what belongs together (hashes, a golden text embedding), how many contexts a
                  prompt fills, and how it was made
README.md         the model card, as each part has one
"""

from pathlib import Path
from typing import Any

from foundation.files import atomic_folder, write_json
from interop.model_card import CARD
from ldm.model_card import pipeline_card
from ldm.pipeline import scheduler_config as scheduler_files
from ldm.pipeline.bindings import bindings
from ldm.pipeline.compatibility import beside
from ldm.pipeline.low_res_schedule import FILE, scheduler_of
from ldm.text_chunks import TEXT_CHUNKS
from ldm.unet.io import MODEL_INDEX

# Of diffusers' pipelines, by the channels beside those of the latents. Models that read no text are
# of the first class, too, with null in place of their text encoder.
CLASSES = {
    0: "StableDiffusionPipeline",
    3: "StableDiffusionUpscalePipeline",
    4: "StableDiffusionInstructPix2PixPipeline",
    5: "StableDiffusionInpaintPipeline",
}
UPSCALES, INPAINTS = 3, 5
LAYOUT = "0.32.0"  # of diffusers; its pipeline for inpainting does not open a folder that is silent


def save_pipeline(pipeline, folder: Path, provenance: dict[str, Any]) -> None:
    """Write the pipeline folder of a TextToImage; a crash leaves the old folder or the new one."""
    with atomic_folder(folder) as partial:
        write(pipeline, partial, provenance)


def write(pipeline, folder: Path, provenance: dict[str, Any]) -> None:
    pipeline.autoencoder.save(folder / "vae", provenance.get("autoencoder"))
    if pipeline.text_encoder is not None:
        pipeline.text_encoder.save(folder, provenance.get("text_encoder"))
    facts = bindings(pipeline.autoencoder.sha256, pipeline.text_encoder)
    read = {TEXT_CHUNKS: pipeline.chunks}
    pipeline.unet.save(folder / "unet", {**facts, **provenance, **read})
    schedule, prediction = pipeline.schedule_config, pipeline.denoiser.prediction
    write_index(pipeline, folder, scheduler_files.to_diffusers(schedule, prediction))
    told: dict[str, Any] = {"bindings": facts, **read, "provenance": provenance}
    if pipeline.classes:
        told["classes"] = list(pipeline.classes)
    write_json(folder / "latentsmith.json", told)
    readme = pipeline_card(
        sample_size=pipeline.unet.config.sample_size,
        factor=pipeline.autoencoder.factor,
        tokens=None if pipeline.text_encoder is None else pipeline.text_encoder.tokens,
        chunks=pipeline.chunks,
        plain=beside(pipeline.unet.config) == 0,
        schedule=schedule,
        prediction=prediction,
        bindings=facts,
        provenance=provenance,
    )
    (folder / CARD).write_text(readme, encoding="utf-8")


def write_index(pipeline, folder: Path, scheduler: dict[str, Any]) -> None:
    """model_index.json, and the schedules that it names."""
    more = beside(pipeline.unet.config)
    index = MODEL_INDEX | {"_class_name": CLASSES.get(more, CLASSES[0])}
    index["scheduler"] = ["diffusers", scheduler["_class_name"]]
    (folder / "scheduler").mkdir()
    write_json(folder / "scheduler" / "scheduler_config.json", scheduler)
    if more == INPAINTS:
        index["_diffusers_version"] = LAYOUT
    if pipeline.text_encoder is None:
        index |= {"text_encoder": [None, None], "tokenizer": [None, None]}
    if more == UPSCALES:
        small = scheduler_of(pipeline.low_res)
        (folder / FILE).parent.mkdir()
        write_json(folder / FILE, small)
        index["low_res_scheduler"] = ["diffusers", small["_class_name"]]
        index["max_noise_level"] = pipeline.low_res.max_level
        del index["requires_safety_checker"]  # a setting that this class does not have
    write_json(folder / "model_index.json", index)
