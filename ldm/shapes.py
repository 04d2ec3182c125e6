"""The tensors that cross module borders. b batch, c h w latent, l tokens, d embedding width."""

from collections.abc import Callable

from jaxtyping import Float, Real
from torch import Tensor

Latents = Float[Tensor, "b c h w"]  # zero mean, unit variance per channel
Timesteps = Real[Tensor, " b"]  # 0 (clean) ... 999 (noise); whole numbers or in between
Context = Float[Tensor, "b l d"]  # text embedding, one vector per token
Scale = Float[Tensor, "b 1 1 1"]  # a scalar per sample, ready to broadcast
PerSample = Float[Tensor, " b"]

Denoise = Callable[[Latents, Timesteps], Latents]  # all that a sampler knows about a model
