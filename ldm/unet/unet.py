"""The network of stage 2: the cross-attention U-Net of Stable Diffusion 1.x and 2.x.

Rombach et al. 2022 (arXiv:2112.10752). U-Nets for inpainting and upscaling have more input
channels, the latter also a noise level. Names of parameters and of config fields are those of
diffusers' UNet2DConditionModel, so that either library opens the other's files. The network knows
no probability: what it predicts, and at which noise, is the business of `ldm.denoiser`.
"""

from collections.abc import Mapping
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Real
from torch import Tensor, nn

from foundation.errors import UserError
from foundation.json_reading import from_json
from foundation.normalization import GroupNorm
from foundation.shapes import Context, Timesteps
from interop.diffusers_configs import unet_fields
from interop.single_file.reader import read_unet
from ldm.unet import io
from ldm.unet.blocks import UNetBlock, UpBlock, make_down_blocks, make_mid_block, make_up_blocks
from ldm.unet.config import UNetConfig
from ldm.unet.layers import PooledText, TimeEmbedding, TimeFeatures, of_type, silu, zero_init

ClassLabels = Real[Tensor, " b"]


class UNet(nn.Module):
    """Predict noise, velocity, clean latents or flow from noisy latents, a timestep and a context.

    The output has the size of the latents. What it means is known to `ldm.denoiser.Denoiser`. A
    sampler calls the network many times with the same context: `ldm.unet.CachedUNet` is faster.
    """

    def __init__(self, config: UNetConfig):
        super().__init__()
        self.config = config
        width = config.block_out_channels[0]
        self.conv_in = nn.Conv2d(config.in_channels, width, 3, padding=1)
        self.time_embedding = TimeEmbedding(width, 4 * width)
        self.class_embedding: TimeEmbedding | nn.Embedding | None = None
        if config.class_embed_type == "timestep":
            self.class_embedding = TimeEmbedding(width, 4 * width)
        elif config.num_class_embeds is not None:
            self.class_embedding = nn.Embedding(config.num_class_embeds, 4 * width)
        self.add_embedding: PooledText | None = None
        if config.addition_embed_type == "text":
            assert config.cross_attention_dim is not None  # see UNetConfig
            heads = config.addition_embed_type_num_heads
            self.add_embedding = PooledText(config.cross_attention_dim, 4 * width, heads)
        self.down_blocks, skips = make_down_blocks(config)
        self.mid_block = make_mid_block(config)
        self.up_blocks = make_up_blocks(config, skips)
        self.conv_norm_out = GroupNorm(config.norm_num_groups, width, eps=1e-5)
        self.conv_out = zero_init(nn.Conv2d(width, config.out_channels, 3, padding=1))

    def forward(
        self,
        latents: Float[Tensor, "b c_in h w"],
        timesteps: Timesteps,
        context: Context | None = None,
        class_labels: ClassLabels | None = None,
    ) -> Float[Tensor, "b c_out h w"]:
        """
        Args:
            latents: noisy latents; for inpainting and upscaling, more channels after these.
            timesteps: one per image, 0 (clean) to 999 (noise).
            context: text embedding; None if the U-Net is not conditional.
            class_labels: for a U-Net with classes; for the x4 upscaler, the noise level of the
                small image, 0 to 350.

        Raises:
            UserError: the arguments do not fit the config.
        """
        self.check_latents(latents)
        self.check_context(context)
        self.check_class_labels(class_labels)
        time = self.embed_time(timesteps, class_labels, self.pool_text(context))
        x = self.conv_in(to_fast_layout(latents))
        skips = [x]
        for block in self.down_blocks:
            outputs = block(x, time, context)
            skips += outputs
            x = outputs[-1]
        x = self.mid_block(x, time, context)
        for block in of_type(self.up_blocks, UpBlock):
            x = block(x, [skips.pop() for _ in block.resnets], time, context)
        return self.conv_out(silu(self.conv_norm_out(x))).contiguous()

    def embed_time(
        self,
        timesteps: Timesteps,
        class_labels: ClassLabels | None = None,
        pooled_text: TimeFeatures | None = None,
    ) -> TimeFeatures:
        """Embed timesteps, class labels and text, up to the SiLU that all residual blocks share.

        pooled_text: what `pool_text` returns.
        """
        embedding = self.time_embedding(timesteps.to(self.device))
        if self.class_embedding is not None:
            embedding = embedding + self.class_embedding(class_labels)
        if pooled_text is not None:
            embedding = embedding + pooled_text
        return silu(embedding)

    def pool_text(self, context: Context | None) -> TimeFeatures | None:
        """Return the vector of each text that residual blocks get; None if they get none."""
        if self.add_embedding is None or context is None:
            return None
        return self.add_embedding(context)

    @property
    def device(self) -> torch.device:
        return self.conv_in.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.conv_in.weight.dtype

    @property
    def blocks(self) -> list[UNetBlock]:
        """All blocks, in the order in which features pass."""
        blocks = [*self.down_blocks, self.mid_block, *self.up_blocks]
        return [block for block in blocks if isinstance(block, UNetBlock)]

    def matrices(self) -> list[nn.Parameter]:
        """List the convolutions and linear layers inside the blocks, but not those of the time."""
        return [
            weight
            for block in self.blocks
            for name, weight in block.named_parameters()
            if weight.ndim > 1 and "time_emb_proj" not in name
        ]

    @property
    def gradient_checkpointing(self) -> bool:
        """Trade a third of the training speed for most of the memory; False by default."""
        return self.mid_block.gradient_checkpointing

    @gradient_checkpointing.setter
    def gradient_checkpointing(self, enabled: bool) -> None:
        for block in self.blocks:
            block.gradient_checkpointing = enabled

    def check_size(self, height: int, width: int) -> None:
        """Refuse latents whose sides cannot be halved between all levels."""
        halvings = len(self.config.block_out_channels) - 1
        if height % 2**halvings or width % 2**halvings:
            raise UserError(
                f"latents are {height}x{width}; this U-Net halves both sides {halvings} times, so "
                f"they must be multiples of {2**halvings}. Choose the size of the images so."
            )

    def check_latents(self, latents: Float[Tensor, "b c h w"]) -> None:
        """Refuse latents of the wrong size or number of channels."""
        self.check_size(*latents.shape[-2:])
        expected, predicted = self.config.in_channels, self.config.out_channels
        if latents.shape[1] == expected:
            return
        hint = "it must be one made for the same autoencoder."
        if expected > predicted:
            hint += (
                f" It predicts {predicted} channels, so it needs {expected - predicted} more after "
                "those of the latents: the mask and the masked image for inpainting, or the small "
                "image to upscale."
            )
        raise UserError(
            f"latents have {latents.shape[1]} channels, this U-Net takes {expected}; {hint}"
        )

    def check_context(self, context: Context | None) -> None:
        """Refuse a context that is missing, not wanted, or of another text encoder."""
        if self.config.conditional and context is None:
            raise UserError("this U-Net is conditional on text, but got no context.")
        if not self.config.conditional and context is not None:
            raise UserError("this U-Net is not conditional on text; leave out the context.")
        if context is not None and context.shape[-1] != self.config.cross_attention_dim:
            raise UserError(
                f"context vectors have width {context.shape[-1]}, this U-Net takes "
                f"{self.config.cross_attention_dim}; it must be one made for the same text encoder."
            )

    def check_class_labels(self, class_labels: ClassLabels | None) -> None:
        """Refuse class labels that are missing or not wanted."""
        if self.class_embedding is None and class_labels is not None:
            raise UserError("this U-Net has no classes; leave out class_labels.")
        if self.class_embedding is not None and class_labels is None:
            raise UserError("this U-Net is conditional on a class, but got no class_labels.")

    @classmethod
    def load(cls, source: Path | str, ema: bool = False) -> "UNet":
        """Load a U-Net in fp32.

        source: a run folder, a pipeline folder, a unet folder (ours or diffusers'), or a single
            file in the layout of CompVis or Stability.
        ema: from a single file that holds two U-Nets, the one averaged in training.

        Raises:
            MissingFileError: nothing of the kind is there.
            UserError: the weights are not those of such a U-Net.
        """
        source, names = Path(source), {entry.name for entry in fields(UNetConfig)}
        if source.is_file():
            part = read_unet(source, ema)
            config, fit = unet_fields(part.config, names, source), part.state_dict_for
            described = source
        elif ema:
            raise UserError(
                f"{source} is no single file, and only these may hold a second U-Net, averaged in "
                "training. What a training saves here is averaged; leave ema out."
            )
        else:
            folder = io.find_folder(source)
            config, fit = io.read_config(folder, names), partial(io.read_weights, folder)
            described = folder / io.CONFIG
        with torch.device("meta"):  # no time lost on weights that are replaced at once
            unet = cls(from_json(UNetConfig, config, described))
        unet.load_state_dict(fit(unet.state_dict()), assign=True)
        return unet

    def save(self, folder: Path | str, provenance: Mapping[str, Any] | None = None) -> None:
        """Write the unet folder, atomically.

        provenance: what these weights belong to, such as the autoencoder's sha256 (JSON).
        """
        io.write(Path(folder), self, asdict(self.config), provenance or {})


def to_fast_layout(latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    """Choose the memory format of the feature maps; see `ldm.unet.layers`."""
    if latents.device.type == "cpu":
        return latents
    return latents.contiguous(memory_format=torch.channels_last)
