"""The KL autoencoder, usable on its own: images to latents and back.

Its training lives in `autoencoder.training`, which `import autoencoder` does not load, so that only
torch, einops, safetensors, huggingface_hub and jaxtyping are needed. Of our packages, it must not
import any but foundation and interop.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from autoencoder.model import PRESETS, Autoencoder, AutoencoderConfig
    from autoencoder.posterior import Posterior

__all__ = ["PRESETS", "Autoencoder", "AutoencoderConfig", "Posterior"]


def __getattr__(name: str):
    """Load the model when it is used: `autoencoder.training.config` must not bring torch along."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from autoencoder import model

    return getattr(model, name)
