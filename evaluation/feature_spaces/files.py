"""Feature spaces from files of the user: image towers of open_clip, and TorchScript."""

import warnings
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from evaluation.feature_spaces.space import Features, FeatureSpace, Pictures, bicubic
from foundation.errors import MissingFileError, UserError, one_line
from foundation.files import read_json
from foundation.hashing import file_sha256
from interop.open_clip_models import CONFIG_FILE, built_in_config
from interop.safetensors_io import read_tensors

TOWER_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")  # open_clip's names
SCRIPT_ENDINGS = (".pt", ".pth", ".ts", ".torchscript", ".jit")


def folder_space(folder: Path, name: str, device: torch.device) -> FeatureSpace:
    """Load the image tower of a folder in open_clip's layout."""
    content = read_json(folder / CONFIG_FILE)
    weights = next((folder / one for one in TOWER_WEIGHTS if (folder / one).is_file()), None)
    if weights is None or not isinstance(content.get("model_cfg"), dict):
        raise MissingFileError(
            f"{folder} holds no CLIP of open_clip: it needs {CONFIG_FILE} with model_cfg, and "
            f"{' or '.join(TOWER_WEIGHTS)}."
        )
    config = {key: value for key, value in content["model_cfg"].items() if value is not None}
    preprocess = content.get("preprocess_cfg") or {}
    network = make_tower(config, folder / CONFIG_FILE)
    return tower_space(network, weights, name, preprocess, device)


def architecture_space(architecture: str, weights: Path, device: torch.device) -> FeatureSpace:
    """Load the image tower of a built-in architecture of open_clip from a file of weights."""
    network = make_tower(built_in_config(architecture), weights)
    return tower_space(network, weights, f"{architecture}:{weights.name}", {}, device)


def make_tower(config: dict[str, Any], described: Path) -> nn.Module:
    """Make a CLIP of open_clip with random weights; the generator of the caller is left alone.

    described: what to name if open_clip cannot make it.
    """
    import open_clip  # pyright: ignore[reportMissingTypeStubs] # slow: with torchvision

    kinds = {"CLIP": open_clip.CLIP, "custom": open_clip.CustomTextCLIP}
    kind = (
        "custom"
        if config.get("custom_text") or "hf_model_name" in config.get("text_cfg", {})
        else "CLIP"
    )
    arguments = {key: value for key, value in config.items() if key != "custom_text"}
    try:
        with torch.random.fork_rng(devices=[]):  # pyright: ignore[reportUnknownMemberType]
            return kinds[kind](**arguments)
    except (TypeError, ValueError, KeyError, RuntimeError, AssertionError) as error:
        raise UserError(
            f"open_clip cannot make the network that {described} describes: {one_line(error, 300)}"
        ) from error


def tower_space(
    network: nn.Module,
    weights: Path,
    name: str,
    preprocess: dict[str, Any],
    device: torch.device,
) -> FeatureSpace:
    """Load weights into a CLIP and return its image tower, with its own normalization."""
    import open_clip  # pyright: ignore[reportMissingTypeStubs] # slow: with torchvision

    state = {key.removeprefix("module."): value for key, value in read_tensors(weights).items()}
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise UserError(
            f"{weights} does not hold the weights of {name}: {one_line(error, 300)}"
        ) from error
    visual = cast(Any, network.eval().requires_grad_(False).to(device)).visual
    size = preprocess.get("size") or visual.image_size
    size = size[0] if isinstance(size, list | tuple) else size
    mean = (
        preprocess.get("mean")
        or getattr(visual, "image_mean", None)
        or open_clip.OPENAI_DATASET_MEAN
    )
    std = (
        preprocess.get("std") or getattr(visual, "image_std", None) or open_clip.OPENAI_DATASET_STD
    )
    shift, scale = (torch.tensor(one, device=device)[:, None, None] * 255 for one in (mean, std))

    def run(images: Pictures) -> Features:
        pixels = (bicubic(images, size) - shift) / scale
        return Features(cast(Any, network).encode_image(pixels, normalize=True))

    return FeatureSpace(
        name=name,
        sha256=file_sha256(weights),
        resize=f"to {size} pixels, bicubic with antialiasing (PyTorch)",
        version=f"open_clip {open_clip.__version__}",
        run=run,
        is_clip=True,
        device=device,
    )


def script_space(file: Path, device: torch.device) -> FeatureSpace:
    """Load a TorchScript network that takes 8-bit images (b, 3, h, w) and returns (b, d).

    Networks with an argument `return_features`, such as NVIDIA's inception-2015-12-05.pt, give
    their features with it and their logits without.

    Raises:
        UserError: it is no TorchScript file.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that TorchScript is deprecated
            network: Any = torch.jit.load(str(file), map_location=device)  # pyright: ignore
    except (RuntimeError, ValueError, OSError) as error:
        raise UserError(
            f"{file} is no TorchScript file: {one_line(error, 200)} Save a network with "
            "torch.jit.script(network).save(...); it gets 8-bit images (b, 3, h, w)."
        ) from error
    network.eval()
    names = [argument.name for argument in network.forward.schema.arguments]
    both = "return_features" in names

    def run(images: Pictures) -> Features:
        try:
            if both:
                return Features(network(images, return_features=True), network(images))
            return Features(network(images))
        except RuntimeError as error:
            raise UserError(
                f"{file} cannot compute features of 8-bit images {tuple(images.shape)}: "
                f"{one_line(error, 300)}"
            ) from error

    return FeatureSpace(
        name=file.name,
        sha256=file_sha256(file),
        resize="none; the network gets 8-bit images as they are",
        version=f"TorchScript, PyTorch {torch.__version__}",
        run=run,
        device=device,
    )
