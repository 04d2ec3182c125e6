"""The tensors that cross this package's borders. b images; the others are channels and sides."""

from jaxtyping import Float
from torch import Tensor

Images = Float[Tensor, "b channels height width"]  # pixels in [-1, 1]
AnyImages = Float[Tensor, "_ channels _ _"]  # of batches, each of another number and size
Latents = Float[Tensor, "b c h w"]  # what a diffusion model is trained on
Moments = Float[Tensor, "b two_c h w"]  # mean and log-variance of the latents, stacked
Features = Float[Tensor, "b c h w"]  # inside the network
Resized = Float[Tensor, "b c_out h_out w_out"]  # features after a change of width or resolution
PerImage = Float[Tensor, " b"]
PerChannel = Float[Tensor, "c 1 1"]  # of the latents
Scalar = Float[Tensor, ""]
