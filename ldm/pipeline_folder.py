"""A whole model on disk: a Stable Diffusion pipeline folder, which diffusers opens as it stands.

model_index.json  unet/  vae/  text_encoder/  tokenizer/  scheduler/
latentsmith.json  what belongs together (hashes, a golden text embedding), how many contexts a
                  prompt fills, and how it was made
README.md         the model card, as each part has one
"""

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from interop.card import CARD
from ldm import scheduler_files
from ldm.bindings import bindings
from ldm.card import pipeline_card
from ldm.files import MODEL_INDEX, write_json
from ldm.text_chunks import TEXT_CHUNKS


def save_pipeline(pipeline, folder: Path, provenance: dict[str, Any]) -> None:
    """pipeline: a TextToImage. Atomic as a whole."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    partial.chmod(0o755)  # mkdtemp makes it private
    try:
        write(pipeline, partial, provenance)
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write(pipeline, folder: Path, provenance: dict[str, Any]) -> None:
    pipeline.autoencoder.save(folder / "vae", provenance.get("autoencoder"))
    pipeline.text_encoder.save(folder, provenance.get("text_encoder"))
    facts = bindings(pipeline.autoencoder.sha256, pipeline.text_encoder)
    read = {TEXT_CHUNKS: pipeline.chunks}
    pipeline.unet.save(folder / "unet", {**facts, **provenance, **read})
    schedule, prediction = pipeline.schedule_config, pipeline.denoiser.prediction
    scheduler = scheduler_files.to_diffusers(schedule, prediction)
    (folder / "scheduler").mkdir()
    write_json(folder / "scheduler" / "scheduler_config.json", scheduler)
    index = MODEL_INDEX | {"scheduler": ["diffusers", scheduler["_class_name"]]}
    write_json(folder / "model_index.json", index)
    told: dict[str, Any] = {"bindings": facts, **read, "provenance": provenance}
    if pipeline.classes:
        told["classes"] = list(pipeline.classes)
    write_json(folder / "latentsmith.json", told)
    readme = pipeline_card(
        sample_size=pipeline.unet.config.sample_size,
        factor=pipeline.autoencoder.factor,
        tokens=pipeline.text_encoder.tokens,
        chunks=pipeline.chunks,
        schedule=schedule,
        prediction=prediction,
        bindings=facts,
        provenance=provenance,
    )
    (folder / CARD).write_text(readme, encoding="utf-8")
