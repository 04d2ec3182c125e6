"""The KL autoencoder of Stable Diffusion: images to latents and back (arXiv:2112.10752, 3.1)."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor, nn

from autoencoder import io as files
from autoencoder.encoder_decoder import Decoder, Encoder
from autoencoder.half_precision import finite
from autoencoder.layers import at_least_float32
from autoencoder.posterior import Posterior
from foundation.errors import UserError
from foundation.hashing import tensors_sha256
from foundation.shapes import Images, Latents, Moments, PerChannel
from interop.diffusers_autoencoder import autoencoder_fields
from interop.single_file.reader import read_autoencoder

ENCODING, DECODING = "encoding of the images", "decoding of the latents"  # in messages
RANGE_TOLERANCE = 1e-3  # rounding of a resize or of a half-precision image; far below a gray level


@dataclass(frozen=True, kw_only=True)
class AutoencoderConfig:
    """Field names are those of diffusers' config.json, so that either side reads the other's file.

    The defaults are Stable Diffusion's architecture.
    """

    in_channels: int = 3  # of the images given to the encoder
    out_channels: int = 3  # of the images that the decoder gives
    block_out_channels: tuple[int, ...] = (128, 256, 512, 512)  # highest resolution first
    layers_per_block: int = 2  # residual blocks per resolution; the decoder has one more
    latent_channels: int = 4
    norm_num_groups: int = 32  # of every GroupNorm; must divide all of block_out_channels
    use_quant_conv: bool = True  # 1x1 convolution on the moments; holds the latents' statistics
    use_post_quant_conv: bool = True  # its counterpart before the decoder
    mid_block_add_attention: bool = True  # at the lowest resolution; cost grows with area squared
    scaling_factor: float = 1.0  # latents are (z - shift_factor) * scaling_factor
    shift_factor: float | None = None  # None is 0
    latents_mean: tuple[float, ...] | None = None  # per channel, in place of a shift_factor
    latents_std: tuple[float, ...] | None = None  # with it: (z - mean) * scaling_factor / std
    sample_size: int = 256  # side of the training images in pixels; a note, nothing depends on it
    force_upcast: bool = True  # a note to diffusers: decode in float32 in a float16 pipeline

    def __post_init__(self):
        if not self.block_out_channels:
            raise UserError("block_out_channels is empty; give one width per resolution.")
        for width in self.block_out_channels:
            if width < 1 or width % self.norm_num_groups:
                raise UserError(
                    f"block_out_channels has {width}, which norm_num_groups={self.norm_num_groups} "
                    "does not divide; every normalization needs equal groups. Choose multiples "
                    f"of {self.norm_num_groups}, or fewer groups."
                )
        for name in ("in_channels", "out_channels", "layers_per_block", "latent_channels"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; it must be at least 1.")
        if not self.scaling_factor > 0:
            raise UserError(f"scaling_factor is {self.scaling_factor}; it must be positive.")
        self.check_statistics()

    def check_statistics(self) -> None:
        mean, std = self.latents_mean, self.latents_std
        if mean is None and std is None:
            return
        if mean is None or std is None or self.shift_factor:
            raise UserError(
                f"latents_mean={mean}, latents_std={std}, shift_factor={self.shift_factor}: the "
                "first two come together, and in place of the third, or it is not known what the "
                "latents are. Set those to null that the denoiser was not trained with."
            )
        if not len(mean) == len(std) == self.latent_channels or min(std) <= 0:
            raise UserError(
                f"latents_mean={mean}, latents_std={std}: needed is one of each, the latter "
                f"positive, for each of the {self.latent_channels} latent channels."
            )

    @property
    def scaled(self) -> bool:
        """Whether anything is left to apply to what the network gives."""
        return bool(self.scaling_factor != 1 or self.shift_factor or self.latents_mean)

    def scale_and_shift(self) -> tuple[Float64[Tensor, " c"], Float64[Tensor, " c"]]:
        """Of each channel: latents are (z - shift) * scale, where z is what the network gives."""
        c = self.latent_channels
        std = self.latents_std or (1.0,) * c
        shift = self.latents_mean or (self.shift_factor or 0.0,) * c
        std, shift = (torch.tensor(x, dtype=torch.float64) for x in (std, shift))
        return self.scaling_factor / std, shift


class Autoencoder(nn.Module):
    """Encodes images into a Gaussian over latents, and decodes latents into images.

    The latents that cross this border are scaled: nobody outside multiplies or shifts them. In an
    autoencoder trained here the statistics are folded into the 1x1 convolutions and the config's
    scaling_factor is 1. What a foreign config says, scaling_factor with shift_factor, or with
    latents_mean and latents_std, is applied in `encode` and `decode`, and nowhere else.
    """

    def __init__(self, config: AutoencoderConfig):
        super().__init__()
        self.config = config
        widths, z = config.block_out_channels, config.latent_channels
        shared = {
            "widths": widths,
            "layers": config.layers_per_block,
            "groups": config.norm_num_groups,
            "mid_attention": config.mid_block_add_attention,
        }
        self.encoder = Encoder(config.in_channels, z, **shared)
        self.decoder = Decoder(config.out_channels, z, **shared)
        self.quant_conv = nn.Conv2d(2 * z, 2 * z, 1) if config.use_quant_conv else nn.Identity()
        self.post_quant_conv = nn.Conv2d(z, z, 1) if config.use_post_quant_conv else nn.Identity()

    @property
    def factor(self) -> int:
        """How many times smaller each side of the latents is."""
        return 2 ** (len(self.config.block_out_channels) - 1)

    @property
    def dtype(self) -> torch.dtype:
        return self.encoder.conv_in.weight.dtype

    def encode(self, images: Images, check: bool = True) -> Posterior:
        """The Gaussian over the latents of each image, in float32 or better.

        images: pixels in [-1, 1], both sides multiples of `factor`.
        check: also look at the values, which makes the host wait for a GPU. Training turns it off.
            What overflows in half precision is then computed again in float32, with a warning.
        """
        check_images(images, self.config.in_channels, self.factor, values=check)
        moments = finite(self, self.moments, images, ENCODING) if check else self.moments(images)
        posterior = Posterior.from_moments(moments)
        return posterior.scaled(*self.scaling(posterior.mean)) if self.config.scaled else posterior

    def decode(self, latents: Latents, check: bool = True) -> Images:
        """Images around [-1, 1], not clamped, in float32 or better. check: as in `encode`."""
        check_latents(latents, self.config.latent_channels)
        if self.config.scaled:
            scale, shift = self.scaling(at_least_float32(latents))
            latents = latents / scale + shift
        return finite(self, self.pixels, latents, DECODING) if check else self.pixels(latents)

    def moments(self, images: Images) -> Moments:
        """What the networks alone give, here and below: unchecked and unscaled."""
        return at_least_float32(self.quant_conv(self.encoder(images.to(self.dtype))))

    def pixels(self, latents: Latents) -> Images:
        return at_least_float32(self.decoder(self.post_quant_conv(latents.to(self.dtype))))

    def scaling(self, latents: Latents) -> tuple[PerChannel, PerChannel]:
        """`scale_and_shift`, where and in the precision in which the latents are."""
        return tuple(x.to(latents)[:, None, None] for x in self.config.scale_and_shift())

    def forward(self, images: Images, noise: Latents) -> tuple[Images, Posterior]:
        """A training step's view: the decoded sample and the posterior that it was drawn from.

        noise: standard normal; given, so that it does not depend on how a batch is divided.
        """
        posterior = self.encode(images, check=False)
        return self.decode(posterior.at(noise), check=False), posterior

    def latent_shape(self, images: Images) -> tuple[int, int, int, int]:
        """Of what the images are encoded to."""
        count, _, height, width = images.shape
        return count, self.config.latent_channels, height // self.factor, width // self.factor

    def compile_for_training(self) -> None:
        """Compiles all but the decoder's last convolution: the loss asks for the gradient of that
        layer alone, and a compiled function has only one backward pass, through all of it."""
        self.encoder.compile()
        self.decoder.features = torch.compile(self.decoder.features)

    @classmethod
    def load(cls, source: str | Path, device: str | torch.device = "cpu") -> "Autoencoder":
        """From a run folder, a pipeline folder, the folder of an AutoencoderKL of diffusers, or a
        single file in CompVis' or Stability's layout, of a whole model or of an autoencoder."""
        source = Path(source)
        if source.is_file():
            part = read_autoencoder(source)
            config, fit = autoencoder_fields(part.config, source), part.fit
        else:
            folder = files.find_model_folder(source)
            config, fit = files.read_config(folder), partial(files.read_weights, folder)
        with torch.device("meta"):  # the weights come from the file: nothing to initialize
            autoencoder = cls(AutoencoderConfig(**config))
        autoencoder.load_state_dict(fit(autoencoder.state_dict()), assign=True)
        return autoencoder.to(device).eval()

    @property
    def sha256(self) -> str:
        """Of the weights as numbers, so of no file's layout, precision or header."""
        return tensors_sha256(self.state_dict())

    def save(self, folder: str | Path, provenance: dict[str, Any] | None = None) -> None:
        """Writes a folder that `load` and `diffusers.AutoencoderKL.from_pretrained` open.

        provenance: facts worth keeping (JSON), such as the data, the step, the settings.
        """
        files.write_folder(Path(folder), self.config, self.state_dict(), provenance or {})


def check_images(images: Images, channels: int, factor: int, values: bool = True) -> None:
    """Rejects what would otherwise fail deep in the encoder or, worse, silently work."""
    if images.shape[1] != channels:
        raise UserError(
            f"images have {images.shape[1]} channels; this autoencoder was made for {channels}."
        )
    height, width = images.shape[-2:]
    if height % factor or width % factor or not height * width:
        rounded = [max(side // factor, 1) * factor for side in (height, width)]
        raise UserError(
            f"images are {height}x{width}; this autoencoder shrinks both sides {factor} times, so "
            f"they must be multiples of {factor}. Crop or resize, for example to "
            f"{rounded[0]}x{rounded[1]}."
        )
    if values and images.numel():
        low, high = (bound.item() for bound in images.aminmax())
        if not (low >= -1 - RANGE_TOLERANCE and high <= 1 + RANGE_TOLERANCE):  # refuses NaN, too
            raise UserError(
                f"images must be scaled to [-1, 1], got values in [{low:g}, {high:g}]. "
                "From 8-bit pixels: x / 127.5 - 1. After a decode: clamp(-1, 1)."
            )


def check_latents(latents: Latents, channels: int) -> None:
    given = latents.shape[1]
    if given != channels:
        hint = " These look like moments: take posterior.sample() or .mode()."
        raise UserError(
            f"latents have {given} channels; this autoencoder has {channels}."
            + (hint if given == 2 * channels else "")
        )


PRESETS = {
    "tiny-32": AutoencoderConfig(
        block_out_channels=(16, 32, 32),
        layers_per_block=1,
        norm_num_groups=8,
        mid_block_add_attention=False,
        sample_size=32,
    ),
    "demo": AutoencoderConfig(
        block_out_channels=(16, 32, 64),
        layers_per_block=1,
        norm_num_groups=8,
        mid_block_add_attention=False,
        sample_size=48,
    ),
    "small-64": AutoencoderConfig(
        block_out_channels=(32, 64, 96),
        layers_per_block=1,
        norm_num_groups=16,
        mid_block_add_attention=False,
        sample_size=64,
    ),
    "base-256": AutoencoderConfig(block_out_channels=(128, 256, 512), sample_size=256),
    "sd15": AutoencoderConfig(sample_size=512),  # Stable Diffusion 1.x, 83.7 million parameters
}
