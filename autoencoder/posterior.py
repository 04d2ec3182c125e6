"""The encoder's output: a Gaussian over the latents, independent in every element."""

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
        """Make the Gaussian of what the encoder gives: mean and log-variance, stacked as channels.

        The log-variance is clamped to `LOGVAR_RANGE`.
        """
        mean, logvar = moments.chunk(2, dim=1)
        return cls(mean, logvar.clamp(*LOGVAR_RANGE))

    def scaled(self, scale: PerChannel, shift: PerChannel) -> "Posterior":
        """Return the Gaussian of (z - shift) * scale."""
        return Posterior((self.mean - shift) * scale, self.logvar + 2 * scale.log())

    @property
    def std(self) -> Latents:
        """Standard deviation of each element."""
        return torch.exp(0.5 * self.logvar)

    def sample(self, generator: torch.Generator | None = None) -> Latents:
        """Draw latents; differentiable in mean and logvar.

        generator: draws on its own device, so that a CPU generator gives the same noise anywhere.
        """
        device = self.mean.device if generator is None else generator.device
        noise = torch.randn(
            self.mean.shape, generator=generator, device=device, dtype=self.mean.dtype
        )
        return self.sample_with(noise.to(self.mean.device))

    def sample_with(self, noise: Latents) -> Latents:
        """Return mean + std * noise, the sample that belongs to given standard normal noise.

        Differentiable in mean and logvar (the reparameterization trick, ibid., section 2.4).
        """
        return self.mean + self.std * noise

    def mode(self) -> Latents:
        """Return the most likely latents, for metrics and reconstructions. Training samples."""
        return self.mean

    def kl(self) -> PerImage:
        """Compute KL(q || N(0, 1)) in nats per image, a sum over latents (ibid., appendix B)."""
        nats = 0.5 * (self.mean.square() + self.logvar.exp() - 1 - self.logvar)
        return nats.sum(dim=(1, 2, 3))
