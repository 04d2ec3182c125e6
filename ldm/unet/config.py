"""The architecture of the U-Net, in numbers; by the names of diffusers' config.json."""

from dataclasses import dataclass, replace
from typing import Any

from foundation.errors import UserError


@dataclass(frozen=True, kw_only=True)
class UNetConfig:
    """Field names are those of diffusers' config.json, so that either side reads the other's file.

    Levels go from the largest feature maps to the smallest; each next one has half the size.
    """

    in_channels: int = 4  # the autoencoder's latent_channels, and those of what is put beside them
    out_channels: int = 4  # of the prediction
    sample_size: int | tuple[int, int] | None = 64  # of the latents trained on; a note, no limit
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)  # per level
    layers_per_block: int | tuple[int, ...] = 2  # residual blocks per level, on the way down
    # Which stages look at the text: those with CrossAttn in their name.
    down_block_types: tuple[str, ...] = ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",)
    mid_block_type: str = "UNetMidBlock2DCrossAttn"
    up_block_types: tuple[str, ...] = ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3  # smallest first
    only_cross_attention: bool | tuple[bool, ...] = False  # pixels look at the text alone; not mid
    cross_attention_dim: int | None = 768  # width of the text embedding; None: it reads no text
    attention_head_dim: int | tuple[int, ...] = 8  # number of heads (!), per level or for all
    use_linear_projection: bool = False  # shape of two weights: SD 1.x False, SD 2.x True
    upcast_attention: bool = False  # a note: the attention used here always accumulates in fp32
    norm_num_groups: int = 32  # of the group norms; divides the channels of every level
    dropout: float = 0.0  # chance to drop a feature inside a residual block
    num_class_embeds: int | None = None  # class labels that have an embedding, added to the time's
    class_embed_type: str | None = None  # "timestep": labels are numbers, embedded like the time

    def __post_init__(self):
        levels = len(self.block_out_channels)
        for name in PER_LEVEL:
            value = getattr(self, name)
            if levels == 0 or (isinstance(value, tuple) and len(value) != levels):
                raise UserError(
                    f"{name}={value} does not fit block_out_channels={self.block_out_channels}, "
                    f"which is for {levels} levels; give one value for each."
                )
        for name, allowed in CHOICES.items():
            value = getattr(self, name)
            for one in value if isinstance(value, tuple) else (value,):
                if one not in allowed:
                    choices = " and ".join(map(str, allowed))
                    raise UserError(f"{name}: {one!r} is not one of {choices}.")
        if self.cross_attention_dim is None:
            if self.conditional:
                raise UserError(
                    "cross_attention_dim is None, for a U-Net that reads no text, but some of its "
                    "blocks look at one: those with CrossAttn in their name."
                )
            # A number that nothing looks at, without which diffusers does not open the folder.
            object.__setattr__(self, "cross_attention_dim", type(self).cross_attention_dim)
        heads_per_level = per_level(self.attention_head_dim, levels)
        for channels, heads in zip(self.block_out_channels, heads_per_level, strict=True):
            if channels < 1 or channels % self.norm_num_groups or channels % 2:
                raise UserError(
                    f"block_out_channels: {channels} must be even and a multiple of "
                    f"norm_num_groups={self.norm_num_groups}."
                )
            if self.conditional and (heads < 1 or channels % heads):
                raise UserError(
                    f"attention_head_dim: {channels} channels do not split into {heads} heads "
                    "(the name is diffusers'; it counts heads)."
                )

    @property
    def conditional(self) -> bool:
        """Whether any block looks at a text; without, the network takes no context."""
        types = (*self.down_block_types, self.mid_block_type, *self.up_block_types)
        return any("CrossAttn" in block for block in types)

    def stage(self, level: int) -> dict[str, Any]:
        """What the blocks of a level share, on the way down and up."""
        levels = len(self.block_out_channels)
        return {
            "heads": per_level(self.attention_head_dim, levels)[level],
            "time_width": 4 * self.block_out_channels[0],
            "context_width": self.cross_attention_dim,
            "groups": self.norm_num_groups,
            "dropout": self.dropout,
            "linear_projection": self.use_linear_projection,
            "only_cross_attention": per_level(self.only_cross_attention, levels)[level],
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
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "mid_block_type": ("UNetMidBlock2D", "UNetMidBlock2DCrossAttn"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}


def per_level(value: int | tuple[int, ...], levels: int) -> tuple[int, ...]:
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
    "demo": DEMO,
    "small-64": replace(DEMO, sample_size=16),
    "sd15": UNetConfig(),
    "sd21": UNetConfig(
        sample_size=96,
        attention_head_dim=(5, 10, 20, 20),
        cross_attention_dim=1024,
        use_linear_projection=True,
        upcast_attention=True,
    ),
}
