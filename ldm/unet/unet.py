"""The network of stage 2: the cross-attention U-Net of Stable Diffusion 1.x and 2.x.

Rombach et al. 2022 (arXiv:2112.10752). Those for inpainting and upscaling see more channels, the
latter a noise level, too. Names of parameters and of config fields are those of diffusers'
UNet2DConditionModel, so that either library opens the other's files. The network knows no
probability: what it predicts, and at which noise, is the business of `ldm.denoiser`.
"""

from collections.abc import Sequence
from dataclasses import asdict, fields
from functools import partial
from itertools import zip_longest
from pathlib import Path

import torch
from jaxtyping import Float, Real
from torch import Tensor, nn

from foundation.errors import UserError
from foundation.shapes import Context, Timesteps
from interop.diffusers_configs import unet_fields
from interop.single_file.reader import read_unet
from ldm.unet import io as files
from ldm.unet.blocks import Stage, directly, down_blocks, mid_block, up_blocks
from ldm.unet.config import PRESETS, UNetConfig
from ldm.unet.gradient_checkpointing import checkpointed
from ldm.unet.layers import Kernel, Shift, Text, TimeEmbedding, TimeFeatures, silu, zero_init

__all__ = ["PRESETS", "Prepared", "UNet", "UNetConfig"]


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
        context: "Context | Prepared | None" = None,
        class_labels: Real[Tensor, " b"] | None = None,
    ) -> Float[Tensor, "_ c_out h w"]:
        """
        Args:
            context: or what `prepare` made of it, in which case all timesteps are alike, and if it
                holds several contexts per image, there are so many times as many results.
            class_labels: for a U-Net that knows classes; to the x4 upscaler, the noise level of the
                small image, 0 to 350.
        """
        self.check_input(latents, context)
        self.check_labels(class_labels)
        if not isinstance(context, Prepared):
            time = self.time_features(timesteps, class_labels)
            return self.run(latents, [time] * len(self.stages), [context] * len(self.stages))
        if class_labels is None:
            return self.run(latents, context.shifts(timesteps), context.texts, context.kernels)
        time = self.time_features(timesteps, class_labels)
        return self.run(latents, [time] * len(self.stages), context.texts, context.kernels)

    @property
    def stages(self) -> list[Stage]:
        """In the order in which they are passed."""
        return [*self.down_blocks, self.mid_block, *self.up_blocks]

    def time_features(
        self, timesteps: Timesteps, class_labels: Real[Tensor, " b"] | None = None
    ) -> TimeFeatures:
        embedding = self.time_embedding(timesteps.to(self.conv_in.weight.device))
        if self.class_embedding is not None:
            embedding = embedding + self.class_embedding(class_labels)
        return silu(embedding)

    def prepare(self, context: Context) -> "Prepared":
        """For many calls with one context, as a sampler makes them: what is the same in all."""
        return Prepared(self, context)

    def run(
        self,
        latents: Float[Tensor, "b c_in h w"],
        times: list[TimeFeatures] | list[list[Shift]],
        texts: list[Context | None] | list[list[Text]],
        kernels: Sequence[list[Kernel]] = (),
    ) -> Float[Tensor, "_ c_out h w"]:
        """The network itself, of tensors alone; the lists have one entry per stage, `kernels` per
        stage on the way up."""
        checkpointing = self.gradient_checkpointing and torch.is_grad_enabled()
        call = checkpointed(latents.device) if checkpointing else directly
        told = iter(zip(times, texts, strict=True))
        if latents.device.type != "cpu":
            latents = latents.contiguous(memory_format=torch.channels_last)  # see blocks.py
        x = self.conv_in(latents)
        skips = [x]
        for stage in self.down_blocks:
            skips += stage(skips[-1], *next(told), call)
        x = self.mid_block(skips[-1], *next(told), call)
        for stage, its_kernels in zip_longest(self.up_blocks, kernels, fillvalue=()):
            passed = [skips.pop() for _ in stage.resnets]
            x = stage(x, passed, *next(told), call, its_kernels)
        return self.conv_out(silu(self.conv_norm_out(x))).contiguous()

    def check_size(self, height: int, width: int) -> None:
        """Refuses latents that cannot be halved at every level but the last."""
        halvings = len(self.config.block_out_channels) - 1
        if height % 2**halvings or width % 2**halvings:
            raise UserError(
                f"latents are {height}x{width}; this U-Net halves them {halvings} times, so both "
                f"sides must be multiples of {2**halvings}. Choose the size of the images so."
            )

    def check_input(
        self, latents: Float[Tensor, "b c h w"], context: "Context | Prepared | None"
    ) -> None:
        """Refuses what would fail deep inside, or, worse, be ignored."""
        self.check_size(*latents.shape[-2:])
        taken, given = self.config.in_channels, self.config.out_channels
        if latents.shape[1] != taken:
            more = (
                f" It gives {given}, so it wants {taken - given} more after those of the latents: "
                "the mask and the masked image for inpainting, or the small image to upscale."
            )
            raise UserError(
                f"latents have {latents.shape[1]} channels, this U-Net takes {taken}; it must be "
                f"one made for the same autoencoder.{more if taken > given else ''}"
            )
        if not isinstance(context, Prepared):
            self.check_context(context)
        elif context.rows % len(latents):
            raise UserError(
                f"the prepared context has {context.rows} rows for {len(latents)} images; it must "
                "have one for each, or one for each under every prompt."
            )

    def check_context(self, context: Context | None) -> None:
        if self.config.conditional and context is None:
            raise UserError("this U-Net was built to look at a text, but got no context.")
        if not self.config.conditional and context is not None:
            raise UserError("this U-Net is unconditional; give no context.")
        if context is not None and context.shape[-1] != self.config.cross_attention_dim:
            raise UserError(
                f"context vectors have width {context.shape[-1]}, this U-Net takes "
                f"{self.config.cross_attention_dim}; it must be one made for the same text encoder."
            )

    def check_labels(self, class_labels: Real[Tensor, " b"] | None) -> None:
        if self.class_embedding is None and class_labels is not None:
            raise UserError("this U-Net knows no classes; give no class_labels.")
        if self.class_embedding is not None and class_labels is None:
            raise UserError("this U-Net was built to know a class, but got no class_labels.")

    @classmethod
    def load(cls, source: Path | str, ema: bool = False) -> "UNet":
        """From a run folder, a pipeline folder, a unet folder, ours or diffusers', or a single file
        in CompVis' or Stability's layout; fp32.

        ema: from a single file that holds two U-Nets, the one averaged in training.
        """
        source, names = Path(source), {entry.name for entry in fields(UNetConfig)}
        if source.is_file():
            part = read_unet(source, ema)
            config, fit = unet_fields(part.config, names, source), part.state_dict_for
        elif ema:
            raise UserError(
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


class Prepared:
    """A context as the layers of a U-Net see it, and the times at which it was asked for so far.

    Keys and values of its attention depend on the context alone, the shifts of its residual blocks
    on the time alone, the kernels of its doublings on neither; all are computed once for all steps
    of a sampler, so the weights must not change in between.
    """

    def __init__(self, unet: UNet, context: Context):
        """context: of each image; or of each under one prompt, of each under the next, ..."""
        unet.check_context(context)
        self.unet, self.rows = unet, len(context)
        self.texts: list[list[Text]] = [stage.read(context) for stage in unet.stages]
        on_cpu = unet.conv_in.weight.device.type == "cpu"
        self.kernels = [stage.kernels() for stage in unet.up_blocks] if on_cpu else []
        self.known: dict[float, list[list[Shift]]] = {}

    def shifts(self, timesteps: Timesteps) -> list[list[Shift]]:
        """Of every stage. Looks at the timesteps, so a GPU is not waited for if they lie on the
        CPU."""
        t = float(timesteps[0])
        if not (timesteps == t).all():
            raise UserError("a prepared context is for one time a call, alike for all images.")
        if t not in self.known:
            device = self.unet.conv_in.weight.device
            time = self.unet.time_features(torch.full((1,), t, device=device))
            self.known[t] = [stage.shifts(time) for stage in self.unet.stages]
        return self.known[t]
