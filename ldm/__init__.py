"""Stage 2: a diffusion model on the latents of a frozen autoencoder, conditional on text.

The modules, in the order in which they build on each other:

    schedule     z_t = alpha_t z_0 + sigma_t noise
    unet         the network; plain tensors in and out
    denoiser     network + schedule + what the network predicts -> E[z_0 | z_t, context]
    loss         the training loss of a denoiser
    validation   the same on held-out latents at fixed noise, and what it means
    guidance     prompts bound to a denoiser -> denoise(z_t, t)
    timesteps    the timesteps at which a sampler calls denoise
    samplers     noise -> latents, by calls of denoise
    tasks        image to image, inpainting, upscaling, ...
    pipeline     prompts -> pictures: all of it, with autoencoder and text encoder

Only `pipeline` may import autoencoder and conditioning. Of our other packages, ldm may import
foundation and interop alone.
"""

from typing import TYPE_CHECKING

from foundation import __version__

if TYPE_CHECKING:
    from ldm.pipeline.pipeline import TextToImage

__all__ = ["TextToImage", "__version__"]


def __getattr__(name: str):
    """`from ldm import TextToImage` brings open_clip along; `import ldm.samplers` must not."""
    if name == "TextToImage":
        from ldm.pipeline.pipeline import TextToImage

        return TextToImage
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
