"""Configs and weights of models, each beside the other good files of its folder."""

import functools
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from autoencoder import PRESETS as AUTOENCODERS
from autoencoder import Autoencoder
from foundation.files import to_json
from interop.safetensors_io import read_header, read_tensors
from ldm.pipeline.scheduler_config import read_scheduler, to_diffusers
from ldm.schedule import ScheduleConfig
from ldm.unet import PRESETS as UNETS
from tests.hostile.fuzz import FuzzTarget

WEIGHTS = "diffusion_pytorch_model.safetensors"


@functools.cache
def folder_of(kind: type) -> Path:
    """Return a folder of a good model, made once per process."""
    folder = Path(tempfile.mkdtemp()) / kind.__name__
    torch.manual_seed(0)
    presets = AUTOENCODERS if kind is Autoencoder else UNETS
    kind(presets["tiny-32"]).save(folder)
    return folder


def seeds_of(kind: type, name: str) -> Sequence[bytes]:
    return [(folder_of(kind) / name).read_bytes()]


def read_beside(kind: type, others: str, file: Path) -> object:
    """Load a folder with this file and a good other one."""
    if not (file.parent / others).exists():
        shutil.copyfile(folder_of(kind) / others, file.parent / others)
    return kind.load(file.parent)


def read_weights(file: Path) -> object:
    return read_header(file), read_tensors(file)


def schedulers() -> Sequence[bytes]:
    configs = [ScheduleConfig(), ScheduleConfig(noise_schedule="flow", shift=3.0)]
    predictions = ("velocity", "flow")
    return [
        to_json(to_diffusers(config, prediction)).encode()
        for config, prediction in zip(configs, predictions, strict=True)
    ]


def target(name: str, kind: type, others: str) -> FuzzTarget:
    read: Callable[[Path], object] = functools.partial(read_beside, kind, others)
    return FuzzTarget(name, functools.partial(seeds_of, kind, name), read)


TARGETS = [
    target("config.json", Autoencoder, WEIGHTS),
    FuzzTarget("in.safetensors", functools.partial(seeds_of, Autoencoder, WEIGHTS), read_weights),
    FuzzTarget("scheduler_config.json", schedulers, read_scheduler),
]
