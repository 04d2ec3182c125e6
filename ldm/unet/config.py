"""The architecture of the U-Net as a config, with the field names of diffusers' config.json."""

import math
from dataclasses import dataclass, replace
from typing import TypedDict, TypeVar

from foundation.errors import UserError, shown
from foundation.json_reading import check_limits

T = TypeVar("T", int, bool)


class BlockOptions(TypedDict):
    """What the down block and the up block of a level share."""

    attends_to_text: bool
    heads: int
    time_width: int
    context_width: int
    groups: int
    dropout: float
    linear_projection: bool
    only_cross_attention: bool


@dataclass(frozen=True, kw_only=True)
class UNetConfig:
    """Architecture of a U-Net, in the fields of diffusers' config.json.

    Levels go from the largest feature maps to the smallest; each next level halves both sides.

    Raises:
        UserError: the fields do not fit each other.
    """

    in_channels: int = 4  # those of the latents, and of what a task concatenates to them
    out_channels: int = 4  # those of the latents
    sample_size: int | tuple[int, int] | None = 64  # side of the latents in training; not a limit
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)  # per level
    layers_per_block: int | tuple[int, ...] = 2  # residual blocks per level, on the way down
    # Blocks with CrossAttn in their name attend to the text, those with Attn alone only to
    # themselves.
    down_block_types: tuple[str, ...] = ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",)
    mid_block_type: str = "UNetMidBlock2DCrossAttn"
    up_block_types: tuple[str, ...] = ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3  # smallest first
    only_cross_attention: bool | tuple[bool, ...] = False  # no self-attention, but in the middle
    cross_attention_dim: int | None = 768  # width of the text embedding; None: not conditional
    attention_head_dim: int | tuple[int, ...] = (
        8  # NUMBER of heads; of blocks without text, width of one
    )
    use_linear_projection: bool = False  # shape of two weights: SD 1.x False, SD 2.x True
    upcast_attention: bool = False  # ignored: attention here always accumulates in fp32
    norm_num_groups: int = 32  # of each group norm; divides the channels of every level
    dropout: float = 0.0  # probability to drop a feature inside a residual block
    num_class_embeds: int | None = None  # number of class labels with a learned embedding
    class_embed_type: str | None = None  # "timestep": labels are embedded like timesteps
    # "text": all residual blocks also get one vector of the text, which attention pools
    addition_embed_type: str | None = None
    addition_embed_type_num_heads: int = 64  # of that attention

    def __post_init__(self):
        check_limits(self, LIMITS)
        levels = len(self.block_out_channels)
        for name in PER_LEVEL:
            value: int | bool | str | tuple[int | bool | str, ...] = getattr(self, name)
            if levels == 0 or (isinstance(value, tuple) and len(value) != levels):
                raise UserError(
                    f"{name}={value} does not fit block_out_channels={self.block_out_channels}, "
                    f"which has {levels} levels; give one value per level."
                )
        for name, allowed in CHOICES.items():
            choice: str | tuple[str, ...] | None = getattr(self, name)
            for one in choice if isinstance(choice, tuple) else (choice,):
                if one not in allowed:
                    choices = " and ".join(map(str, allowed))
                    raise UserError(f"{name}: {shown(one)} is not one of {choices}.")
        if self.cross_attention_dim is None:
            if self.conditional:
                raise UserError(
                    "cross_attention_dim is None, which means no text, but some blocks attend to "
                    "text: those with CrossAttn in their name."
                )
            # No layer uses the number, but diffusers does not open a folder without it.
            object.__setattr__(self, "cross_attention_dim", type(self).cross_attention_dim)
        if self.addition_embed_type == "text":
            self.check_pooling()
        for channels in self.block_out_channels:
            if channels < 1 or channels % self.norm_num_groups or channels % 2:
                raise UserError(
                    f"block_out_channels: {channels} must be even and a multiple of "
                    f"norm_num_groups={self.norm_num_groups}."
                )
        kinds = zip(self.down_block_types, reversed(self.up_block_types), strict=True)
        for level, pair in enumerate(kinds):
            for kind in pair:
                self.heads(level, kind)
        self.heads(-1, self.mid_block_type)

    def check_pooling(self) -> None:
        """Raise UserError if the text cannot be pooled to one vector."""
        width, heads = self.cross_attention_dim, self.addition_embed_type_num_heads
        if not self.conditional or width is None:
            raise UserError(
                'addition_embed_type is "text", but no block attends to text: none has CrossAttn '
                "in its name."
            )
        if width % heads:
            raise UserError(
                f"addition_embed_type_num_heads: a text embedding of width {width} does not split "
                f"into {heads} heads."
            )

    def heads(self, level: int, kind: str) -> int:
        """Return the number of heads in the attention of a block; 1 if it has none.

        `attention_head_dim` is that number in blocks that attend to text, and the width of a head
        in others: so diffusers reads it.

        Raises:
            UserError: the channels do not split into so many heads.
        """
        if "Attn" not in kind:
            return 1
        channels = self.block_out_channels[level]
        numbers = per_level(self.attention_head_dim, len(self.block_out_channels))
        attends_to_text = "CrossAttn" in kind
        if not attends_to_text and len(set(numbers)) > 1:
            raise UserError(
                f"attention_head_dim={numbers}: blocks of the type {kind} need the same number at "
                "all levels, since diffusers reads several in another order on the way up."
            )
        number = numbers[level]
        if number < 1 or channels % number:
            what = "heads" if attends_to_text else "channels for each head"
            raise UserError(
                f"attention_head_dim: {channels} channels do not split into {number} {what} "
                "(the name is diffusers': it counts heads where blocks attend to text)."
            )
        return number if attends_to_text else channels // number

    def without_text(self) -> "UNetConfig":
        """Return the same architecture with attention of the pixels to each other alone.

        All heads get the width of the narrowest one, or a divisor of it. diffusers has no such
        attention in the middle block, which therefore has a single residual block.
        """
        heads = per_level(self.attention_head_dim, len(self.block_out_channels))
        kinds = zip(self.down_block_types, reversed(self.up_block_types), strict=True)
        attends = [any("Attn" in kind for kind in pair) for pair in kinds]
        levels = zip(self.block_out_channels, heads, attends, strict=True)
        head_widths = [channels // count for channels, count, attends in levels if attends]
        return replace(
            self,
            down_block_types=tuple(kind.replace("Cross", "") for kind in self.down_block_types),
            mid_block_type="UNetMidBlock2D",
            up_block_types=tuple(kind.replace("Cross", "") for kind in self.up_block_types),
            attention_head_dim=math.gcd(*head_widths) or self.block_out_channels[0],
            only_cross_attention=False,
            cross_attention_dim=None,
            addition_embed_type=None,
        )

    @property
    def conditional(self) -> bool:
        """Whether any block attends to text; if none does, the network takes no context."""
        types = (*self.down_block_types, self.mid_block_type, *self.up_block_types)
        return any("CrossAttn" in block for block in types)

    def block_options(self, level: int, kind: str) -> BlockOptions:
        """Return the options of a block. kind: its type, by the name of diffusers."""
        levels = len(self.block_out_channels)
        assert self.cross_attention_dim is not None  # see __post_init__
        return BlockOptions(
            attends_to_text="CrossAttn" in kind,
            heads=self.heads(level, kind),
            time_width=4 * self.block_out_channels[0],
            context_width=self.cross_attention_dim,
            groups=self.norm_num_groups,
            dropout=self.dropout,
            linear_projection=self.use_linear_projection,
            only_cross_attention=per_level(self.only_cross_attention, levels)[level],
        )


# No network has more; such numbers in a file would fill the memory before weights are compared.
LIMITS = {
    "in_channels": (1, 4096),
    "out_channels": (1, 4096),
    "sample_size": (1, 2**20),
    "block_out_channels": (1, 65536),
    "layers_per_block": (1, 64),
    "cross_attention_dim": (1, 65536),
    "attention_head_dim": (1, 65536),
    "norm_num_groups": (1, 65536),
    "dropout": (0, 1),
    "num_class_embeds": (1, 10**7),
    "addition_embed_type_num_heads": (1, 65536),
}
PER_LEVEL = (
    "down_block_types",
    "up_block_types",
    "layers_per_block",
    "attention_head_dim",
    "only_cross_attention",
)
CHOICES = {
    "class_embed_type": (None, "timestep"),
    "addition_embed_type": (None, "text"),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "AttnDownBlock2D"),
    "mid_block_type": ("UNetMidBlock2D", "UNetMidBlock2DCrossAttn"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "AttnUpBlock2D"),
}


def per_level(value: T | tuple[T, ...], levels: int) -> tuple[T, ...]:
    """Return one value per level from a field that holds one value or one per level."""
    return value if isinstance(value, tuple) else (value,) * levels


DEMO = UNetConfig(
    sample_size=12,
    block_out_channels=(64, 128, 192),
    layers_per_block=1,
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    attention_head_dim=(2, 4, 6),
    cross_attention_dim=128,
    norm_num_groups=16,
    addition_embed_type="text",
    addition_embed_type_num_heads=8,
)
# Widths are multiples of 64, and heads have 64 channels, which GPUs compute fastest.
BASE = UNetConfig(
    sample_size=32,
    block_out_channels=(192, 384, 576, 768),
    attention_head_dim=(3, 6, 9, 12),
    use_linear_projection=True,
)
PRESETS = {
    "tiny-32": UNetConfig(
        sample_size=8,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=(1, 2),
        cross_attention_dim=64,
        norm_num_groups=8,
    ),
    "fashion-32": UNetConfig(
        sample_size=8,
        block_out_channels=(96, 192),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=(3, 6),
        cross_attention_dim=64,
        norm_num_groups=16,
    ),
    "demo": DEMO,
    "small-64": replace(DEMO, sample_size=16),
    "small-128": replace(DEMO, sample_size=16),
    "base-128": replace(
        BASE,
        sample_size=16,
        block_out_channels=(192, 384, 384),
        down_block_types=("CrossAttnDownBlock2D",) * 3,
        up_block_types=("CrossAttnUpBlock2D",) * 3,
        attention_head_dim=(3, 6, 6),
    ),  # 99 million parameters
    "base-256": BASE,  # 251 million
    "base-512": replace(
        BASE,
        sample_size=64,
        down_block_types=("DownBlock2D",) + ("CrossAttnDownBlock2D",) * 3,
        up_block_types=("CrossAttnUpBlock2D",) * 3 + ("UpBlock2D",),
    ),  # 311 million; no attention at 64x64, where it costs most
    "sd15": UNetConfig(),
    "sd21": UNetConfig(
        sample_size=96,
        attention_head_dim=(5, 10, 20, 20),
        cross_attention_dim=1024,
        use_linear_projection=True,
        upcast_attention=True,
    ),
}
