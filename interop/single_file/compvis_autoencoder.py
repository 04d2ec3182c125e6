"""The keys of a KL autoencoder in CompVis' codebase, and the scales of latents that it leaves out.

    encoder.down.I.block.J   a residual block; nin_shortcut where the width changes
    encoder.mid              block_1, attn_1 (matrices stored as 1x1 convolutions), block_2
    decoder.up.I.block.J     I is 0 at the highest resolution, so the decoder runs it last

Keys come without the prefix that they have in a single file.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor

from interop.key_mapping import Shape, Value, axis_size, invert, rename_keys

STABLE_DIFFUSION = {"scaling_factor": 0.18215, "shift_factor": None}
STABLE_DIFFUSION_XL = {"scaling_factor": 0.13025, "shift_factor": None}
STABLE_DIFFUSION_3 = {"scaling_factor": 1.5305, "shift_factor": 0.0609}
UPSCALER = {"scaling_factor": 0.08333, "shift_factor": None}

ATTENTION = {  # diffusers -> CompVis
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
}
# Keys in diffusers of the matrices that CompVis stores as 1x1 convolutions.
MATRIX = re.compile(r"mid_block\.attentions\.0\.to_(q|k|v|out\.0)\.weight$")


def to_compvis(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename diffusers' keys to CompVis', and turn the matrices of attention into convolutions."""
    return compvis_keys(
        {
            name: value[:, :, None, None] if MATRIX.search(name) else value
            for name, value in weights.items()
        }
    )


def from_compvis(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename CompVis' keys to diffusers', and turn the convolutions of attention into matrices."""
    return {
        name: value.flatten(1) if MATRIX.search(name) else value
        for name, value in diffusers_keys(weights).items()
    }


def compvis_keys(weights: Mapping[str, Value]) -> dict[str, Value]:
    """Rename diffusers' keys to CompVis'; the values stay as they are."""
    levels = 1 + highest(weights, r"^encoder\.down_blocks\.(\d+)\.")
    layers = 1 + highest(weights, r"\.resnets\.(\d+)\.")
    return rename_keys(weights, dict(module_names(levels, layers)))


def diffusers_keys(weights: Mapping[str, Value]) -> dict[str, Value]:
    """Rename CompVis' keys to diffusers'; the values stay as they are."""
    levels = 1 + highest(weights, r"^encoder\.down\.(\d+)\.")
    layers = 1 + highest(weights, r"\.block\.(\d+)\.")
    return rename_keys(weights, invert(dict(module_names(levels, layers))))


def highest(names: Iterable[str], pattern: str) -> int:
    """Return the highest number that the group of the pattern matches in any name, or -1."""
    return max((int(m[1]) for name in names if (m := re.search(pattern, name))), default=-1)


def module_names(levels: int, layers: int) -> Iterator[tuple[str, str]]:
    """Yield the name of every module in diffusers and in CompVis.

    layers: the most residual blocks of any level, of the encoder or the decoder.
    """
    for network in ("encoder", "decoder"):
        yield f"{network}.conv_norm_out", f"{network}.norm_out"
        for block in (0, 1):
            yield f"{network}.mid_block.resnets.{block}", f"{network}.mid.block_{block + 1}"
        for in_diffusers, in_compvis in ATTENTION.items():
            attention = f"{network}.mid_block.attentions.0.{in_diffusers}"
            yield attention, f"{network}.mid.attn_1.{in_compvis}"
    for level in range(levels):
        down = f"encoder.down_blocks.{level}", f"encoder.down.{level}"
        up = f"decoder.up_blocks.{level}", f"decoder.up.{levels - 1 - level}"
        for in_diffusers, in_compvis in (down, up):
            for layer in range(layers):
                block = f"{in_diffusers}.resnets.{layer}", f"{in_compvis}.block.{layer}"
                yield block
                yield f"{block[0]}.conv_shortcut", f"{block[1]}.nin_shortcut"
        yield f"{down[0]}.downsamplers.0.conv", f"{down[1]}.downsample.conv"
        yield f"{up[0]}.upsamplers.0.conv", f"{up[1]}.upsample.conv"


def infer_config(shapes: Mapping[str, Shape]) -> dict[str, Any]:
    """Infer the content of config.json from shapes, except the scale, which shows in no shape.

    shapes: by diffusers' keys.

    Raises:
        UserError: a weight is missing; the message does not name the file.
    """
    levels = 1 + highest(shapes, r"^encoder\.down_blocks\.(\d+)\.")
    return {
        "in_channels": axis_size(shapes, "encoder.conv_in.weight", 1),
        "out_channels": axis_size(shapes, "decoder.conv_out.weight", 0),
        "block_out_channels": tuple(
            axis_size(shapes, f"encoder.down_blocks.{level}.resnets.0.conv2.weight", 0)
            for level in range(levels)
        ),
        "layers_per_block": 1 + highest(shapes, r"\.down_blocks\.0\.resnets\.(\d+)\."),
        "latent_channels": axis_size(shapes, "decoder.conv_in.weight", 1),
        "norm_num_groups": 32,
        "use_quant_conv": "quant_conv.weight" in shapes,
        "use_post_quant_conv": "post_quant_conv.weight" in shapes,
        "mid_block_add_attention": "encoder.mid_block.attentions.0.to_q.weight" in shapes,
        "sample_size": 256,
        "force_upcast": True,
    }
