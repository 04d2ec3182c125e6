"""The flags of export.py."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import tyro

from training.flags import Groups, Needs, needs


@dataclass(frozen=True, kw_only=True)
class Config:
    ESSENTIAL: ClassVar[Sequence[str]] = ("model", "out", "format")
    GROUPS: ClassVar[Groups] = {
        "model": ("model", "part", "ema"),
        "output": ("out", "format", "dtype"),
    }

    NEEDS: ClassVar[Needs] = (needs("ema", part=("all", "unet")),)

    # run folder, pipeline folder, folder of one part, or a single file
    model: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="MODEL")]
    # a new folder, or a new .safetensors file
    out: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="OUT")]
    format: Literal["diffusers", "single-file"]  # diffusers folder, or file with CompVis' names
    part: Literal["all", "vae", "unet", "text-encoder"] = "all"  # what to export of the model
    dtype: Literal["fp32", "fp16", "bf16"] = "fp32"  # precision of the exported weights
    ema: bool = False  # single files with two U-Nets: export the one averaged in training
