"""The blocks of the U-Net: the layers at one size of the feature maps, and all blocks of a side.

Attribute names make the `state_dict` keys of diffusers.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from itertools import zip_longest
from typing import Unpack

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.backends import cuda
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint  # pyright: ignore[reportUnknownVariableType]

from foundation.shapes import Context, Features
from ldm.unet.config import BlockOptions, UNetConfig, per_level
from ldm.unet.layers import (
    AttentionLayer,
    Downsample,
    ResidualBlock,
    SelfAttention,
    SpatialTransformer,
    TimeFeatures,
    Upsample,
    of_type,
)

AnyFeatures = Float[Tensor, "b _ h w"]  # of any number of channels


class UNetBlock(nn.Module):
    """Residual blocks at one size, each followed by an attention layer as long as these last.

    Subclasses say how features enter and leave.

    Args:
        widths_in: channels that each residual block receives; all of them give `width`.
        attentions: how many attention layers there are.
    """

    def __init__(
        self, widths_in: list[int], width: int, attentions: int, **options: Unpack[BlockOptions]
    ):
        super().__init__()
        self.gradient_checkpointing = False
        self.resnets = nn.ModuleList(
            ResidualBlock(
                width_in,
                width,
                time_width=options["time_width"],
                groups=options["groups"],
                dropout=options["dropout"],
            )
            for width_in in widths_in
        )
        self.attentions = nn.ModuleList(make_attention(width, **options) for _ in range(attentions))

    def layers(self) -> Iterator[tuple[ResidualBlock, AttentionLayer | None]]:
        """Return (residual block, attention layer or None) in the order in which features pass."""
        resnets = of_type(self.resnets, ResidualBlock)
        attentions = of_type(self.attentions, AttentionLayer)
        return zip_longest(resnets, attentions)

    def run_layer(
        self,
        resnet: ResidualBlock,
        attention: AttentionLayer | None,
        x: AnyFeatures,
        time: TimeFeatures,
        context: Context | None,
    ) -> AnyFeatures:
        """Apply a residual block and the attention after it; checkpointed if that is set."""
        if self.gradient_checkpointing and torch.is_grad_enabled():
            # Autocast is restored by `checkpoint`, the kernels of attention on a CPU are not.
            context_fn = same_attention if x.device.type == "cpu" else no_contexts
            arguments = resnet, attention, x, time, context
            return checkpoint(apply_layer, *arguments, use_reentrant=False, context_fn=context_fn)
        return apply_layer(resnet, attention, x, time, context)


class DownBlock(UNetBlock):
    """A block of the contracting side; all but the last halve the feature map at their end."""

    def __init__(
        self,
        widths_in: list[int],
        width: int,
        attentions: int,
        last: bool,
        **options: Unpack[BlockOptions],
    ):
        super().__init__(widths_in, width, attentions, **options)
        self.downsamplers = nn.ModuleList([] if last else [Downsample(width)])

    def forward(
        self, x: Features, time: TimeFeatures, context: Context | None
    ) -> list[Float[Tensor, "b c_out _ _"]]:
        """Return the output of every layer, for the skip connections; the last one goes on."""
        outputs: list[Tensor] = []
        for resnet, attention in self.layers():
            x = self.run_layer(resnet, attention, x, time, context)
            outputs.append(x)
        outputs += [downsample(x) for downsample in self.downsamplers]
        return outputs


class MidBlock(UNetBlock):
    """The block at the smallest feature map."""

    def forward(self, x: Features, time: TimeFeatures, context: Context | None) -> Features:
        for resnet, attention in self.layers():
            x = self.run_layer(resnet, attention, x, time, context)
        return x


class UpBlock(UNetBlock):
    """A block of the expanding side; all but the last double the feature map at their end."""

    def __init__(
        self,
        widths_in: list[int],
        width: int,
        attentions: int,
        last: bool,
        **options: Unpack[BlockOptions],
    ):
        super().__init__(widths_in, width, attentions, **options)
        self.upsamplers = nn.ModuleList([] if last else [Upsample(width)])

    def forward(
        self,
        x: Features,
        skips: list[Float[Tensor, "b _ h w"]],
        time: TimeFeatures,
        context: Context | None,
    ) -> Float[Tensor, "b c_out h_out w_out"]:
        """skips: outputs of the contracting side, one for each layer, the last first."""
        for skip, (resnet, attention) in zip(skips, self.layers(), strict=True):
            x = self.run_layer(resnet, attention, torch.cat([x, skip], dim=1), time, context)
        for upsample in self.upsamplers:
            x = upsample(x)
        return x


def apply_layer(
    resnet: ResidualBlock,
    attention: AttentionLayer | None,
    x: AnyFeatures,
    time: TimeFeatures,
    context: Context | None,
) -> AnyFeatures:
    """Apply a residual block and the attention after it, if there is one."""
    x = resnet(x, time)
    return x if attention is None else attention(x, context)


def make_attention(width: int, **options: Unpack[BlockOptions]) -> AttentionLayer:
    """Make an attention layer: with the text in a transformer, or of the pixels alone."""
    if not options["attends_to_text"]:
        return SelfAttention(width, options["heads"], groups=options["groups"])
    return SpatialTransformer(
        width,
        options["context_width"],
        options["heads"],
        groups=options["groups"],
        linear_projection=options["linear_projection"],
        only_cross_attention=options["only_cross_attention"],
    )


Contexts = tuple[AbstractContextManager[object], AbstractContextManager[object]]


def no_contexts() -> Contexts:
    return nullcontext(), nullcontext()


def same_attention() -> Contexts:
    """Return contexts for the forward pass and for its repetition in the backward pass.

    Kernels of attention keep different tensors for the gradient, so the repetition must use the
    kernels that are allowed now, though the caller's own context may have ended by then.
    """
    is_enabled: dict[SDPBackend, Callable[[], bool]] = {
        SDPBackend.FLASH_ATTENTION: cuda.flash_sdp_enabled,
        SDPBackend.EFFICIENT_ATTENTION: cuda.mem_efficient_sdp_enabled,
        SDPBackend.CUDNN_ATTENTION: cuda.cudnn_sdp_enabled,
        SDPBackend.MATH: cuda.math_sdp_enabled,
    }
    allowed = [kernel for kernel, enabled in is_enabled.items() if enabled()]
    return nullcontext(), sdpa_kernel(allowed)  # pyright: ignore[reportUnknownVariableType]


def make_down_blocks(config: UNetConfig) -> tuple[nn.ModuleList, list[int]]:
    """Make the blocks of the contracting side; also return the channels of all skip connections."""
    widths = config.block_out_channels
    blocks, skips = nn.ModuleList(), [widths[0]]
    depths = per_level(config.layers_per_block, len(widths))
    kinds = config.down_block_types
    for level, (width, depth, kind) in enumerate(zip(widths, depths, kinds, strict=True)):
        widths_in = [skips[-1]] + [width] * (depth - 1)
        attentions = depth if "Attn" in kind else 0
        last = level == len(widths) - 1
        options = config.block_options(level, kind)
        blocks.append(DownBlock(widths_in, width, attentions, last, **options))
        skips += [width] * (depth if last else depth + 1)
    return blocks, skips


def make_mid_block(config: UNetConfig) -> MidBlock:
    """Make the block between both sides; it always has self-attention where it attends to text."""
    width, attends = config.block_out_channels[-1], "CrossAttn" in config.mid_block_type
    options = config.block_options(-1, config.mid_block_type)
    options["only_cross_attention"] = False
    return MidBlock([width] * (1 + attends), width, int(attends), **options)


def make_up_blocks(config: UNetConfig, skips: list[int]) -> nn.ModuleList:
    """Make the blocks of the expanding side; skips: as `make_down_blocks` returns them."""
    skips, blocks, width_in = list(skips), nn.ModuleList(), config.block_out_channels[-1]
    depths = per_level(config.layers_per_block, len(config.block_out_channels))
    for level, kind in zip(reversed(range(len(depths))), config.up_block_types, strict=True):
        width, depth = config.block_out_channels[level], depths[level] + 1
        widths_in = [x + skips.pop() for x in [width_in] + [width] * (depth - 1)]
        attentions = depth if "Attn" in kind else 0
        options = config.block_options(level, kind)
        blocks.append(UpBlock(widths_in, width, attentions, level == 0, **options))
        width_in = width
    return blocks
