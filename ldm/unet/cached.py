"""The U-Net for samplers: what is the same in all steps is computed once.

Keys and values of the cross-attention depend on the context alone, the shifts of the residual
blocks on the timestep and on the pooled text, if there is one, the kernels of the upsampling on
neither. A sampler calls the network with one context and one timestep per call, so all three can be
kept.
"""

from collections.abc import Iterator
from itertools import zip_longest
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from foundation.errors import UserError
from foundation.shapes import Context, Features, Timesteps
from ldm.unet.blocks import DownBlock, UNetBlock, UpBlock
from ldm.unet.layers import (
    AttentionLayer,
    CrossAttentionKV,
    ResidualBlock,
    TimeFeatures,
    TimeShift,
    Upsample,
    UpsampleKernel,
    of_type,
    repeat_rows,
    silu,
)
from ldm.unet.unet import ClassLabels, UNet, to_fast_layout

# One list per block, in the order in which features pass.
BlockShifts = list[TimeShift]  # one per residual block
BlockKV = list[list[CrossAttentionKV]]  # one list per attention layer


@runtime_checkable
class CachedForward(Protocol):
    """The network as a function of tensors alone: `forward_cached`, or compiled code for it."""

    def __call__(
        self,
        unet: UNet,
        latents: Float[Tensor, "b c_in h w"],
        shifts: list[BlockShifts],
        keys_values: list[BlockKV],
        kernels: list[list[UpsampleKernel]],
    ) -> Float[Tensor, "rows c_out h w"]: ...


class CachedUNet:
    """A U-Net with a fixed context, to be called with latents and timesteps; see the module.

    The weights of the U-Net must not change while it is in use.
    """

    def __init__(self, unet: UNet, context: Context, forward: CachedForward | None = None):
        """
        Args:
            context: one per image; or for n prompts at once, those of all images under the first
                prompt, then under the second, ...: the output has as many rows.
            forward: compiled code to run in place of `forward_cached`.

        Raises:
            UserError: the context does not fit the U-Net.
        """
        unet.check_context(context)
        self.unet, self.rows = unet, len(context)
        self.forward = forward or forward_cached
        context = context.to(unet.dtype)
        self.keys_values = [project_context(block, context) for block in unet.blocks]
        self.pooled_text = unet.pool_text(context)
        # On a GPU the plain upsampling is as fast.
        self.kernels = upsample_kernels(unet) if unet.device.type == "cpu" else []
        self.shifts_at: dict[float, list[BlockShifts]] = {}

    def __call__(
        self,
        latents: Float[Tensor, "b c_in h w"],
        timesteps: Timesteps,
        class_labels: ClassLabels | None = None,
    ) -> Float[Tensor, "rows c_out h w"]:
        """
        Args:
            timesteps: one per image, all equal; on the CPU, so that no GPU is waited for.
            class_labels: one per image; for the x4 upscaler, noise levels.

        Raises:
            UserError: the latents do not fit the U-Net or the context, or timesteps differ.
        """
        self.unet.check_latents(latents)
        self.unet.check_class_labels(class_labels)
        if self.rows % len(latents):
            raise UserError(
                f"the context has {self.rows} rows for {len(latents)} images; it must have one for "
                "each image, or one for each under every prompt."
            )
        shifts = self.time_shifts(timesteps, class_labels)
        latents = latents.to(self.unet.dtype)
        if self.pooled_text is not None:  # then even the first block depends on the prompt
            latents = repeat_rows(latents, self.rows)
        return self.forward(self.unet, latents, shifts, self.keys_values, self.kernels)

    def time_shifts(
        self, timesteps: Timesteps, class_labels: ClassLabels | None = None
    ) -> list[BlockShifts]:
        """Return the shifts of all residual blocks; without class labels they are kept."""
        t = float(timesteps[0])
        if not (timesteps == t).all():
            raise UserError("a cached U-Net takes one timestep per call, equal for all images.")
        if class_labels is not None:
            return block_shifts(self.unet, timesteps, class_labels, self.pooled_text)
        if t not in self.shifts_at:
            one_row = torch.full((1,), t, device=self.unet.device)
            self.shifts_at[t] = block_shifts(self.unet, one_row, None, self.pooled_text)
        return self.shifts_at[t]


def project_context(block: UNetBlock, context: Context) -> BlockKV:
    """Compute the keys and values of each attention layer of a block."""
    return [attention.project_context(context) for _, attention in block.layers() if attention]


def block_shifts(
    unet: UNet,
    timesteps: Timesteps,
    class_labels: ClassLabels | None = None,
    pooled_text: TimeFeatures | None = None,
) -> list[BlockShifts]:
    """Compute the shift of each residual block, block by block."""
    if class_labels is not None and pooled_text is not None:
        repeats = len(pooled_text) // len(class_labels)
        class_labels, timesteps = class_labels.repeat(repeats), timesteps.repeat(repeats)
    time = unet.embed_time(timesteps, class_labels, pooled_text)
    return [[resnet.time_shift(time) for resnet, _ in block.layers()] for block in unet.blocks]


def upsample_kernels(unet: UNet) -> list[list[UpsampleKernel]]:
    """Compute the kernels of the upsampling layers, one list per up block."""
    return [
        [layer.transposed_kernel() for layer in of_type(block.upsamplers, Upsample)]
        for block in of_type(unet.up_blocks, UpBlock)
    ]


def forward_cached(
    unet: UNet,
    latents: Float[Tensor, "b c_in h w"],
    shifts: list[BlockShifts],
    keys_values: list[BlockKV],
    kernels: list[list[UpsampleKernel]],
) -> Float[Tensor, "rows c_out h w"]:
    """Compute what `UNet.forward` does, from shifts, keys and values that are already there.

    kernels: one list per up block; empty, if upsampling is to be done as in training.
    """
    per_block = iter(zip(shifts, keys_values, strict=True))
    x = unet.conv_in(to_fast_layout(latents))
    skips = [x]
    for block in of_type(unet.down_blocks, DownBlock):
        outputs = run_down_block(block, x, *next(per_block))
        skips += outputs
        x = outputs[-1]
    for layer in cached_layers(unet.mid_block, *next(per_block)):
        x = run_layer(x, *layer)
    for number, block in enumerate(of_type(unet.up_blocks, UpBlock)):
        block_skips = [skips.pop() for _ in block.resnets]
        x = run_up_block(block, x, block_skips, *next(per_block), kernels[number : number + 1])
    return unet.conv_out(silu(unet.conv_norm_out(x))).contiguous()


def run_down_block(
    block: DownBlock, x: Features, shifts: BlockShifts, keys_values: BlockKV
) -> list[Float[Tensor, "rows c_out _ _"]]:
    """Compute what `DownBlock.forward` does."""
    outputs: list[Tensor] = []
    for layer in cached_layers(block, shifts, keys_values):
        x = run_layer(x, *layer)
        outputs.append(x)
    return outputs + [downsample(x) for downsample in block.downsamplers]


def run_up_block(
    block: UpBlock,
    x: Features,
    skips: list[Float[Tensor, "_ _ h w"]],
    shifts: BlockShifts,
    keys_values: BlockKV,
    kernels: list[list[UpsampleKernel]],
) -> Float[Tensor, "rows c_out h_out w_out"]:
    """Compute what `UpBlock.forward` does; kernels: those of this block, or an empty list."""
    for skip, layer in zip(skips, cached_layers(block, shifts, keys_values), strict=True):
        rows = max(len(x), len(skip))
        x = torch.cat([repeat_rows(x, rows), repeat_rows(skip, rows)], dim=1)
        x = run_layer(x, *layer)
    for number, upsample in enumerate(of_type(block.upsamplers, Upsample)):
        x = upsample.forward_transposed(x, kernels[0][number]) if kernels else upsample(x)
    return x


CachedLayer = tuple[ResidualBlock, TimeShift, AttentionLayer | None, list[CrossAttentionKV] | None]


def cached_layers(
    block: UNetBlock, shifts: BlockShifts, keys_values: BlockKV
) -> Iterator[CachedLayer]:
    """Yield (residual block, its shift, attention layer, its keys and values) of each layer."""
    for (resnet, attention), shift, kv in zip_longest(block.layers(), shifts, keys_values):
        yield resnet, shift, attention, kv


def run_layer(
    x: Features,
    resnet: ResidualBlock,
    shift: TimeShift,
    attention: AttentionLayer | None,
    keys_values: list[CrossAttentionKV] | None,
) -> Float[Tensor, "rows c_out h w"]:
    """Apply a residual block and the attention after it, if there is one."""
    x = resnet.forward_shifted(x, shift)
    return x if attention is None else attention.forward_attending(x, keys_values or [])
