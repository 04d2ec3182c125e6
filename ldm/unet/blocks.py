"""The U-Net's ways down and up: what lies at one size of the feature maps, and at all of them.

Attribute names make the `state_dict` keys of diffusers.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import zip_longest
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from foundation.shapes import Context
from ldm.unet.config import UNetConfig, per_level
from ldm.unet.layers import (
    Downsample,
    Features,
    Kernel,
    ResidualBlock,
    Shift,
    SpatialTransformer,
    Text,
    TimeFeatures,
    Upsample,
    as_many,
)


def directly(function: Callable, *args: Any) -> Any:
    """A `call` of a stage: without gradient checkpointing. (operator.call stops the compiler.)"""
    return function(*args)


def layer(
    resnet: ResidualBlock,
    transformer: SpatialTransformer | None,
    x: Features,
    shift: Shift,
    text: Text | None,
) -> Float[Tensor, "_ _ h w"]:
    x = resnet(x, shift)
    return x if transformer is None else transformer(x, text)


class Stage(nn.Module):
    """The layers at one size: residual blocks, a transformer after each as long as these last.

    widths_in: channels that each residual block receives; all of them give `width`.
    Subclasses say how features enter and leave. They take time and context as they are, or what
    their layers make of them, by `shifts` and `read`. Their `call` runs a function, as it is or
    with gradient checkpointing.
    """

    def __init__(
        self,
        widths_in: list[int],
        width: int,
        transformers: int,
        *,
        heads: int,
        time_width: int,
        context_width: int,
        groups: int,
        dropout: float,
        linear_projection: bool,
        only_cross_attention: bool,
    ):
        super().__init__()
        self.resnets = nn.ModuleList(
            ResidualBlock(width_in, width, time_width=time_width, groups=groups, dropout=dropout)
            for width_in in widths_in
        )
        self.attentions = nn.ModuleList(
            SpatialTransformer(
                width,
                context_width,
                heads,
                groups=groups,
                linear_projection=linear_projection,
                only_cross_attention=only_cross_attention,
            )
            for _ in range(transformers)
        )

    def shifts(self, time: TimeFeatures) -> list[Shift]:
        return [resnet.shift(time) for resnet in self.resnets]

    def read(self, context: Context | None) -> list[Text]:
        return [transformer.read(context) for transformer in self.attentions]

    def kernels(self) -> list[Kernel]:
        return []

    def layers(
        self, time: TimeFeatures | list[Shift], text: Context | list[Text] | None
    ) -> Iterator[tuple[ResidualBlock, SpatialTransformer | None, Shift, Text | None]]:
        """With what each of them is told, ready for `layer` but for the features."""
        # By the class: where weights are spread, those of the instance gather and release them.
        shifts = time if isinstance(time, list) else Stage.shifts(self, time)
        texts = text if isinstance(text, list) else Stage.read(self, text)
        return zip_longest(self.resnets, self.attentions, shifts, texts)


class DownStage(Stage):
    def __init__(self, widths_in: list[int], width: int, *args, last: bool, **kwargs):
        super().__init__(widths_in, width, *args, **kwargs)
        self.downsamplers = nn.ModuleList([] if last else [Downsample(width)])

    def forward(
        self,
        x: Features,
        time: TimeFeatures | list[Shift],
        text: Context | list[Text] | None,
        call: Callable,
    ) -> list[Float[Tensor, "_ _ _ _"]]:
        """The output of every layer, for the way up; the last one goes on."""
        outputs = []
        for resnet, transformer, shift, told in self.layers(time, text):
            x = call(layer, resnet, transformer, x, shift, told)
            outputs.append(x)
        return outputs + [downsample(x) for downsample in self.downsamplers]


class MidStage(Stage):
    def forward(
        self,
        x: Features,
        time: TimeFeatures | list[Shift],
        text: Context | list[Text] | None,
        call: Callable,
    ) -> Float[Tensor, "_ c h w"]:
        for resnet, transformer, shift, told in self.layers(time, text):
            x = call(layer, resnet, transformer, x, shift, told)
        return x


class UpStage(Stage):
    def __init__(self, widths_in: list[int], width: int, *args, last: bool, **kwargs):
        super().__init__(widths_in, width, *args, **kwargs)
        self.upsamplers = nn.ModuleList([] if last else [Upsample(width)])

    def kernels(self) -> list[Kernel]:
        """For calls without gradient on a CPU, where they make the doubling faster."""
        return [upsample.kernel() for upsample in self.upsamplers]

    def forward(
        self,
        x: Features,
        skips: list[Float[Tensor, "_ _ _ _"]],
        time: TimeFeatures | list[Shift],
        text: Context | list[Text] | None,
        call: Callable,
        kernels: Sequence[Kernel] = (),
    ) -> Float[Tensor, "_ _ _ _"]:
        """skips: outputs of the way down, one for each layer, the last first."""
        layers = zip(skips, self.layers(time, text), strict=True)
        for skip, (resnet, transformer, shift, told) in layers:
            rows = max(len(x), len(skip))
            x = torch.cat([as_many(x, rows), as_many(skip, rows)], dim=1)
            x = call(layer, resnet, transformer, x, shift, told)
        for upsample, kernel in zip_longest(self.upsamplers, kernels):
            x = upsample(x, kernel)
        return x


def down_blocks(config: UNetConfig) -> tuple[nn.ModuleList, list[int]]:
    """And the channels of all outputs that the way up gets to see."""
    widths = config.block_out_channels
    blocks, skips = nn.ModuleList(), [widths[0]]
    depths = per_level(config.layers_per_block, len(widths))
    kinds = config.down_block_types
    for level, (width, depth, kind) in enumerate(zip(widths, depths, kinds, strict=True)):
        widths_in = [skips[-1]] + [width] * (depth - 1)
        transformers = depth if "CrossAttn" in kind else 0
        last = level == len(widths) - 1
        blocks.append(DownStage(widths_in, width, transformers, last=last, **config.stage(level)))
        skips += [width] * (depth if last else depth + 1)
    return blocks, skips


def mid_block(config: UNetConfig) -> MidStage:
    width, attends = config.block_out_channels[-1], "CrossAttn" in config.mid_block_type
    options = config.stage(-1) | {"only_cross_attention": False}
    return MidStage([width] * (1 + attends), width, int(attends), **options)


def up_blocks(config: UNetConfig, skips: list[int]) -> nn.ModuleList:
    """skips: as `down_blocks` gives them."""
    skips, blocks, arriving = list(skips), nn.ModuleList(), config.block_out_channels[-1]
    depths = per_level(config.layers_per_block, len(config.block_out_channels))
    for level, kind in zip(reversed(range(len(depths))), config.up_block_types, strict=True):
        width, depth = config.block_out_channels[level], depths[level] + 1
        widths_in = [x + skips.pop() for x in [arriving] + [width] * (depth - 1)]
        transformers = depth if "CrossAttn" in kind else 0
        last = level == 0
        blocks.append(UpStage(widths_in, width, transformers, last=last, **config.stage(level)))
        arriving = width
    return blocks
