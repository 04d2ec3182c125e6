"""python export.py runs/ldm exported/model.safetensors --format single-file --dtype fp16

Writes a model, or one part of it, for other tools: as a folder of diffusers, or as a single file
in the layout of Stable Diffusion's own checkpoints. Reads both, too. What is exported, read again
and exported again is the same to the last byte.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
import tyro
from torch import Tensor, nn

import autoencoder.io
import conditioning.io
import ldm.pipeline.io
import ldm.unet.io
from autoencoder import Autoencoder
from autoencoder.training.latent_statistics import LatentStatistics, fold_statistics
from conditioning import TextEncoder
from conditioning.text_model import to_hugging_face
from conditioning.tokenizer_io import settings_of, tokenizer_from
from foundation.errors import UserError
from foundation.files import atomic_folder
from interop.safetensors_io import write_tensors
from interop.single_file.compvis_autoencoder import STABLE_DIFFUSION
from interop.single_file.writer import header_only_settings, to_single_file
from ldm import TextToImage
from ldm.pipeline.scheduler_config import LowResSchedule, to_diffusers
from ldm.unet import UNet
from ldm.unet.io import TEXT_CHUNKS
from training.cli import parse, run_main
from training.flags import Groups

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
NAMES = {"unet": "U-Net", "vae": "autoencoder", "text_encoder": "text encoder"}


Model = Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="MODEL")]
Out = Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="OUT")]


@dataclass(frozen=True, kw_only=True)
class Config:
    GROUPS: ClassVar[Groups] = {
        "model": ("model", "part", "ema"),
        "output": ("out", "format", "dtype"),
    }

    model: Model  # run, pipeline or part folder, or a single file
    out: Out  # a new folder, or a new .safetensors file
    format: Literal["diffusers", "single-file"]  # a folder of diffusers, or a file in CompVis' keys
    part: Literal["all", "vae", "unet", "text-encoder"] = "all"  # what of the model
    dtype: Literal["fp32", "fp16", "bf16"] = "fp32"  # precision of the weights written
    ema: bool = False  # of a single file with two U-Nets, take the one averaged in training


def main(argv: Sequence[str] | None = None) -> None:
    config = parse(Config, argv, __doc__)
    check(config)
    model = load(config)
    provenance = provenance_of(config)
    if config.format == "diffusers":
        cast(model, DTYPES[config.dtype])
        with atomic_folder(config.out) as folder:
            model.save(folder, provenance)
    else:
        parts, facts = single_file_parts(model), {"provenance": provenance}
        if isinstance(model, TextToImage):
            check_fits_a_file(model)
            facts["scheduler"] = to_diffusers(model.schedule_config, model.denoiser.prediction)
            facts[TEXT_CHUNKS] = model.chunks
        tensors, metadata = to_single_file(parts, facts)
        tensors = {name: rounded(x, name, DTYPES[config.dtype]) for name, x in tensors.items()}
        write_tensors(config.out, tensors, metadata)
    print(f"wrote {config.out}: {', '.join(NAMES[part] for part in parts_of(model))}")
    if config.format == "single-file" and (lines := header_only_settings(config.out)):
        print(
            "its header holds the whole config, so that it can be read here. Tools that look at "
            "names and shapes only would not know:\n  " + "\n  ".join(lines)
        )
        part = "" if config.part == "all" else f" --part {config.part}"
        print(
            "diffusers' from_single_file is told by config=FOLDER, a folder made from the file, as "
            "the scale of its latents may not be that of the model:\n"
            f"  python export.py {config.out} FOLDER --format diffusers{part}"
        )


def check(config: Config) -> None:
    if config.out.exists():
        raise UserError(f"{config.out} exists, and nothing is overwritten. Choose another name.")
    if config.format == "single-file" and config.out.suffix != ".safetensors":
        raise UserError(f"a single file is named *.safetensors, not {config.out.name}.")
    if config.ema and config.part not in ("all", "unet"):
        raise UserError("--ema chooses between two U-Nets; leave it out for another part.")


def load(config: Config) -> TextToImage | UNet | Autoencoder | TextEncoder:
    if config.part == "vae":
        return Autoencoder.load(config.model)
    if config.part == "text-encoder":
        return TextEncoder.load(config.model)
    kind = TextToImage if config.part == "all" else UNet
    return kind.load(config.model, ema=config.ema)


def parts_of(model: TextToImage | nn.Module) -> dict[str, nn.Module]:
    if isinstance(model, TextToImage):
        parts = zip(NAMES, (model.unet, model.autoencoder, model.text_encoder), strict=True)
        return {name: module for name, module in parts if module is not None}
    kinds = {UNet: "unet", Autoencoder: "vae", TextEncoder: "text_encoder"}
    return {kinds[type(model)]: model}


def provenance_of(config: Config) -> dict[str, Any]:
    """What is recorded of the model or part, to be passed on as it is."""
    if config.part == "all":
        return ldm.pipeline.io.read_model_provenance(config.model)
    if config.part == "unet":
        return ldm.unet.io.read_provenance(config.model)
    files = autoencoder.io if config.part == "vae" else conditioning.io
    return files.read_provenance(config.model)


def cast(model: TextToImage | nn.Module, dtype: torch.dtype) -> None:
    for module in parts_of(model).values():
        for name, tensor in module.state_dict().items():
            rounded(tensor, name, dtype)
        module.to(dtype)


def rounded(tensor: Tensor, name: str, dtype: torch.dtype) -> Tensor:
    """Refuses what has no place in the range of `dtype`; that of fp16 ends at 65504."""
    result = tensor.to(dtype)
    if not result.isfinite().all():
        raise UserError(
            f"{name} has values up to {tensor.abs().max().item():g}, which {dtype} cannot hold. "
            "Choose --dtype bf16 or fp32."
        )
    return result


def single_file_parts(
    model: TextToImage | nn.Module,
) -> dict[str, tuple[dict[str, Any], dict[str, Tensor]]]:
    """Config and weights of each part, as `interop.single_file.reader` writes them."""
    described = {}
    for part, module in parts_of(model).items():
        if isinstance(module, Autoencoder):
            module = with_known_scale(module)
            described[part] = (
                autoencoder.io.diffusers_config(asdict(module.config)),
                module.state_dict(),
            )
        elif isinstance(module, TextEncoder):
            described[part] = text_encoder(module)
        else:
            described[part] = asdict(module.config), module.state_dict()
    return described


def check_fits_a_file(model: TextToImage) -> None:
    """Refuses what a pipeline folder says and a single file has no place for."""
    for there, what in (
        (model.classes, "names of classes"),
        (
            model.low_res != LowResSchedule(),
            "a schedule of its own for the small pictures it enlarges",
        ),
    ):
        if there:
            raise UserError(
                f"this model has {what}, for which a single file has no place. Use --format "
                "diffusers."
            )


def with_known_scale(model: Autoencoder) -> Autoencoder:
    """The same latents, of which tools that multiply by 0.18215 unasked make what they should be.

    What its own config applies is folded into the 1x1 convolutions, in float64.
    """
    scale, channels = STABLE_DIFFUSION["scaling_factor"], model.config.latent_channels
    statistics = LatentStatistics((0.0,) * channels, (scale,) * channels, images=0)
    folded = fold_statistics(model, statistics)
    folded.config = replace(folded.config, scaling_factor=scale)
    return model if model.config == folded.config else folded


def text_encoder(encoder: TextEncoder) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Under the names of its family: Hugging Face's with quick_gelu, open_clip's with gelu."""
    if encoder.layer != "last" or not encoder.final_norm:
        raise UserError(
            "this text encoder gives the states of the penultimate layer, or before the last norm, "
            "as no single file of Stable Diffusion 1.x or 2.x can say. Use --format diffusers."
        )
    settings = settings_of(encoder.tokenizer)
    if tokenizer_from(settings, encoder.config.max_position_embeddings) != encoder.tokenizer:
        raise UserError(
            "this text encoder has a vocabulary of its own, for which a single file has no place: "
            "readers take CLIP's. Use --format diffusers."
        )
    places = {"layer": encoder.layer, "final_norm": encoder.final_norm, "tokenizer": settings}
    weights = encoder.tower.state_dict()
    if encoder.config.hidden_act == "quick_gelu":
        weights = to_hugging_face(weights)
    return asdict(encoder.config) | places, weights


if __name__ == "__main__":
    run_main(main)
