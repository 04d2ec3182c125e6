"""Text encoders, usable on their own: text to context, for a diffusion model's cross-attention.

A small CLIP can be trained here, too; its text tower becomes a `TextEncoder`. Of our packages, it
must not import any but foundation and interop.
"""

from conditioning.encoder import TextEncoder

__all__ = ["TextEncoder"]
