"""Text to context, for the cross-attention of a latent diffusion model."""

from conditioning.encoder import TextEncoder

__all__ = ["TextEncoder"]
