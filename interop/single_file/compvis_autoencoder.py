"""The KL autoencoder under CompVis' names, and the scale that its file never says.

    encoder.down.I.block.J   a residual block; nin_shortcut where the width changes
    encoder.mid              block_1, attn_1 (matrices stored as 1x1 convolutions), block_2
    decoder.up.I.block.J     I is 0 at the highest resolution, so the decoder runs it last

Names without the prefix that a single file has before them.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from interop.key_mapping import Shape, Value, inverted, renamed, size

STABLE_DIFFUSION = {"scaling_factor": 0.18215, "shift_factor": None}
STABLE_DIFFUSION_XL = {"scaling_factor": 0.13025, "shift_factor": None}
STABLE_DIFFUSION_3 = {"scaling_factor": 1.5305, "shift_factor": 0.0609}
UPSCALER = {"scaling_factor": 0.08333, "shift_factor": None}

ATTENTION = {
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
}
MATRIX = re.compile(r"mid_block\.attentions\.0\.to_(q|k|v|out\.0)\.weight$")  # in diffusers


def to_compvis(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return compvis_names(
        {
            name: value[:, :, None, None] if MATRIX.search(name) else value
            for name, value in weights.items()
        }
    )


def compvis_names(weights: Mapping[str, Value]) -> dict[str, Value]:
    levels = count_levels(weights, r"encoder\.down_blocks\.(\d+)\.")
    return renamed(weights, dict(modules(levels, count_layers(weights, r"resnets\.(\d+)\."))))


def from_compvis(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        name: value.flatten(1) if MATRIX.search(name) else value
        for name, value in diffusers_names(weights).items()
    }


def diffusers_names(weights: Mapping[str, Value]) -> dict[str, Value]:
    """Tensors as they are stored, or whatever stands for them."""
    levels = count_levels(weights, r"encoder\.down\.(\d+)\.")
    layers = count_layers(weights, r"\.block\.(\d+)\.")
    return renamed(weights, inverted(dict(modules(levels, layers))))


def count_levels(names: Mapping[str, Value], pattern: str) -> int:
    return 1 + max((int(m[1]) for name in names if (m := re.match(pattern, name))), default=-1)


def count_layers(names: Mapping[str, Value], pattern: str) -> int:
    """At most, in any level of either network."""
    return 1 + max((int(m[1]) for name in names if (m := re.search(pattern, name))), default=-1)


def modules(levels: int, layers: int) -> Iterator[tuple[str, str]]:
    """Every module's name in diffusers, and in CompVis."""
    for network in ("encoder", "decoder"):
        yield f"{network}.conv_norm_out", f"{network}.norm_out"
        for block in (0, 1):
            yield f"{network}.mid_block.resnets.{block}", f"{network}.mid.block_{block + 1}"
        for name, place in ATTENTION.items():
            yield f"{network}.mid_block.attentions.0.{name}", f"{network}.mid.attn_1.{place}"
    for level in range(levels):
        down = f"encoder.down_blocks.{level}", f"encoder.down.{level}"
        up = f"decoder.up_blocks.{level}", f"decoder.up.{levels - 1 - level}"
        for theirs, compvis in (down, up):
            for layer in range(layers):
                block = f"{theirs}.resnets.{layer}", f"{compvis}.block.{layer}"
                yield block
                yield f"{block[0]}.conv_shortcut", f"{block[1]}.nin_shortcut"
        yield f"{down[0]}.downsamplers.0.conv", f"{down[1]}.downsample.conv"
        yield f"{up[0]}.upsamplers.0.conv", f"{up[1]}.upsample.conv"


def infer_config(shapes: Mapping[str, Shape]) -> dict[str, Any]:
    """What config.json would say, but for the scale, which shows in no shape.

    shapes: by diffusers' names.
    """
    levels = count_levels(shapes, r"encoder\.down_blocks\.(\d+)\.")
    first_level = {name: shape for name, shape in shapes.items() if ".down_blocks.0." in name}
    return {
        "in_channels": size(shapes, "encoder.conv_in.weight", 1),
        "out_channels": size(shapes, "decoder.conv_out.weight", 0),
        "block_out_channels": tuple(
            size(shapes, f"encoder.down_blocks.{level}.resnets.0.conv2.weight", 0)
            for level in range(levels)
        ),
        "layers_per_block": count_layers(first_level, r"resnets\.(\d+)\."),
        "latent_channels": size(shapes, "decoder.conv_in.weight", 1),
        "norm_num_groups": 32,
        "use_quant_conv": "quant_conv.weight" in shapes,
        "use_post_quant_conv": "post_quant_conv.weight" in shapes,
        "mid_block_add_attention": "encoder.mid_block.attentions.0.to_q.weight" in shapes,
        "sample_size": 256,
        "force_upcast": True,
    }
