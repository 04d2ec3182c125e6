"""The building blocks of the U-Net. Attribute names make the `state_dict` keys of diffusers.

Feature maps keep the memory format that they come in. In channels_last, which the U-Net chooses on
GPUs, a pixel's channels lie together and the transformers' (b, h*w, c) is a view. On CPUs the
default format is as fast in fp32, and much faster in bf16, where the group norm is slow otherwise.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from foundation.shapes import Context, Timesteps

Features = Float[Tensor, "b c h w"]
Tokens = Float[Tensor, "b n c"]
TimeFeatures = Float[Tensor, "_ e"]

# What a layer makes of time and text, which for all steps of a sampler can be computed once.
Shift = Float[Tensor, "_ _"]  # of a residual block's features
KeysValues = tuple[Float[Tensor, "_ _ l _"], Float[Tensor, "_ _ l _"]]  # b, heads, l, c
Text = list[KeysValues]  # of a transformer's layers that look at the text, in their order
Kernel = Float[Tensor, "_ _ 4 4"]  # that doubles feature maps, see Upsample


def silu(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Overwrites its argument where no gradient needs it; only for fresh tensors."""
    return F.silu(x, inplace=not torch.is_grad_enabled())


def as_many(x: Float[Tensor, "..."], rows: int) -> Float[Tensor, "..."]:
    """Repeated to so many rows: what several contexts share is computed once, up to the text."""
    return x if len(x) == rows else x.repeat(rows // len(x), *[1] * (x.ndim - 1))


def zero_init(module: nn.Conv2d | nn.Linear) -> nn.Conv2d | nn.Linear:
    """For the end of a residual branch, which then starts as the identity."""
    nn.init.zeros_(module.weight)
    nn.init.zeros_(module.bias)
    return module


def sinusoids(timesteps: Timesteps, width: int) -> Float[Tensor, "b {width}"]:
    """cos and sin of t at geometrically falling frequencies, 1 to almost 1/10000; fp32.

    Order (cos first) and frequencies as in the U-Nets of Stable Diffusion; Vaswani et al. 2017
    (arXiv:1706.03762), section 3.5, for the idea.
    """
    half = width // 2
    exponent = torch.arange(half, dtype=torch.float32, device=timesteps.device)
    # In this order, since the last bit of a frequency is multiplied by up to 999.
    angles = timesteps.float()[:, None] * torch.exp(-math.log(10_000) * exponent / half)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class TimeEmbedding(nn.Module):
    def __init__(self, width_in: int, width: int):
        super().__init__()
        self.linear_1 = nn.Linear(width_in, width)
        self.linear_2 = nn.Linear(width, width)

    def forward(self, timesteps: Timesteps) -> TimeFeatures:
        x = sinusoids(timesteps, self.linear_1.in_features).to(self.linear_1.weight.dtype)
        return self.linear_2(silu(self.linear_1(x)))


class ResidualBlock(nn.Module):
    """norm, SiLU, conv, plus the time; norm, SiLU, dropout, conv; plus the input."""

    def __init__(self, width_in: int, width: int, *, time_width: int, groups: int, dropout: float):
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, width_in, eps=1e-5)
        self.conv1 = nn.Conv2d(width_in, width, 3, padding=1)
        self.time_emb_proj = nn.Linear(time_width, width)
        self.norm2 = nn.GroupNorm(groups, width, eps=1e-5)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = zero_init(nn.Conv2d(width, width, 3, padding=1))
        self.conv_shortcut = nn.Conv2d(width_in, width, 1) if width_in != width else nn.Identity()

    def shift(self, time: TimeFeatures) -> Shift:
        """time: the embedding after its SiLU, which is the same in every block."""
        return self.time_emb_proj(time)

    def forward(self, x: Features, shift: Float[Tensor, "_ width"]) -> Float[Tensor, "b width h w"]:
        h = self.conv1(silu(self.norm1(x)))
        h = h + (shift if len(shift) == 1 else as_many(shift, len(h)))[:, :, None, None]
        h = self.conv2(self.dropout(silu(self.norm2(h))))
        return self.conv_shortcut(x) + h


class Attention(nn.Module):
    """Multi-head attention of tokens to keys and values: of themselves, or of the context."""

    def __init__(self, width: int, source_width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k = nn.Linear(source_width, width, bias=False)
        self.to_v = nn.Linear(source_width, width, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(width, width)])

    def keys_values(self, source: Float[Tensor, "b l d"]) -> KeysValues:
        return self.split(self.to_k(source)), self.split(self.to_v(source))

    def split(self, x: Tokens) -> Float[Tensor, "b heads n _"]:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def forward(self, x: Tokens, keys_values: KeysValues | None = None) -> Tokens:
        q = self.split(self.to_q(x))
        attended = F.scaled_dot_product_attention(q, *(keys_values or self.keys_values(x)))
        return self.to_out[0](attended.transpose(1, 2).flatten(2))


class GatedLinear(nn.Module):
    """GEGLU of Shazeer 2020 (arXiv:2002.05202): one half of the projection gates the other."""

    def __init__(self, width_in: int, width: int):
        super().__init__()
        self.proj = nn.Linear(width_in, 2 * width)

    def forward(self, x: Tokens) -> Float[Tensor, "b n _"]:
        value, gate = self.proj(x).chunk(2, dim=-1)
        return value * F.gelu(gate)


class FeedForward(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        # Place 1 is a dropout in other code, without weights.
        layers = GatedLinear(width, 4 * width), nn.Identity(), nn.Linear(4 * width, width)
        self.net = nn.Sequential(*layers)

    def forward(self, x: Tokens) -> Tokens:
        return self.net(x)


class TransformerBlock(nn.Module):
    """Pixels look at each other, then at the text, then each at itself.

    only_cross_attention: they look at the text twice, and never at each other.
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

    def read(self, context: Context) -> Text:
        looking = [self.attn1, self.attn2] if self.only_cross_attention else [self.attn2]
        return [attention.keys_values(context) for attention in looking]

    def forward(self, x: Tokens, text: Text) -> Float[Tensor, "_ n c"]:
        if self.only_cross_attention:
            x = as_many(x, len(text[0][0]))
            x = x + self.attn1(self.norm1(x), text[0])
        else:
            x = x + self.attn1(self.norm1(x))
        x = as_many(x, len(text[-1][0]))
        x = x + self.attn2(self.norm2(x), text[-1])
        return x + self.ff(self.norm3(x))


class SpatialTransformer(nn.Module):
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
        self.norm = nn.GroupNorm(groups, width, eps=1e-6)
        # The same product either way; SD 1.x stores it as a 1x1 convolution, SD 2.x as a matrix.
        projection = nn.Linear if linear_projection else lambda n, m: nn.Conv2d(n, m, 1)
        self.proj_in = projection(width, width)
        self.transformer_blocks = nn.ModuleList(
            [TransformerBlock(width, context_width, heads, only_cross_attention)]
        )
        self.proj_out = zero_init(projection(width, width))

    def read(self, context: Context) -> Text:
        return self.transformer_blocks[0].read(context)

    def forward(self, x: Features, text: Text) -> Float[Tensor, "_ c h w"]:
        tokens = self.norm(x).flatten(2).mT  # (b, h w, c); in channels_last a view
        tokens = F.linear(tokens, self.proj_in.weight.flatten(1), self.proj_in.bias)
        tokens = self.transformer_blocks[0](tokens, text)
        tokens = F.linear(tokens, self.proj_out.weight.flatten(1), self.proj_out.bias)
        return as_many(x, len(tokens)) + tokens.mT.unflatten(-1, x.shape[-2:])


class Downsample(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=2, padding=1)

    def forward(self, x: Features) -> Float[Tensor, "b c _ _"]:
        return self.conv(x)


class Upsample(nn.Module):
    """Doubles both sides: nearest neighbor, then a 3x3 convolution.

    With a `kernel`, as the transposed convolution that it equals: each pair of doubled pixels sees
    one input pixel, so the 3x3 kernel acts as a 4x4 one of stride 2, with 16 products per input
    pixel instead of 36 and no enlarged copy. It pays where the kernel serves many calls.
    """

    def __init__(self, width: int):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def kernel(self) -> Kernel:
        # A tap of it is the sum of those of the 3x3 one, which a transposed convolution wants
        # flipped, that see the same input pixel: two in each direction, one at the ends.
        flipped = self.conv.weight.flip(2, 3)
        return 4 * F.avg_pool2d(flipped, 2, stride=1, padding=1).transpose(0, 1).contiguous()

    def forward(self, x: Features, kernel: Kernel | None = None) -> Float[Tensor, "b c _ _"]:
        if kernel is None:
            return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))
        return F.conv_transpose2d(x, kernel, self.conv.bias, stride=2, padding=1)
