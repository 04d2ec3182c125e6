"""Names for the tensors that pass between packages.

Axes: b images of a batch, c channels, h and w height and width of latents or features; l tokens
and d width of a text embedding. Underscores are sizes that differ from call to call.
"""

from collections.abc import Callable

from jaxtyping import Float, Float64, Real
from torch import Tensor

# Images and the autoencoder
Images = Float[Tensor, "b channels height width"]  # pixels in [-1, 1]
AnyImages = Float[Tensor, "_ channels _ _"]  # images of several batches of different shapes
Latents = Float[Tensor, "b c h w"]  # zero mean, unit variance per channel
Moments = Float[Tensor, "b two_c h w"]  # mean and log-variance of the latents, concatenated
Features = Float[Tensor, "b c h w"]  # feature maps inside a network
Resized = Float[Tensor, "b c_out h_out w_out"]  # features after a change of width or resolution
PerChannel = Float[Tensor, "c 1 1"]  # a scalar per latent channel, ready to broadcast
PerImage = Float[Tensor, " b"]  # a scalar per image
Scalar = Float[Tensor, ""]

# Diffusion
Estimates = Float[Tensor, "_ c h w"]  # all images under one context, then under the next, ...
Timesteps = Real[Tensor, " b"]  # 0 (clean) ... 999 (noise); integers or values in between
Context = Float[Tensor, "b l d"]  # text embedding, one vector per token
Scale = Float[Tensor, "b 1 1 1"]  # a scalar per image, ready to broadcast
Number = Float64[Tensor, ""]  # on the CPU; does not change the dtype of latents it multiplies
PerSample = Float[Tensor, " b"]  # a scalar per latent

Network = Callable[..., Latents]  # of latents, timesteps, context, and for an upscaler noise levels
Denoise = Callable[[Latents, Timesteps], Latents]  # all that a sampler knows about a model
