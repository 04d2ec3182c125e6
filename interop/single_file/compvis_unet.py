"""The keys of a U-Net in CompVis' codebase, which numbers the blocks of all levels in sequence:

    input_blocks.0.0      the first convolution
    input_blocks.N.0, .1  a residual block and its transformer, or a downsampling layer (0.op)
    middle_block.0, 1, 2  residual block, transformer, residual block
    output_blocks.N       a residual block, its transformer, and at a level's end upsampling

Keys come without the prefix that they have in a single file. Values may be tensors, their shapes,
or their names elsewhere.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from foundation.errors import UserError
from interop.key_mapping import Shape, Value, axis_size, invert, rename_keys

OUTSIDE_BLOCKS = {  # diffusers -> CompVis
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "class_embedding": "label_emb",
    "class_embedding.linear_1": "label_emb.0.0",
    "class_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "mid_block.attentions.0": "middle_block.1",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
RESIDUAL_BLOCK = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}


@dataclass(frozen=True)
class Level:
    """The blocks at one resolution, of the downsampling or the upsampling half."""

    layers: int  # residual blocks
    attends: bool  # there is a transformer after each
    resamples: bool  # the level ends with a change of resolution


def to_compvis(weights: Mapping[str, Value]) -> dict[str, Value]:
    """Rename diffusers' keys to CompVis'."""
    down, up = (levels_in_diffusers(weights, half) for half in ("down", "up"))
    return rename_keys(weights, dict(module_names(down, up)))


def from_compvis(weights: Mapping[str, Value]) -> dict[str, Value]:
    """Rename CompVis' keys to diffusers'."""
    down, up = (levels_in_compvis(weights, half) for half in ("input", "output"))
    return rename_keys(weights, invert(dict(module_names(down, up))))


def module_names(down: list[Level], up: list[Level]) -> Iterator[tuple[str, str]]:
    """Yield the name of every module in diffusers and in CompVis."""
    yield from OUTSIDE_BLOCKS.items()
    for layer in (0, 1):
        yield from residual_block(f"mid_block.resnets.{layer}", f"middle_block.{2 * layer}")
    index = 1
    for i, level in enumerate(down):
        for layer in range(level.layers):
            yield from residual_block(f"down_blocks.{i}.resnets.{layer}", f"input_blocks.{index}.0")
            yield f"down_blocks.{i}.attentions.{layer}", f"input_blocks.{index}.1"
            index += 1
        if level.resamples:
            yield f"down_blocks.{i}.downsamplers.0.conv", f"input_blocks.{index}.0.op"
            index += 1
    index = 0
    for i, level in enumerate(up):
        for layer in range(level.layers):
            yield from residual_block(f"up_blocks.{i}.resnets.{layer}", f"output_blocks.{index}.0")
            if level.attends:
                yield f"up_blocks.{i}.attentions.{layer}", f"output_blocks.{index}.1"
            index += 1
        if level.resamples:
            upsampler = f"output_blocks.{index - 1}.{1 + level.attends}"
            yield f"up_blocks.{i}.upsamplers.0.conv", f"{upsampler}.conv"


def residual_block(diffusers_name: str, compvis_name: str) -> Iterator[tuple[str, str]]:
    """Yield the name of every module of one residual block in diffusers and in CompVis."""
    for in_diffusers, in_compvis in RESIDUAL_BLOCK.items():
        yield f"{diffusers_name}.{in_diffusers}", f"{compvis_name}.{in_compvis}"


def levels_in_diffusers(names: Iterable[str], half: str) -> list[Level]:
    """Derive the levels from diffusers' keys; half: "down" or "up"."""
    pattern = re.compile(rf"{half}_blocks\.(\d+)\.([a-z]+)\.(\d+)\.")
    modules = {(int(m[1]), m[2], int(m[3])) for name in names if (m := pattern.match(name))}
    return [
        Level(
            layers=sum(1 for i, kind, _ in modules if (i, kind) == (level, "resnets")),
            attends=any((i, kind) == (level, "attentions") for i, kind, _ in modules),
            resamples=any((i, kind) == (level, f"{half}samplers") for i, kind, _ in modules),
        )
        for level in range(1 + max((i for i, _, _ in modules), default=-1))
    ]


def levels_in_compvis(names: Iterable[str], half: str) -> list[Level]:
    """Derive the levels from CompVis' keys; half: "input" or "output".

    A change of resolution ends a level.
    """
    pattern = re.compile(rf"{half}_blocks\.(\d+)\.\d+\.([a-z_]+)\.")
    blocks: dict[int, set[str]] = {}
    for name in names:
        if match := pattern.match(name):
            blocks.setdefault(int(match[1]), set()).add(match[2])
    levels: list[Level] = []
    layers, attends = 0, False
    for _, modules in sorted(blocks.items()):
        layers += "in_layers" in modules
        attends |= "transformer_blocks" in modules
        if modules & {"op", "conv"}:
            levels.append(Level(layers, attends, resamples=True))
            layers, attends = 0, False
    if layers:
        levels.append(Level(layers, attends, resamples=False))
    return levels


def infer_config(shapes: Mapping[str, Shape]) -> dict[str, Any]:
    """Infer the content of config.json, for a U-Net of Stable Diffusion, from shapes.

    shapes: by diffusers' keys.

    Raises:
        UserError: the shapes do not determine it; the message is the reason, without a file name.
    """
    down, up = (levels_in_diffusers(shapes, half) for half in ("down", "up"))
    widths = tuple(
        axis_size(shapes, f"down_blocks.{i}.resnets.0.conv1.weight", 0) for i in range(len(down))
    )
    layers = tuple(level.layers for level in down)
    mid = "mid_block.attentions.0.norm.weight" in shapes
    return {
        "in_channels": axis_size(shapes, "conv_in.weight", 1),
        "out_channels": axis_size(shapes, "conv_out.weight", 0),
        "block_out_channels": widths,
        "layers_per_block": layers[0] if len(set(layers)) == 1 else layers,
        "down_block_types": tuple("CrossAttn" * x.attends + "DownBlock2D" for x in down),
        "mid_block_type": "UNetMidBlock2D" + "CrossAttn" * mid,
        "up_block_types": tuple("CrossAttn" * x.attends + "UpBlock2D" for x in up),
        "norm_num_groups": 32,
        "addition_embed_type": None,  # the layout has no place for pooled text
        **infer_attention(shapes, widths),
    }


def infer_attention(shapes: Mapping[str, Shape], widths: tuple[int, ...]) -> dict[str, Any]:
    """Infer which family of U-Nets it is, and the settings that only the family determines.

    No shape shows the number of attention heads.
    """
    text_keys = [name for name in shapes if name.endswith("attn2.to_k.weight")]
    if not text_keys:
        return {"sample_size": None}
    context = axis_size(shapes, text_keys[0], 1)
    linear = all(
        len(shape) == 2 for name, shape in shapes.items() if name.endswith("proj_in.weight")
    )
    fields: dict[str, Any] = {"cross_attention_dim": context, "use_linear_projection": linear}
    labels = shapes.get("class_embedding.weight")
    text_only = tuple(attends_to_text_only(shapes, level) for level in range(len(widths)))
    if (context, linear, labels, any(text_only)) == (768, False, None, False):
        return fields | {"attention_head_dim": 8, "sample_size": 64}
    if (context, linear) == (1024, True) and labels:  # the x4 upscaler
        fields |= {"attention_head_dim": 8, "sample_size": 128, "num_class_embeds": labels[0]}
        return fields | {"only_cross_attention": text_only if any(text_only) else False}
    heads = tuple(1 if width % 64 else width // 64 for width in widths)
    attending = {axis_size(shapes, name, 0) for name in text_keys}
    is_sd2 = (context, linear, any(text_only)) == (1024, True, False)
    if is_sd2 and not any(width % 64 for width in attending):
        # The sample size depends on what the U-Net predicts. In half precision, attention of 2.1
        # overflows.
        return fields | {"attention_head_dim": heads, "sample_size": None, "upcast_attention": True}
    raise UserError(
        "the number of its attention heads shows in no shape, and no known family has text "
        f"embeddings of width {context} with "
        f"{'linear layers' if linear else '1x1 convolutions'} around the transformers (Stable "
        "Diffusion 1.x: 768, convolutions, 8 heads; 2.x: 1024, linear layers, 64 channels a head)"
    )


def attends_to_text_only(shapes: Mapping[str, Shape], level: int) -> bool:
    """Return whether the self-attention of a level is cross-attention to the text instead."""
    name = f"down_blocks.{level}.attentions.0.transformer_blocks.0.attn1.to_k.weight"
    return name in shapes and shapes[name][0] != shapes[name][1]
