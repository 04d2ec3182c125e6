"""The tensors that cross module borders. b batch, c h w latent, l tokens, d embedding width."""

from collections.abc import Callable

from jaxtyping import Float, Float64, Real
from torch import Tensor

Latents = Float[Tensor, "b c h w"]  # zero mean, unit variance per channel
Estimates = Float[Tensor, "_ c h w"]  # of the images under one context, then under the next, ...
Timesteps = Real[Tensor, " b"]  # 0 (clean) ... 999 (noise); whole numbers or in between
Context = Float[Tensor, "b l d"]  # text embedding, one vector per token
Scale = Float[Tensor, "b 1 1 1"]  # a scalar per sample, ready to broadcast
Number = Float64[Tensor, ""]  # on the CPU; does not change the dtype of latents it multiplies
PerSample = Float[Tensor, " b"]

Network = Callable[..., Latents]  # of latents, times, a context, and for an upscaler a level
Denoise = Callable[[Latents, Timesteps], Latents]  # all that a sampler knows about a model
