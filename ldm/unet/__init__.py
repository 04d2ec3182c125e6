"""The cross-attention U-Net of Stable Diffusion 1.x and 2.x, as a network of plain tensors.

It knows no schedule, no sampler and no text: it must not import them, nor autoencoder and
conditioning.
"""

from ldm.unet.cached import CachedUNet
from ldm.unet.config import PRESETS, UNetConfig
from ldm.unet.unet import UNet

__all__ = ["PRESETS", "CachedUNet", "UNet", "UNetConfig"]
