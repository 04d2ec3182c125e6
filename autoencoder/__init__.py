"""The KL autoencoder, usable on its own: images to latents and back.

Its training lives in `autoencoder.training`, which `import autoencoder` does not load, so that only
torch, einops, safetensors, huggingface_hub and jaxtyping are needed. Of our packages, it must not
import any but foundation and interop.
"""

from autoencoder.model import PRESETS, Autoencoder, AutoencoderConfig
from autoencoder.posterior import Posterior

__all__ = ["PRESETS", "Autoencoder", "AutoencoderConfig", "Posterior"]
