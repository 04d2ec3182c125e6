"""The network of stage 2: the cross-attention U-Net of Stable Diffusion 1.x and 2.x.

Rombach et al. 2022 (arXiv:2112.10752). Those for inpainting and upscaling see more channels, the
latter a noise level, too. Names of parameters and of config fields are those of diffusers'
UNet2DConditionModel, so that either library opens the other's files. The network knows no
probability: what it predicts, and at which noise, is the business of `ldm.denoiser`.
"""

import operator
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Real
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from interop.diffusers_unet import unet_fields
from interop.single_file import read_unet
from ldm import files
from ldm.blocks import DownStage, MidStage, TimeEmbedding, UpStage, silu, zero_init
from ldm.shapes import Context, Timesteps


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
    cross_attention_dim: int = 768  # width of the text embedding (CLIP ViT-L/14: 768)
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
                raise ValueError(
                    f"{name}={value} does not fit block_out_channels={self.block_out_channels}, "
                    f"which is for {levels} levels; give one value for each."
                )
        for name, allowed in CHOICES.items():
            value = getattr(self, name)
            for one in value if isinstance(value, tuple) else (value,):
                if one not in allowed:
                    choices = " and ".join(map(str, allowed))
                    raise ValueError(f"{name}: {one!r} is not one of {choices}.")
        heads_per_level = per_level(self.attention_head_dim, levels)
        for channels, heads in zip(self.block_out_channels, heads_per_level, strict=True):
            if channels < 1 or channels % self.norm_num_groups or channels % 2:
                raise ValueError(
                    f"block_out_channels: {channels} must be even and a multiple of "
                    f"norm_num_groups={self.norm_num_groups}."
                )
            if self.conditional and (heads < 1 or channels % heads):
                raise ValueError(
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


class UNet(nn.Module):
    """(latents, timesteps, context) -> what the denoiser makes of it; same size as the latents.

    Set `gradient_checkpointing` to trade a third of the speed for most of the memory in training.
    """

    def __init__(self, config: UNetConfig):
        super().__init__()
        self.config = config
        self.gradient_checkpointing = False
        width = config.block_out_channels[0]
        self.conv_in = nn.Conv2d(config.in_channels, width, 3, padding=1)
        self.time_embedding = TimeEmbedding(width, 4 * width)
        self.class_embedding = None
        if config.class_embed_type == "timestep":
            self.class_embedding = TimeEmbedding(width, 4 * width)
        elif config.num_class_embeds is not None:
            self.class_embedding = nn.Embedding(config.num_class_embeds, 4 * width)
        self.down_blocks, skips = down_blocks(config)
        self.mid_block = mid_block(config)
        self.up_blocks = up_blocks(config, skips)
        self.conv_norm_out = nn.GroupNorm(config.norm_num_groups, width, eps=1e-5)
        self.conv_out = zero_init(nn.Conv2d(width, config.out_channels, 3, padding=1))

    def forward(
        self,
        latents: Float[Tensor, "b c_in h w"],
        timesteps: Timesteps,
        context: Context | None = None,
        class_labels: Real[Tensor, " b"] | None = None,
    ) -> Float[Tensor, "b c_out h w"]:
        """class_labels: for a U-Net that knows classes; to the x4 upscaler, the noise level of the
        small image, 0 to 350."""
        self.check_input(latents, context)
        self.check_labels(class_labels)
        checkpointing = self.gradient_checkpointing and torch.is_grad_enabled()
        call = partial(checkpoint, use_reentrant=False) if checkpointing else operator.call

        embedding = self.time_embedding(timesteps)
        if self.class_embedding is not None:
            embedding = embedding + self.class_embedding(class_labels)
        time = silu(embedding)
        if latents.device.type != "cpu":
            latents = latents.contiguous(memory_format=torch.channels_last)  # see blocks.py
        x = self.conv_in(latents)
        skips = [x]
        for stage in self.down_blocks:
            skips += stage(skips[-1], time, context, call)
        x = self.mid_block(skips[-1], time, context, call)
        for stage in self.up_blocks:
            x = stage(x, skips, time, context, call)
        return self.conv_out(silu(self.conv_norm_out(x))).contiguous()

    def check_size(self, height: int, width: int) -> None:
        """Refuses latents that cannot be halved at every level but the last."""
        halvings = len(self.config.block_out_channels) - 1
        if height % 2**halvings or width % 2**halvings:
            raise ValueError(
                f"latents are {height}x{width}; this U-Net halves them {halvings} times, so both "
                f"sides must be multiples of {2**halvings}. Choose the size of the images so."
            )

    def check_input(self, latents: Float[Tensor, "b c h w"], context: Context | None) -> None:
        """Refuses what would fail deep inside, or, worse, be ignored."""
        self.check_size(*latents.shape[-2:])
        taken, given = self.config.in_channels, self.config.out_channels
        if latents.shape[1] != taken:
            more = (
                f" It gives {given}, so it wants {taken - given} more after those of the latents: "
                "the mask and the masked image for inpainting, or the small image to upscale."
            )
            raise ValueError(
                f"latents have {latents.shape[1]} channels, this U-Net takes {taken}; it must be "
                f"one made for the same autoencoder.{more if taken > given else ''}"
            )
        if self.config.conditional and context is None:
            raise ValueError("this U-Net was built to look at a text, but got no context.")
        if not self.config.conditional and context is not None:
            raise ValueError("this U-Net is unconditional; give no context.")
        if context is not None and context.shape[-1] != self.config.cross_attention_dim:
            raise ValueError(
                f"context vectors have width {context.shape[-1]}, this U-Net takes "
                f"{self.config.cross_attention_dim}; it must be one made for the same text encoder."
            )

    def check_labels(self, class_labels: Real[Tensor, " b"] | None) -> None:
        if self.class_embedding is None and class_labels is not None:
            raise ValueError("this U-Net knows no classes; give no class_labels.")
        if self.class_embedding is not None and class_labels is None:
            raise ValueError("this U-Net was built to know a class, but got no class_labels.")

    @classmethod
    def load(cls, source: Path | str, ema: bool = False) -> "UNet":
        """From a run folder, a pipeline folder, a unet folder, ours or diffusers', or a single file
        in CompVis' or Stability's layout; fp32.

        ema: from a single file that holds two U-Nets, the one averaged in training.
        """
        source, names = Path(source), {entry.name for entry in fields(UNetConfig)}
        if source.is_file():
            part = read_unet(source, ema)
            config, fit = unet_fields(part.config, names, source), part.fit
        elif ema:
            raise ValueError(
                f"{source} is no single file, and only these may hold a second U-Net, averaged in "
                "training. What train_ldm.py saves is averaged; leave ema out."
            )
        else:
            folder = files.find_folder(source)
            config, fit = files.read_config(folder, names), partial(files.read_weights, folder)
        with torch.device("meta"):  # no time lost on weights that are replaced at once
            unet = cls(UNetConfig(**config))
        unet.load_state_dict(fit(unet.state_dict()), assign=True)
        return unet

    def save(self, folder: Path | str, provenance: dict | None = None) -> None:
        """provenance: what these weights belong to, such as the autoencoder's sha256."""
        files.write(Path(folder), self, asdict(self.config), provenance or {})


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
    "demo": UNetConfig(
        sample_size=12,
        block_out_channels=(64, 128, 192),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=(2, 4, 6),
        cross_attention_dim=128,
        norm_num_groups=16,
    ),
    "small-64": UNetConfig(
        sample_size=16,
        block_out_channels=(64, 128, 192),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=(2, 4, 6),
        cross_attention_dim=128,
        norm_num_groups=16,
    ),
    "sd15": UNetConfig(),
    "sd21": UNetConfig(
        sample_size=96,
        attention_head_dim=(5, 10, 20, 20),
        cross_attention_dim=1024,
        use_linear_projection=True,
        upcast_attention=True,
    ),
}
