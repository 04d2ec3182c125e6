"""What export.py does: a model, or a part of it, as a diffusers folder or a single file."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import autoencoder.io
import conditioning.io
import ldm.pipeline.io
import ldm.unet.io
from autoencoder import Autoencoder
from autoencoder.training.latent_statistics import LatentStatistics, fold_statistics
from commands.flags.export import Config
from conditioning import TextEncoder
from conditioning.text_model import TextTowerConfig, to_hugging_face
from conditioning.tokenizer import Tokenizer, settings_of, tokenizer_from_settings
from foundation.errors import UserError
from foundation.files import atomic_folder
from interop.safetensors_io import write_tensors
from interop.single_file.compvis_autoencoder import STABLE_DIFFUSION
from interop.single_file.writer import header_only_settings, to_single_file
from ldm import TextToImage
from ldm.pipeline.scheduler_config import LowResSchedule, to_diffusers
from ldm.unet import UNet
from ldm.unet.io import TEXT_CHUNKS

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
NAMES = {"unet": "U-Net", "vae": "autoencoder", "text_encoder": "text encoder"}

Component = UNet | Autoencoder | TextEncoder
Model = TextToImage | Component


def run(config: Config) -> None:
    """Export a model as the flags say."""
    check_flags(config)
    model, provenance = load(config), read_provenance(config)
    if config.format == "diffusers":
        convert(model, DTYPES[config.dtype])
        with atomic_folder(config.out) as folder:
            model.save(folder, provenance)
    else:
        write_single_file(model, provenance, config.out, DTYPES[config.dtype])
    print(f"wrote {config.out}: {', '.join(NAMES[name] for name in components(model))}")
    if config.format == "single-file":
        print_compatibility(config)


def check_flags(config: Config) -> None:
    """Refuse flags that contradict each other, and an output that exists."""
    if config.out.exists():
        raise UserError(f"{config.out} exists, and nothing is overwritten. Choose another name.")
    if config.format == "single-file" and config.out.suffix != ".safetensors":
        raise UserError(f"a single file is named *.safetensors, not {config.out.name}.")
    if config.format == "diffusers" and config.out.suffix == ".safetensors":
        raise UserError(
            f"--format diffusers writes a folder, and {config.out.name} is the name of a file. "
            "Name a folder, or use --format single-file."
        )


def load(config: Config) -> Model:
    """Load the model, or the part of it that is to be exported."""
    if config.part == "vae":
        return Autoencoder.load(config.model)
    if config.part == "text-encoder":
        return TextEncoder.load(config.model)
    kind = TextToImage if config.part == "all" else UNet
    return kind.load(config.model, ema=config.ema)


def components(model: Model) -> dict[str, Component]:
    """Return the components of a model by their names in a diffusers folder."""
    if isinstance(model, UNet):
        return {"unet": model}
    if isinstance(model, Autoencoder):
        return {"vae": model}
    if isinstance(model, TextEncoder):
        return {"text_encoder": model}
    found: dict[str, Component] = {"unet": model.unet, "vae": model.autoencoder}
    if model.text_encoder is not None:
        found["text_encoder"] = model.text_encoder
    return found


def read_provenance(config: Config) -> dict[str, Any]:
    """Read the provenance of the model or the part, which the export repeats."""
    if config.part == "all":
        return ldm.pipeline.io.read_model_provenance(config.model)
    if config.part == "unet":
        return ldm.unet.io.read_provenance(config.model)
    if config.part == "vae":
        return autoencoder.io.read_provenance(config.model)
    return conditioning.io.read_provenance(config.model)


def convert(model: Model, dtype: torch.dtype) -> None:
    """Convert the weights of a model in place."""
    for component in components(model).values():
        for name, tensor in component.state_dict().items():
            rounded(tensor, name, dtype)
        component.to(dtype)


def rounded(tensor: Tensor, name: str, dtype: torch.dtype) -> Tensor:
    """Convert a tensor, and refuse values outside the range of `dtype` (fp16 ends at 65504)."""
    result = tensor.to(dtype)
    if not tensor.isfinite().all():
        raise UserError(
            f"{name} is not finite (NaN or infinity) in the model itself: its training had "
            "diverged. Export an earlier copy; no --dtype can hold such weights."
        )
    if not result.isfinite().all():
        raise UserError(
            f"{name} has values up to {tensor.abs().max().item():g}, which {dtype} cannot hold. "
            "Choose --dtype bf16 or fp32."
        )
    return result


# Single files -------------------------------------------------------------------------------------


def write_single_file(
    model: Model, provenance: dict[str, Any], file: Path, dtype: torch.dtype
) -> None:
    """Write a model or a component as a single file, atomically."""
    facts: dict[str, Any] = {"provenance": provenance}
    described = {name: describe(component) for name, component in components(model).items()}
    if isinstance(model, TextToImage):
        check_fits_single_file(model)
        facts["scheduler"] = to_diffusers(model.schedule_config, model.denoiser.prediction)
        facts[TEXT_CHUNKS] = model.chunks
    tensors, metadata = to_single_file(described, facts)
    tensors = {name: rounded(tensor, name, dtype) for name, tensor in tensors.items()}
    write_tensors(file, tensors, metadata)


def describe(component: Component) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return config and weights of a component as `to_single_file` takes them."""
    if isinstance(component, TextEncoder):
        return describe_text_encoder(component)
    if isinstance(component, Autoencoder):
        component = with_usual_scale(component)
        return autoencoder.io.diffusers_config(asdict(component.config)), component.state_dict()
    return asdict(component.config), component.state_dict()


def describe_text_encoder(encoder: TextEncoder) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return config and weights with the keys of Hugging Face (quick_gelu) or open_clip (gelu).

    Raises:
        UserError: it has a setting or a vocabulary that single files cannot express.
    """
    config, tokenizer = encoder.config, encoder.tokenizer
    if not isinstance(config, TextTowerConfig) or not isinstance(tokenizer, Tokenizer):
        raise UserError(
            f"this text encoder is an {config.MODEL_CLASS}, for which single files have no "
            "place. Use --format diffusers."
        )
    if encoder.layer != "last" or not encoder.final_norm:
        raise UserError(
            "this text encoder outputs the states of the penultimate layer, or before the final "
            "norm, which single files of Stable Diffusion 1.x and 2.x cannot express. Use --format "
            "diffusers."
        )
    settings = settings_of(tokenizer)
    positions = config.max_position_embeddings
    if tokenizer_from_settings(settings, positions) != tokenizer:
        raise UserError(
            "this text encoder has a vocabulary of its own. Single files have no place for one, "
            "and their readers use CLIP's. Use --format diffusers."
        )
    facts = {"layer": encoder.layer, "final_norm": encoder.final_norm, "tokenizer": settings}
    weights = encoder.tower.state_dict()
    if config.hidden_act == "quick_gelu":
        weights = to_hugging_face(weights)
    return asdict(config) | facts, weights


def with_usual_scale(model: Autoencoder) -> Autoencoder:
    """Return an autoencoder with the same latents and scaling_factor 0.18215.

    Tools that cannot read the header multiply the latents by that number, so what the config
    applies is folded into the 1x1 convolutions instead.
    """
    scale, channels = STABLE_DIFFUSION["scaling_factor"], model.config.latent_channels
    statistics = LatentStatistics((0.0,) * channels, (scale,) * channels, images=0)
    folded = fold_statistics(model, statistics)
    folded.config = replace(folded.config, scaling_factor=scale)
    return model if model.config == folded.config else folded


def check_fits_single_file(model: TextToImage) -> None:
    """Refuse a model with settings for which a single file has no place."""
    for is_set, description in (
        (bool(model.classes), "names of classes"),
        (model.low_res != LowResSchedule(), "its own noise schedule for the images it enlarges"),
    ):
        if is_set:
            raise UserError(
                f"this model has {description}, for which a single file has no place. Use --format "
                "diffusers."
            )


def print_compatibility(config: Config) -> None:
    """Print what tools that cannot read our header get wrong about a single file."""
    lines = header_only_settings(config.out)
    if not lines:
        return
    part = "" if config.part == "all" else f" --part {config.part}"
    print(
        f"note: other tools may not open it: {len(lines)} of its settings are not those of Stable "
        f"Diffusion. For diffusers, and all with it, write a folder:\n"
        f"  python export.py {config.model} FOLDER --format diffusers{part}"
    )
