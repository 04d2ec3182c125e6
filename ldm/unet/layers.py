"""The layers of the U-Net. Attribute names make the `state_dict` keys of diffusers.

Two layers depend on more than the feature map, and can be called in two ways. `forward` takes the
time features or the context. `forward_shifted` and `forward_attending` take what the layer makes of
them, which is the same in many calls of a sampler (see `ldm.unet.cached`).

Feature maps keep the memory format that they come in. In channels_last, which the U-Net chooses on
GPUs, a pixel's channels lie together and the transformers' (b, h*w, c) is a view. On CPUs the
default format is as fast in fp32, and much faster in bf16, where the group norm is slow otherwise.
"""

import math
from abc import ABC, abstractmethod
from typing import TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from foundation.normalization import GroupNorm
from foundation.shapes import Context, Features, Timesteps

Tokens = Float[Tensor, "b n c"]
TimeFeatures = Float[Tensor, "rows e"]  # the time embedding, shared by all residual blocks
# What a layer computes from time or context alone. Lists of these hold other sizes per layer, which
# is why most axes have no name.
TimeShift = Float[Tensor, "_ _"]  # rows, channels: what a residual block adds to its features
CrossAttentionKV = tuple[  # rows, heads, tokens, width: keys and values of a context
    Float[Tensor, "_ _ l _"], Float[Tensor, "_ _ l _"]
]
UpsampleKernel = Float[Tensor, "_ _ 4 4"]  # channels in, channels out


M = TypeVar("M", bound=nn.Module)


def of_type(modules: nn.Module, kind: type[M]) -> list[M]:
    """Return the modules of a ModuleList with their type, which ModuleList does not say."""
    assert isinstance(modules, nn.ModuleList)
    typed = [module for module in modules if isinstance(module, kind)]
    assert len(typed) == len(modules)
    return typed


def silu(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Apply SiLU; overwrites its argument where no gradient needs it, so only for fresh tensors."""
    return F.silu(x, inplace=not torch.is_grad_enabled())


def repeat_rows(x: Float[Tensor, "..."], rows: int) -> Float[Tensor, "..."]:
    """Repeat a batch to `rows` rows; a batch that has as many is returned as it is.

    Several prompts for the same latents share their features up to the first cross-attention; there
    the features get one row per image and prompt.
    """
    return x if len(x) == rows else x.repeat(rows // len(x), *[1] * (x.ndim - 1))


def zero_init(module: nn.Conv2d | nn.Linear) -> nn.Conv2d | nn.Linear:
    """Set the last layer of a residual branch to zero, so that the branch starts as identity."""
    nn.init.zeros_(module.weight)
    if module.bias is not None:
        nn.init.zeros_(module.bias)
    return module


def sinusoids(timesteps: Timesteps, width: int) -> Float[Tensor, "b {width}"]:
    """Compute cos and sin of t at geometrically falling frequencies, 1 to almost 1/10000; fp32.

    Order (cos first) and frequencies as in the U-Nets of Stable Diffusion; Vaswani et al. 2017
    (arXiv:1706.03762), section 3.5, for the idea.
    """
    half = width // 2
    exponent = torch.arange(half, dtype=torch.float32, device=timesteps.device)
    # In this order, since the last bit of a frequency is multiplied by up to 999.
    angles = timesteps.float()[:, None] * torch.exp(-math.log(10_000) * exponent / half)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class TimeEmbedding(nn.Module):
    """Sinusoids of the timestep, then two linear layers."""

    def __init__(self, width_in: int, width: int):
        super().__init__()
        self.linear_1 = nn.Linear(width_in, width)
        self.linear_2 = nn.Linear(width, width)

    def forward(self, timesteps: Timesteps) -> TimeFeatures:
        x = sinusoids(timesteps, self.linear_1.in_features).to(self.linear_1.weight.dtype)
        return self.linear_2(silu(self.linear_1(x)))


class PooledText(nn.Module):
    """One vector for a whole text, which all residual blocks get with the time.

    So the text reaches the blocks without attention, too. U-Nets of DeepFloyd IF have it, with this
    architecture; in diffusers it is addition_embed_type="text".
    """

    def __init__(self, context_width: int, time_width: int, heads: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(context_width)
        self.pool = AttentionPooling(context_width, heads)
        self.proj = nn.Linear(context_width, time_width)
        self.norm2 = nn.LayerNorm(time_width)

    def forward(self, context: Context) -> TimeFeatures:
        return self.norm2(self.proj(self.pool(self.norm1(context))))


class AttentionPooling(nn.Module):
    """Attention of the mean token to itself and to all tokens; returns what it gathers."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.positional_embedding = nn.Parameter(torch.randn(1, width) / width**0.5)
        self.k_proj = nn.Linear(width, width)
        self.q_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)

    def forward(self, tokens: Context) -> Float[Tensor, "b d"]:
        mean = tokens.mean(dim=1, keepdim=True) + self.positional_embedding
        tokens = torch.cat([mean, tokens], dim=1)
        layers = (self.q_proj(mean), self.k_proj(tokens), self.v_proj(tokens))
        queries, keys, values = (split_heads(x, self.heads) for x in layers)
        attended = F.scaled_dot_product_attention(queries, keys, values)
        return attended.transpose(1, 2).flatten(1)


class ResidualBlock(nn.Module):
    """Norm, SiLU, conv, plus a shift by the time; norm, SiLU, dropout, conv; plus the input."""

    def __init__(self, width_in: int, width: int, *, time_width: int, groups: int, dropout: float):
        super().__init__()
        self.norm1 = GroupNorm(groups, width_in, eps=1e-5)
        self.conv1 = nn.Conv2d(width_in, width, 3, padding=1)
        self.time_emb_proj = nn.Linear(time_width, width)
        self.norm2 = GroupNorm(groups, width, eps=1e-5)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = zero_init(nn.Conv2d(width, width, 3, padding=1))
        self.conv_shortcut = nn.Conv2d(width_in, width, 1) if width_in != width else nn.Identity()

    def forward(self, x: Features, time: TimeFeatures) -> Float[Tensor, "b width h w"]:
        return self.forward_shifted(x, self.time_shift(time))

    def time_shift(self, time: TimeFeatures) -> TimeShift:
        """Project the time features (after their SiLU) to one value per channel."""
        return self.time_emb_proj(time)

    def forward_shifted(
        self, x: Features, shift: Float[Tensor, "rows width"]
    ) -> Float[Tensor, "b width h w"]:
        h = self.conv1(silu(self.norm1(x)))
        h = h + (shift if len(shift) == 1 else repeat_rows(shift, len(h)))[:, :, None, None]
        h = self.conv2(self.dropout(silu(self.norm2(h))))
        return self.conv_shortcut(x) + h


def split_heads(x: Tokens, heads: int) -> Float[Tensor, "b heads n head_width"]:
    """Split the channels of tokens among the heads of an attention."""
    return x.reshape(*x.shape[:-1], heads, -1).transpose(1, 2)


class Attention(nn.Module):
    """Multi-head attention of tokens to themselves, or to the keys and values of a context."""

    def __init__(self, width: int, source_width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k = nn.Linear(source_width, width, bias=False)
        self.to_v = nn.Linear(source_width, width, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(width, width)])

    def project(self, source: Float[Tensor, "b l d"]) -> CrossAttentionKV:
        """Compute keys and values of the tokens that are attended to."""
        keys, values = self.to_k(source), self.to_v(source)
        return split_heads(keys, self.heads), split_heads(values, self.heads)

    def forward(self, x: Tokens, keys_values: CrossAttentionKV | None = None) -> Tokens:
        queries = split_heads(self.to_q(x), self.heads)
        keys, values = self.project(x) if keys_values is None else keys_values
        attended = F.scaled_dot_product_attention(queries, keys, values)
        return self.to_out[0](attended.transpose(1, 2).flatten(2))


class GatedLinear(nn.Module):
    """GEGLU of Shazeer 2020 (arXiv:2002.05202): one half of the projection gates the other."""

    def __init__(self, width_in: int, width: int):
        super().__init__()
        self.proj = nn.Linear(width_in, 2 * width)

    def forward(self, x: Tokens) -> Float[Tensor, "b n width"]:
        value, gate = self.proj(x).chunk(2, dim=-1)
        return value * F.gelu(gate)


class FeedForward(nn.Module):
    """Two linear layers with a gate between, four times as wide inside."""

    def __init__(self, width: int):
        super().__init__()
        # Index 1 is a dropout in diffusers; it has no weights, but it counts in the names.
        layers = GatedLinear(width, 4 * width), nn.Identity(), nn.Linear(4 * width, width)
        self.net = nn.Sequential(*layers)

    def forward(self, x: Tokens) -> Tokens:
        return self.net(x)


class TransformerBlock(nn.Module):
    """Self-attention of the pixels, cross-attention to the text, then a feed-forward layer.

    only_cross_attention: the first attention attends to the text, too.
    """

    def __init__(self, width: int, context_width: int, heads: int, only_cross_attention: bool):
        super().__init__()
        self.only_cross_attention = only_cross_attention
        self.norm1 = nn.LayerNorm(width)
        self.attn1 = Attention(width, context_width if only_cross_attention else width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.attn2 = Attention(width, context_width, heads)
        self.norm3 = nn.LayerNorm(width)
        self.ff = FeedForward(width)

    def project_context(self, context: Context) -> list[CrossAttentionKV]:
        """Compute the keys and values of each attention layer that attends to the text."""
        layers = [self.attn1, self.attn2] if self.only_cross_attention else [self.attn2]
        return [layer.project(context) for layer in layers]

    def forward(
        self, x: Tokens, keys_values: list[CrossAttentionKV]
    ) -> Float[Tensor, "more_rows n c"]:
        rows = len(keys_values[-1][0])
        if self.only_cross_attention:
            x = repeat_rows(x, rows)
            x = x + self.attn1(self.norm1(x), keys_values[0])
        else:
            x = x + self.attn1(self.norm1(x))
        x = repeat_rows(x, rows)
        x = x + self.attn2(self.norm2(x), keys_values[-1])
        return x + self.ff(self.norm3(x))


class AttentionLayer(nn.Module, ABC):
    """A layer in which the pixels of a feature map attend to each other, and perhaps to a text."""

    def forward(self, x: Features, context: Context | None) -> Features:
        return self.forward_attending(x, self.project_context(context))

    @abstractmethod
    def project_context(self, context: Context | None) -> list[CrossAttentionKV]:
        """Compute the keys and values of each attention layer that attends to the text."""

    @abstractmethod
    def forward_attending(
        self, x: Features, keys_values: list[CrossAttentionKV]
    ) -> Float[Tensor, "more_rows c h w"]:
        """Apply the layer; there are as many rows as in `keys_values`, if there are any."""


class SelfAttention(AttentionLayer):
    """Attention of the pixels to each other alone, added to them, for models without text."""

    def __init__(self, width: int, heads: int, *, groups: int):
        super().__init__()
        self.heads = heads
        self.group_norm = GroupNorm(groups, width, eps=1e-5)
        self.to_q = nn.Linear(width, width)
        self.to_k = nn.Linear(width, width)
        self.to_v = nn.Linear(width, width)
        self.to_out = nn.ModuleList([zero_init(nn.Linear(width, width))])

    def project_context(self, context: Context | None) -> list[CrossAttentionKV]:
        return []

    def forward_attending(
        self, x: Features, keys_values: list[CrossAttentionKV]
    ) -> Float[Tensor, "b c h w"]:
        tokens = self.group_norm(x).flatten(2).mT  # (b, h w, c); in channels_last a view
        queries, keys, values = (
            split_heads(layer(tokens), self.heads) for layer in (self.to_q, self.to_k, self.to_v)
        )
        tokens = F.scaled_dot_product_attention(queries, keys, values)
        tokens = self.to_out[0](tokens.transpose(1, 2).flatten(2))
        return x + tokens.mT.reshape(x.shape)


class SpatialTransformer(AttentionLayer):
    """A transformer block on the pixels of a feature map, added to it."""

    def __init__(
        self,
        width: int,
        context_width: int,
        heads: int,
        *,
        groups: int,
        linear_projection: bool,
        only_cross_attention: bool,
    ):
        super().__init__()
        self.norm = GroupNorm(groups, width, eps=1e-6)
        # The same product either way; SD 1.x stores it as a 1x1 convolution, SD 2.x as a matrix.
        self.proj_in = projection(width, linear_projection)
        self.transformer_blocks = nn.ModuleList(
            [TransformerBlock(width, context_width, heads, only_cross_attention)]
        )
        self.proj_out = zero_init(projection(width, linear_projection))

    def project_context(self, context: Context | None) -> list[CrossAttentionKV]:
        assert context is not None, "the U-Net has checked that there is a context"
        (block,) = of_type(self.transformer_blocks, TransformerBlock)
        return block.project_context(context)

    def forward_attending(
        self, x: Features, keys_values: list[CrossAttentionKV]
    ) -> Float[Tensor, "more_rows c h w"]:
        tokens = self.norm(x).flatten(2).mT  # (b, h w, c); in channels_last a view
        tokens = F.linear(tokens, self.proj_in.weight.flatten(1), self.proj_in.bias)
        tokens = self.transformer_blocks[0](tokens, keys_values)
        tokens = F.linear(tokens, self.proj_out.weight.flatten(1), self.proj_out.bias)
        return repeat_rows(x, len(tokens)) + tokens.mT.reshape(*tokens.mT.shape[:-1], *x.shape[-2:])


def projection(width: int, linear: bool) -> nn.Conv2d | nn.Linear:
    """Make a matrix that mixes channels, stored as a linear layer or as a 1x1 convolution."""
    return nn.Linear(width, width) if linear else nn.Conv2d(width, width, 1)


class Downsample(nn.Module):
    """Halve both sides by a convolution of stride 2."""

    def __init__(self, width: int):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=2, padding=1)

    def forward(self, x: Features) -> Float[Tensor, "b c h_half w_half"]:
        return self.conv(x)


class Upsample(nn.Module):
    """Double both sides: nearest neighbor, then a 3x3 convolution."""

    def __init__(self, width: int):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Features) -> Float[Tensor, "b c h_twice w_twice"]:
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))

    def transposed_kernel(self) -> UpsampleKernel:
        """Return the kernel with which a transposed convolution does the same as `forward`.

        Each pair of doubled pixels sees one input pixel, so the 3x3 kernel acts as a 4x4 one of
        stride 2: 16 products per input pixel instead of 36, and no enlarged copy. A tap of it is
        the sum of those taps of the 3x3 kernel (flipped, as a transposed convolution wants it) that
        see the same input pixel: two in each direction, one at the ends.
        """
        flipped = self.conv.weight.flip(2, 3)
        return 4 * F.avg_pool2d(flipped, 2, stride=1, padding=1).transpose(0, 1).contiguous()

    def forward_transposed(
        self, x: Features, kernel: UpsampleKernel
    ) -> Float[Tensor, "b c h_twice w_twice"]:
        return F.conv_transpose2d(x, kernel, self.conv.bias, stride=2, padding=1)
