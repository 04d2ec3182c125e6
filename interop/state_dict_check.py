"""Compare weights with the network they are for, and say what they are if they do not fit."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from foundation.errors import UserError, listed, one_line
from foundation.files import read_json
from foundation.json_reading import load_json
from interop.key_mapping import Shape

Shapes = Mapping[str, Shape]
LARGEST_HEADER = 100_000_000  # bytes; what safetensors allows
SHOWN = 3  # names of each kind of difference that a message shows

# Part of a name -> what the weights are; the first that occurs in any name decides.
NOT_MODELS = {
    "exp_avg": "the state of an optimizer",
    "lora": "a LoRA, which changes a model and is none",
    ".hada_w": "a LyCORIS, which changes a model and is none",
    "control_model.": "a ControlNet",
    "controlnet_": "a ControlNet",
    "ip_adapter.": "an IP-Adapter",
    "emb_params": "an embedding of textual inversion",
    "joint_blocks.": "a transformer of Stable Diffusion 3",
    "single_transformer_blocks.": "a transformer of FLUX's kind",
    "double_blocks.": "a transformer of FLUX's kind",
    "transformer_blocks.0.attn.add_k_proj.": "a transformer of Stable Diffusion 3",
    "adaln_single.": "a diffusion transformer",
    "adaLN_modulation.": "a diffusion transformer",
}
COMPONENTS = {
    "quantize.": "a VQ autoencoder, which has a codebook; only KL autoencoders are supported",
    "visual.": "a CLIP of open_clip with both its towers",
    "transformer.resblocks.": "a text encoder of open_clip",
    "vision_model.": "a CLIP of Hugging Face with both its towers",
    "token_embedding.": "a text encoder (CLIPTextModel)",
    "SelfAttention.": "a text encoder (T5)",
    "decoder.layers.": "an AutoencoderTiny, which has no posterior",
}
TIME_EMBEDDINGS = ("time_embed.", "time_embedding.")  # CompVis, diffusers
VECTOR_EMBEDDINGS = ("label_emb.0.", "add_embedding.", "class_embedding.linear_1.")
CLASS_EMBEDDINGS = ("label_emb.weight", "class_embedding.weight")
# Width of the text embedding -> model.
CONTEXT_WIDTHS = {768: "Stable Diffusion 1.x", 1024: "Stable Diffusion 2.x"}
CONTEXT_WIDTHS_WITH_VECTORS = {
    1024: "Stable Diffusion 2.1 unCLIP",
    1280: "the refiner of Stable Diffusion XL",
    2048: "Stable Diffusion XL",
}


def check_state_dict(
    weights: Mapping[str, Tensor],
    expected: Mapping[str, Tensor],
    source: Path,
    description: str,
    file_shapes: Shapes | None = None,
) -> None:
    """Refuse weights whose names, shapes or integer dtypes differ from those of a network.

    Args:
        weights: the tensors that were read.
        expected: the network's state dict; its values are not used.
        source: the file they come from, for the message.
        description: what they should be, such as "the autoencoder".
        file_shapes: shapes of all tensors in the file, if `weights` are only some of them.

    Raises:
        UserError: it lists the first differences, and says what the weights seem to be.
    """
    common = weights.keys() & expected.keys()
    actual, needed = ({k: describe_tensor(w[k]) for k in common} for w in (weights, expected))
    differences = {
        "missing": [
            f"{name} {describe_tensor(expected[name])}" for name in expected if name not in weights
        ],
        "different": [
            f"{name} is {actual[name]}, expected {needed[name]}"
            for name in expected
            if name in common and actual[name] != needed[name]
        ],
        "unexpected": [
            f"{name} {describe_tensor(weights[name])}" for name in weights if name not in expected
        ],
    }
    count = sum(map(len, differences.values()))
    if not count:
        return check_finite(weights, source)
    summary = "; ".join(
        f"{len(lines)} {kind}: {listed(lines[:SHOWN])}" + ", ..." * (len(lines) > SHOWN)
        for kind, lines in differences.items()
        if lines
    )
    shapes = file_shapes or {name: tuple(value.shape) for name, value in weights.items()}
    raise UserError(
        f"{source} does not contain {description}. {count} difference{'s' * (count > 1)}, "
        f"{summary}. It seems to be {identify_weights(shapes)}."
    )


def check_finite(weights: Mapping[str, Tensor], source: Path) -> None:
    """Refuse weights that are not numbers: what is computed with them is none either.

    Raises:
        UserError: it names the first.
    """
    for name, tensor in weights.items():
        if tensor.is_meta or not tensor.is_floating_point() or not tensor.numel():
            continue
        values = tensor if tensor.dtype.itemsize > 1 else tensor.float()  # float8 has no minimum
        low, high = torch.aminmax(values)
        if not (low.isfinite() and high.isfinite()):
            raise UserError(
                f"{source}: {one_line(name, 200)} is not finite (NaN or infinity). The weights are "
                "damaged, or the training that wrote them had diverged: use an earlier copy."
            )


def describe_tensor(tensor: Tensor) -> str:
    """Return the shape, and the dtype if it is not floating-point (all of those are allowed)."""
    shape = str(tuple(tensor.shape))
    return shape if tensor.is_floating_point() else f"{shape} of {tensor.dtype}"


def identify_weights(shapes: Shapes) -> str:
    """Guess from names and shapes what weights are, such as "the U-Net of Stable Diffusion 1.x"."""
    if not shapes:
        return "empty: it contains no tensor"
    for part, description in NOT_MODELS.items():
        if occurs([part], shapes):
            return description
    if occurs(TIME_EMBEDDINGS, shapes):
        return describe_unet(shapes)
    for part, description in COMPONENTS.items():
        if occurs([part], shapes):
            return description
    if occurs(["encoder.down_blocks.0.resnets."], shapes):
        return describe_autoencoder("an AutoencoderKL", shapes)
    if occurs(["encoder.down.", "decoder.up."], shapes):
        return describe_autoencoder("an autoencoder with CompVis' names", shapes)
    return "no model that is supported"


def occurs(parts: Iterable[str], shapes: Shapes) -> bool:
    """Return whether any of the parts occurs in any of the names."""
    return any(part in name for part in parts for name in shapes)


def describe_unet(shapes: Shapes) -> str:
    """Describe a U-Net, or a single file that contains one."""
    width = input_channels(shapes, "attn2.to_k.weight")
    channels = input_channels(shapes, "input_blocks.0.0.weight", "conv_in.weight")
    if width is None:
        family = "a U-Net without text"
    elif occurs(CLASS_EMBEDDINGS, shapes):
        family = "the x4 upscaler of Stable Diffusion 2"
    else:
        has_vectors = occurs(VECTOR_EMBEDDINGS, shapes)
        known = CONTEXT_WIDTHS_WITH_VECTORS if has_vectors else CONTEXT_WIDTHS
        family = known.get(width, f"a text-to-image model with text embeddings of width {width}")
    if channels not in (None, 4):
        family += f" with {channels} input channels" + " (inpainting)" * (channels == 9)
    if width is None:
        return family
    if occurs(["model.diffusion_model."], shapes) and occurs(["first_stage_model."], shapes):
        return f"a single-file checkpoint of {family}"
    return f"the U-Net of {family}" + " with CompVis' names" * occurs(["input_blocks."], shapes)


def describe_autoencoder(kind: str, shapes: Shapes) -> str:
    """Add the number of latent channels to the kind of an autoencoder."""
    if any(len(shape) == 5 for shape in shapes.values()):
        return "an autoencoder of videos"
    channels = input_channels(shapes, "decoder.conv_in.weight")
    return kind + (f" with latents of {channels} channels" if channels else "")


def input_channels(shapes: Shapes, *endings: str) -> int | None:
    """Return the size of axis 1 of the first weight whose name has one of the endings.

    Earlier endings are tried first.
    """
    for ending in endings:
        for name, shape in shapes.items():
            if name.endswith(ending) and len(shape) > 1:
                return shape[1]
    return None


def class_hint(folder: Path) -> str:
    """Return a sentence with the class that a JSON file of the folder names, or ""."""
    for place in (".", "model", "text_encoder", "model/text_encoder"):
        for name in ("model_index.json", "config.json"):
            try:
                content: dict[str, Any] = read_json(folder / place / name)
            except (OSError, UserError):
                continue
            known = content.get("architectures")
            classes = [content.get("_class_name"), *(known if isinstance(known, list) else [])]
            if kind := next(filter(None, classes), None) or content.get("model_type"):
                return f" Its {Path(place) / name} names the class {one_line(kind, 80)}."
    return ""


def damage_hint(file: Path) -> str:
    """Return a sentence about an unreadable file, if its first bytes show what it is; else ""."""
    size = file.stat().st_size
    with open(file, "rb") as stream:
        head = stream.read(64)
    if size == 0:
        return "It is empty."
    if head.startswith(b"version https://git-lfs"):
        return "It is a Git LFS pointer and not the file itself: run git lfs pull."
    if head.lstrip().startswith(b"<"):
        return "It is a web page that was saved instead of the file."
    if head.startswith(b"PK"):
        return "It starts like an archive of torch.save, such as a .ckpt."
    if head[8:9] == b"{":
        return f"It starts like a safetensors file{missing_bytes(file)}."
    return ""


def missing_bytes(file: Path) -> str:
    """Return how many bytes a safetensors file has and should have, if it is too short; else ""."""
    size = file.stat().st_size
    with open(file, "rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if 8 + length > size:
            return f", whose header should have {length} bytes; the whole file has {size}"
        try:
            header: Any = load_json(stream.read(min(length, LARGEST_HEADER)))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name[:2] != "__"]
            needed = 8 + length + max(ends, default=0)
        except (ValueError, TypeError, KeyError, IndexError, AttributeError):
            return ""
    return f", which should have {needed} bytes and has {size}" if needed > size else ""
