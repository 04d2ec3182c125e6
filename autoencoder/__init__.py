"""The KL autoencoder, usable alone: images to latents and back.

Training it (`losses`, `perceptual`, `discriminator`, `statistics`) is imported by name, so that
`import autoencoder` needs torch, einops, safetensors and jaxtyping only.
"""

from autoencoder.model import PRESETS, Autoencoder, AutoencoderConfig
from autoencoder.posterior import Posterior

__all__ = ["PRESETS", "Autoencoder", "AutoencoderConfig", "Posterior"]
