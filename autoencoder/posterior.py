"""The encoder's answer: a Gaussian over latents, independent in every element."""

from dataclasses import dataclass

import torch

from foundation.shapes import Latents, Moments, PerChannel, PerImage

LOGVAR_RANGE = (-30.0, 20.0)  # as in Stable Diffusion; keeps exp() finite in float32


@dataclass(frozen=True)
class Posterior:
    """q(z | image) = N(mean, exp(logvar)), Kingma & Welling 2013 (arXiv:1312.6114)."""

    mean: Latents
    logvar: Latents

    @classmethod
    def from_moments(cls, moments: Moments) -> "Posterior":
        """moments: mean and log-variance stacked along the channels, as the encoder gives them."""
        mean, logvar = moments.chunk(2, dim=1)
        return cls(mean, logvar.clamp(*LOGVAR_RANGE))

    def scaled(self, scale: PerChannel, shift: PerChannel) -> "Posterior":
        """The Gaussian of (z - shift) * scale."""
        return Posterior((self.mean - shift) * scale, self.logvar + 2 * scale.log())

    @property
    def std(self) -> Latents:
        return torch.exp(0.5 * self.logvar)

    def sample(self, generator: torch.Generator | None = None) -> Latents:
        """A draw, differentiable in mean and logvar.

        generator: draws on its own device, so that a CPU generator gives the same noise anywhere.
        """
        device = self.mean.device if generator is None else generator.device
        noise = torch.randn(
            self.mean.shape, generator=generator, device=device, dtype=self.mean.dtype
        )
        return self.at(noise.to(self.mean.device))

    def at(self, noise: Latents) -> Latents:
        """The draw that standard normal noise stands for, differentiable in mean and logvar."""
        return self.mean + self.std * noise

    def mode(self) -> Latents:
        """The most likely latents: for metrics and reconstructions; training takes `sample`."""
        return self.mean

    def kl(self) -> PerImage:
        """KL(q || N(0, 1)) in nats per image, summed over the latent (ibid., appendix B)."""
        nats = 0.5 * (self.mean.square() + self.logvar.exp() - 1 - self.logvar)
        return nats.sum(dim=(1, 2, 3))
