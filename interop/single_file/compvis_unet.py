"""The U-Net under CompVis' names, which count the blocks of all levels through:

    input_blocks.0.0      the first convolution
    input_blocks.N.0, .1  a residual block and its transformer, or a step down (0.op)
    middle_block.0, 1, 2  residual block, transformer, residual block
    output_blocks.N       a residual block, its transformer, and after a level's last a step up

Names without the prefix that a single file has before them. Values are tensors or their shapes.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from foundation.errors import UserError
from interop.key_mapping import Shape, Value, inverted, renamed, size

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
    """What happens at one size of the feature maps, on the way down or up."""

    layers: int  # residual blocks
    attends: bool  # a transformer after each
    resamples: bool  # then a step to the next size


def to_compvis(weights: Mapping[str, Value]) -> dict[str, Value]:
    down, up = (levels_in_diffusers(weights, way) for way in ("down", "up"))
    return renamed(weights, dict(modules(down, up)))


def from_compvis(weights: Mapping[str, Value]) -> dict[str, Value]:
    down, up = (levels_in_compvis(weights, way) for way in ("input", "output"))
    return renamed(weights, inverted(dict(modules(down, up))))


def modules(down: list[Level], up: list[Level]) -> Iterator[tuple[str, str]]:
    """Every module's name in diffusers, and in CompVis."""
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
            place = f"output_blocks.{index - 1}.{1 + level.attends}"
            yield f"up_blocks.{i}.upsamplers.0.conv", f"{place}.conv"


def residual_block(theirs: str, compvis: str) -> Iterator[tuple[str, str]]:
    for name, place in RESIDUAL_BLOCK.items():
        yield f"{theirs}.{name}", f"{compvis}.{place}"


def levels_in_diffusers(names: Iterable[str], way: str) -> list[Level]:
    """way: "down" or "up"."""
    pattern = re.compile(rf"{way}_blocks\.(\d+)\.([a-z]+)\.(\d+)\.")
    found = {(int(m[1]), m[2], int(m[3])) for name in names if (m := pattern.match(name))}
    return [
        Level(
            layers=sum(1 for i, kind, _ in found if (i, kind) == (level, "resnets")),
            attends=any((i, kind) == (level, "attentions") for i, kind, _ in found),
            resamples=any((i, kind) == (level, f"{way}samplers") for i, kind, _ in found),
        )
        for level in range(1 + max((i for i, _, _ in found), default=-1))
    ]


def levels_in_compvis(names: Iterable[str], way: str) -> list[Level]:
    """way: "input" or "output". A step to another size ends a level."""
    pattern = re.compile(rf"{way}_blocks\.(\d+)\.\d+\.([a-z_]+)\.")
    blocks: dict[int, set[str]] = {}
    for name in names:
        if match := pattern.match(name):
            blocks.setdefault(int(match[1]), set()).add(match[2])
    levels, layers, attends = [], 0, False
    for _, parts in sorted(blocks.items()):
        layers += "in_layers" in parts
        attends |= "transformer_blocks" in parts
        if parts & {"op", "conv"}:
            levels.append(Level(layers, attends, resamples=True))
            layers, attends = 0, False
    return levels + [Level(layers, attends, resamples=False)] * (layers > 0)


def infer_config(shapes: Mapping[str, Shape]) -> dict[str, Any]:
    """What config.json would say, as far as the U-Nets of Stable Diffusion show it in shapes.

    shapes: by diffusers' names.

    Raises:
        ValueError: it is not to be told; the message is the reason.
    """
    down, up = (levels_in_diffusers(shapes, way) for way in ("down", "up"))
    widths = tuple(
        size(shapes, f"down_blocks.{i}.resnets.0.conv1.weight", 0) for i in range(len(down))
    )
    layers = tuple(level.layers for level in down)
    mid = "mid_block.attentions.0.norm.weight" in shapes
    return {
        "in_channels": size(shapes, "conv_in.weight", 1),
        "out_channels": size(shapes, "conv_out.weight", 0),
        "block_out_channels": widths,
        "layers_per_block": layers[0] if len(set(layers)) == 1 else layers,
        "down_block_types": tuple("CrossAttn" * x.attends + "DownBlock2D" for x in down),
        "mid_block_type": "UNetMidBlock2D" + "CrossAttn" * mid,
        "up_block_types": tuple("CrossAttn" * x.attends + "UpBlock2D" for x in up),
        "norm_num_groups": 32,
        **infer_attention(shapes, widths),
    }


def infer_attention(shapes: Mapping[str, Shape], widths: tuple[int, ...]) -> dict[str, Any]:
    """Which of the known families it is, and what only that tells."""
    crossing = [name for name in shapes if name.endswith("attn2.to_k.weight")]
    if not crossing:
        return {"sample_size": None}
    context = size(shapes, crossing[0], 1)
    linear = all(
        len(shape) == 2 for name, shape in shapes.items() if name.endswith("proj_in.weight")
    )
    found = {"cross_attention_dim": context, "use_linear_projection": linear}
    labels = shapes.get("class_embedding.weight")
    alone = tuple(looks_at_text_alone(shapes, level) for level in range(len(widths)))
    if (context, linear, labels, any(alone)) == (768, False, None, False):
        return found | {"attention_head_dim": 8, "sample_size": 64}
    if (context, linear) == (1024, True) and labels:  # the x4 upscaler
        found |= {"attention_head_dim": 8, "sample_size": 128, "num_class_embeds": labels[0]}
        return found | {"only_cross_attention": alone if any(alone) else False}
    heads = tuple(1 if width % 64 else width // 64 for width in widths)
    attending = {size(shapes, name, 0) for name in crossing}
    if (context, linear, any(alone)) == (1024, True, False) and not any(w % 64 for w in attending):
        # The sample size depends on what it predicts; in half precision 2.1 overflows in attention.
        return found | {"attention_head_dim": heads, "sample_size": None, "upcast_attention": True}
    raise UserError(
        f"the number of its attention heads shows in no shape, and text vectors of width {context} "
        f"with {'matrices' if linear else '1x1 convolutions'} around the transformers are of no "
        "known family (Stable Diffusion 1.x: 768, convolutions, 8 heads; 2.x: 1024, matrices, 64 "
        "channels a head)"
    )


def looks_at_text_alone(shapes: Mapping[str, Shape], level: int) -> bool:
    """Whether what else is attention of pixels to each other takes text vectors in this level."""
    name = f"down_blocks.{level}.attentions.0.transformer_blocks.0.attn1.to_k.weight"
    return name in shapes and shapes[name][0] != shapes[name][1]
