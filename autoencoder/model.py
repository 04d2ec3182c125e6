"""The KL autoencoder of Stable Diffusion: images to latents and back (arXiv:2112.10752, 3.1)."""

from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float64, Real
from torch import Tensor, nn

from autoencoder import io
from autoencoder.encoder_decoder import Decoder, Encoder
from autoencoder.half_precision import with_float32_fallback
from autoencoder.posterior import Posterior
from foundation.errors import UserError
from foundation.hashing import tensors_sha256
from foundation.json_reading import check_limits, from_json
from foundation.normalization import at_least_float32
from foundation.shapes import Images, Latents, Moments, PerChannel
from interop.diffusers_configs import autoencoder_fields
from interop.single_file.reader import read_autoencoder

LARGEST_FACTOR = 64  # of `AutoencoderConfig.with_factor`; no autoencoder shrinks images more
RANGE_TOLERANCE = 1e-3  # rounding of a resize or of a half-precision image; far below a gray level

# No network has more; such numbers in a file would fill the memory before weights are compared.
LIMITS = {
    "in_channels": (1, 1024),
    "out_channels": (1, 1024),
    "block_out_channels": (1, 65536),
    "layers_per_block": (1, 64),
    "latent_channels": (1, 4096),
    "norm_num_groups": (1, 65536),
    "sample_size": (1, 2**20),
    "scaling_factor": (-1e9, 1e9),
}


@dataclass(frozen=True, kw_only=True)
class AutoencoderConfig:
    """The architecture of an autoencoder; the defaults are that of Stable Diffusion.

    Field names are those of diffusers' config.json, so that either side reads the other's file.
    """

    in_channels: int = 3  # of the images that are encoded
    out_channels: int = 3  # of the decoded images
    block_out_channels: tuple[int, ...] = (128, 256, 512, 512)  # highest resolution first
    layers_per_block: int = 2  # residual blocks per resolution; the decoder has one more
    latent_channels: int = 4
    norm_num_groups: int = 32  # of every GroupNorm; must divide all of block_out_channels
    use_quant_conv: bool = True  # 1x1 convolution after the encoder; holds the latent statistics
    use_post_quant_conv: bool = True  # 1x1 convolution before the decoder
    mid_block_add_attention: bool = (
        True  # at the lowest resolution; its cost grows with the area squared
    )
    scaling_factor: float = 1.0  # latents are (z - shift_factor) * scaling_factor
    shift_factor: float | None = None  # None means 0
    latents_mean: tuple[float, ...] | None = None  # per channel, in place of a shift_factor
    latents_std: tuple[float, ...] | None = None  # with it: (z - mean) * scaling_factor / std
    sample_size: int = 256  # side of the training images in pixels; only information
    force_upcast: bool = True  # tells diffusers to decode in float32 in a float16 pipeline

    def __post_init__(self):
        if not self.block_out_channels:
            raise UserError("block_out_channels is empty; give one width per resolution.")
        check_limits(self, LIMITS)
        for width in self.block_out_channels:
            if width < 1 or width % self.norm_num_groups:
                raise UserError(
                    f"block_out_channels has {width}, which norm_num_groups={self.norm_num_groups} "
                    "does not divide; every normalization needs equal groups. Choose multiples "
                    f"of {self.norm_num_groups}, or fewer groups."
                )
        if not self.scaling_factor > 0:
            raise UserError(f"scaling_factor is {self.scaling_factor}; it must be positive.")
        self._check_statistics()

    def _check_statistics(self) -> None:
        """Refuse statistics from which it is not clear what the latents are."""
        mean, std = self.latents_mean, self.latents_std
        if mean is None and std is None:
            return
        if mean is None or std is None or self.shift_factor:
            raise UserError(
                f"latents_mean={mean}, latents_std={std}, shift_factor={self.shift_factor}: "
                "latents_mean and latents_std must be given together, and without a shift_factor; "
                "otherwise it is not clear what the latents are. Set to null what the denoiser was "
                "not trained with."
            )
        if not len(mean) == len(std) == self.latent_channels or min(std) <= 0:
            raise UserError(
                f"latents_mean={mean}, latents_std={std}: each needs one number for each of the "
                f"{self.latent_channels} latent channels, and all of latents_std must be positive."
            )

    def with_factor(self, factor: int) -> "AutoencoderConfig":
        """Return this architecture with so many levels that it shrinks images `factor` times.

        Levels of low resolution are left out, or added with the width of the last one.

        Raises:
            UserError: factor is not a power of 2, or too large.
        """
        if factor < 1 or factor & (factor - 1) or factor > LARGEST_FACTOR:
            raise UserError(
                f"factor is {factor}; each level halves the sides of an image, so it must be a "
                f"power of 2, at most {LARGEST_FACTOR}."
            )
        levels = factor.bit_length()
        widths = self.block_out_channels
        return replace(self, block_out_channels=(*widths, *widths[-1:] * levels)[:levels])

    @property
    def scaled(self) -> bool:
        """Whether the output of the network has to be shifted or scaled to become latents."""
        return bool(self.scaling_factor != 1 or self.shift_factor or self.latents_mean)

    def scale_and_shift(self) -> tuple[Float64[Tensor, " c"], Float64[Tensor, " c"]]:
        """Return scale and shift of each channel.

        Latents are (z - shift) * scale, where z is the output of the network.
        """
        c = self.latent_channels
        std = torch.tensor(self.latents_std or (1.0,) * c, dtype=torch.float64)
        shift = torch.tensor(
            self.latents_mean or (self.shift_factor or 0.0,) * c, dtype=torch.float64
        )
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
        self.scalings: dict[tuple[torch.device, torch.dtype], tuple[PerChannel, PerChannel]] = {}
        z = config.latent_channels
        self.encoder = Encoder(
            config.in_channels,
            z,
            widths=config.block_out_channels,
            layers=config.layers_per_block,
            groups=config.norm_num_groups,
            mid_attention=config.mid_block_add_attention,
        )
        self.decoder = Decoder(
            config.out_channels,
            z,
            widths=config.block_out_channels,
            layers=config.layers_per_block,
            groups=config.norm_num_groups,
            mid_attention=config.mid_block_add_attention,
        )
        self.quant_conv = nn.Conv2d(2 * z, 2 * z, 1) if config.use_quant_conv else nn.Identity()
        self.post_quant_conv = nn.Conv2d(z, z, 1) if config.use_post_quant_conv else nn.Identity()

    @property
    def factor(self) -> int:
        """How many times smaller than the images each side of the latents is."""
        return 2 ** (len(self.config.block_out_channels) - 1)

    def matrices(self) -> list[nn.Parameter]:
        """List the convolutions and linear layers inside the blocks, for Muon."""
        outer = "conv_in", "conv_out", "quant_conv"
        return [
            weight
            for name, weight in self.named_parameters()
            if weight.ndim > 1 and not any(part in name for part in outer)
        ]

    @property
    def dtype(self) -> torch.dtype:
        """Data type of the weights."""
        return self.encoder.conv_in.weight.dtype

    def encode(self, images: Images, check: bool = True) -> Posterior:
        """Return the Gaussian over the latents of each image, in float32 or better.

        Args:
            images: pixels in [-1, 1], both sides multiples of `factor`.
            check: also check the values of images and result, for which the host waits for the
                GPU; training turns it off. A result that overflows in half precision is computed
                again in float32, with a warning.

        Raises:
            UserError: the images have another size, channel count or range.
            NotFiniteError: the result is not finite, even in float32.
        """
        check_images(images, self.config.in_channels, self.factor, values=check)
        if check:
            moments = with_float32_fallback(self, self.moments, images, "encoding of the images")
        else:
            moments = self.moments(images)
        posterior = Posterior.from_moments(moments)
        return posterior.scaled(*self._scaling(posterior.mean)) if self.config.scaled else posterior

    def decode(self, latents: Latents, check: bool = True) -> Images:
        """Return images around [-1, 1], not clamped, in float32 or better.

        check: also check the values of the result, as in `encode`.
        """
        check_latents(latents, self.config.latent_channels)
        latents = self.unscaled(latents)
        if check:
            return with_float32_fallback(self, self.pixels, latents, "decoding of the latents")
        return self.pixels(latents)

    def unscaled(self, latents: Latents) -> Latents:
        """Undo scale and shift: return latents as the encoder network gives them."""
        if not self.config.scaled:
            return latents
        scale, shift = self._scaling(at_least_float32(latents))
        return latents / scale + shift

    def moments(self, images: Images) -> Moments:
        """Return the output of the encoder network, without checks and before any scaling."""
        return at_least_float32(self.quant_conv(self.encoder(images.to(self.dtype))))

    def pixels(self, latents: Latents) -> Images:
        """Return the output of the decoder network for latents whose scaling has been undone."""
        return at_least_float32(self.decoder(self.post_quant_conv(latents.to(self.dtype))))

    def _scaling(self, latents: Latents) -> tuple[PerChannel, PerChannel]:
        """Return the config's scale and shift, on the device and in the data type of `latents`."""
        key = latents.device, latents.dtype
        if key not in self.scalings:  # a copy in each step would make the host wait
            scale, shift = self.config.scale_and_shift()
            with torch.inference_mode(False):
                self.scalings[key] = (
                    scale.to(*key)[:, None, None],
                    shift.to(*key)[:, None, None],
                )
        return self.scalings[key]

    def forward(self, images: Images, noise: Latents) -> tuple[Images, Posterior]:
        """Compute what a training step needs: the decoded sample, and the posterior it is from.

        noise: standard normal; passed in, so that it does not depend on how a batch is divided.
        """
        posterior = self.encode(images, check=False)
        return self.decode(posterior.sample_with(noise), check=False), posterior

    def latent_shape(
        self, images: Real[Tensor, "b channels height width"]
    ) -> tuple[int, int, int, int]:
        """Return the shape of the latents of these images, or of images of so many pixels."""
        count, _, height, width = images.shape
        return count, self.config.latent_channels, height // self.factor, width // self.factor

    def compile_for_training(self) -> None:
        """Compile all but the decoder's last convolution.

        The adaptive weight of the loss needs the gradient of that layer alone, and a compiled
        function has only one backward pass, through all of it.
        """
        self.encoder.compile()  # pyright: ignore[reportUnknownMemberType]
        self.decoder.compile_features()

    @classmethod
    def load(cls, source: str | Path, device: str | torch.device = "cpu") -> "Autoencoder":
        """Load an autoencoder from disk, in float32 and in evaluation mode.

        source: a run folder, a pipeline folder, the folder of an AutoencoderKL of diffusers, or a
            single file in CompVis' or Stability's layout, of a whole model or of an autoencoder.

        Raises:
            MissingFileError: there is no autoencoder.
            UserError: the files are damaged, or describe another network than this one.
        """
        source = Path(source)
        if source.is_file():
            part = read_autoencoder(source)
            fields, read_weights = autoencoder_fields(part.config, source), part.state_dict_for
            described = source
        else:
            folder = io.find_model_folder(source)
            fields, read_weights = io.read_config(folder), partial(io.read_weights, folder)
            described = folder / io.CONFIG
        with torch.device("meta"):  # the weights come from the file: nothing to initialize
            autoencoder = cls(from_json(AutoencoderConfig, fields, described))
        autoencoder.load_state_dict(read_weights(autoencoder.state_dict()), assign=True)
        return autoencoder.to(device).eval()

    @property
    def sha256(self) -> str:
        """Hash of the weights as numbers, whatever the layout, precision or header of a file."""
        return tensors_sha256(self.state_dict())

    def save(self, folder: str | Path, provenance: dict[str, Any] | None = None) -> None:
        """Write a folder that `load` and `diffusers.AutoencoderKL.from_pretrained` open.

        The folder appears whole or not at all; other files in it stay.

        provenance: facts to keep with the weights (JSON), such as the data, the step, the settings.
        """
        io.write_folder(Path(folder), asdict(self.config), self.state_dict(), provenance or {})


def check_images(images: Images, channels: int, factor: int, values: bool = True) -> None:
    """Refuse images that would fail deep inside the encoder or, worse, be encoded wrongly.

    Args:
        channels, factor: what the autoencoder needs.
        values: also check that the values lie in [-1, 1].

    Raises:
        UserError: channel count, size or values do not fit.
    """
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
                "Convert 8-bit pixels by x / 127.5 - 1, and clamp decoded images to (-1, 1)."
            )


def check_latents(latents: Latents, channels: int) -> None:
    """Refuse latents with another number of channels than the autoencoder has.

    Raises:
        UserError: the number of channels is not `channels`.
    """
    given = latents.shape[1]
    if given != channels:
        message = f"latents have {given} channels; this autoencoder has {channels}."
        if given == 2 * channels:
            message += " These look like moments: use posterior.sample() or .mode()."
        raise UserError(message)


# Named by the size of the images and the budget that they are for. From 128 pixels on they shrink
# images 8 times. 4 latent channels: with more, reconstructions are better, but a denoiser needs
# longer to learn the latents (arXiv:2502.09509, table 1; arXiv:2501.01423, table 2).
PRESETS = {
    "tiny-32": AutoencoderConfig(
        block_out_channels=(16, 32, 32),
        layers_per_block=1,
        norm_num_groups=8,
        mid_block_add_attention=False,
        sample_size=32,
    ),
    "fashion-32": AutoencoderConfig(
        in_channels=1,
        out_channels=1,
        block_out_channels=(16, 32, 64),
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
    "small-128": AutoencoderConfig(
        block_out_channels=(32, 64, 96, 128),
        layers_per_block=1,
        norm_num_groups=16,
        mid_block_add_attention=False,
        sample_size=128,
    ),
    "base-128": AutoencoderConfig(block_out_channels=(64, 128, 256, 256), sample_size=128),
    "base-256": AutoencoderConfig(sample_size=256),  # 83.7 million parameters, as sd15
    "base-512": AutoencoderConfig(sample_size=512),
    "sd15": AutoencoderConfig(sample_size=512),  # Stable Diffusion 1.x
}
