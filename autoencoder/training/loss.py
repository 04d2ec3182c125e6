"""The loss of the autoencoder: reconstruction, perceptual distance, KL, and an adversarial term.

Everything is a mean, so no weight depends on the resolution or on the batch:

    reconstruction   mean over the image values of |x - x'| (or its square), + perceptual per image
    KL               nats per image / number of image values (channels x height x width)
    adversarial      mean over the patches of -logit

This is the objective of latent diffusion (Rombach et al. 2022, arXiv:2112.10752, appendix G, and
its code, which sums all three over the image values) divided by the number of image values. So a
`kl_weight` of 1e-6 means here what it means there. For 256x256x3 images and 32x32x4 latents it
equals 2.1e-8 on a mean over latent elements, and 5.1e-12 on a sum over them.

Nothing here calls `backward`: `autoencoder.training.step` does.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from autoencoder.posterior import Posterior
from autoencoder.training.config import LossConfig, Start
from autoencoder.training.discriminator import Discriminator, hinge_loss
from foundation.errors import UserError, shown
from foundation.shapes import Images, PerImage, Scalar

Metrics = dict[str, Tensor]  # 0-dim tensors; to read them, the host has to wait for the device
Factor = float | Scalar
Precision = AbstractContextManager[object]  # such as torch.autocast

MAX_ADAPTIVE_WEIGHT = 1e4
LATEST_START = 10**12  # steps; far beyond the end of any run, which means never


def start_step(start: Start, steps: int) -> int:
    """Return the step that `start` means: itself, or that fraction of a run of `steps`.

    Raises:
        UserError: `start` is negative, a fraction of 1 or more, NaN, or beyond any run.
    """
    if not 0 <= start <= LATEST_START or (isinstance(start, float) and start >= 1):
        raise UserError(
            f"a start of {shown(start)} is neither a step (0, 1, 2, ... {LATEST_START}) nor a "
            "fraction of the run (0.0 up to, not including, 1.0)."
        )
    return round(start * steps) if isinstance(start, float) else start


class AutoencoderLoss(nn.Module):
    """The terms of the loss in one training run, and the schedule of the adversarial term.

    Each method returns one term, as a scalar, and metrics about it. Its own parameter, the learned
    variance of the reconstruction, belongs into the autoencoder's optimizer.

    Args:
        steps: length of the run.
        perceptual: a `PerceptualDistance`; None if the config says "none".
        precision: a context such as torch.autocast, for the discriminator.
    """

    def __init__(
        self,
        config: LossConfig,
        steps: int,
        perceptual: Callable[[Images, Images], PerImage] | None = None,
        precision: Precision | None = None,
    ):
        super().__init__()
        assert (perceptual is None) == (config.perceptual == "none")
        self.config, self.perceptual = config, perceptual
        self.precision: Precision = precision or nullcontext()
        self.discriminator_start = start_step(config.discriminator_start, steps)
        self.adversarial_start = start_step(config.adversarial_start, steps)
        self.adversarial_ramp = start_step(config.adversarial_ramp, steps)
        if config.adversarial_weight and self.adversarial_start < self.discriminator_start:
            raise UserError(
                f"the adversarial loss starts at step {self.adversarial_start}, before the "
                f"discriminator learns (step {self.discriminator_start}): an untrained one would "
                "mislead. Let discriminator_start be the earlier."
            )
        # log of the variance of a pixel given its latents, as in Dai & Wipf 2019 (1903.05789)
        self.logvar = nn.Parameter(torch.zeros(()), requires_grad=config.learned_logvar)

    def describe(self) -> str:
        """Return one line about the loss, for people."""
        config = self.config
        text = f"loss: {config.reconstruction}, KL {config.kl_weight:g}"
        if self.perceptual is not None:
            text += f", LPIPS ({config.perceptual}) {config.perceptual_weight:g}"
        if not config.adversarial_weight:
            return text + ", no discriminator."
        return text + (
            f", adversarial {config.adversarial_weight:g} from step {self.adversarial_start} on; "
            f"the discriminator learns from step {self.discriminator_start} on."
        )

    def trains_discriminator(self, step: int) -> bool:
        """Return whether the discriminator learns at this step."""
        return self.config.adversarial_weight > 0 and step >= self.discriminator_start

    def phase(self, step: int) -> int:
        """Return the first step that computes the same terms as this one.

        From there on only the weight of the adversarial term changes.
        """
        if not self.config.adversarial_weight:
            return 0
        starts = (0, self.discriminator_start, self.adversarial_start)
        return max(start for start in starts if start <= step)

    def adversarial_weight(self, step: int) -> float:
        """Return the weight of the adversarial term at this step, before the adaptive weight."""
        ramp = (step + 1 - self.adversarial_start) / max(1, self.adversarial_ramp)
        return self.config.adversarial_weight * min(1.0, max(0.0, ramp))

    def uses_adaptive_weight(self, step: int) -> bool:
        """Return whether this step needs the adaptive weight."""
        return self.config.adaptive and self.adversarial_weight(step) > 0

    def reconstruction(self, images: Images, reconstructions: Images) -> tuple[Scalar, Metrics]:
        """Compute the negative log-likelihood of the images, with the perceptual distance."""
        distance = F.l1_loss if self.config.reconstruction == "l1" else F.mse_loss
        error = distance(reconstructions, images)
        metrics = {self.config.reconstruction: error.detach()}
        if self.perceptual is not None:
            perceptual = self.perceptual(images, reconstructions).mean()
            metrics["lpips"] = perceptual.detach()
            error = error + self.config.perceptual_weight * perceptual
        if self.config.learned_logvar:
            metrics["logvar"] = self.logvar.detach().clone()
            error = error * torch.exp(-self.logvar) + self.logvar
        return error, metrics

    def adversarial(
        self, reconstructions: Images, discriminator: Discriminator
    ) -> tuple[Scalar, Metrics]:
        """Compute the adversarial term, unweighted. The discriminator's weights get no gradient."""
        weights = {name: weight.detach() for name, weight in discriminator.named_parameters()}
        with self.precision:
            logits: Tensor = functional_call(discriminator, weights, (reconstructions,))
        loss = -logits.float().mean()
        return loss, {"adversarial": loss.detach()}

    def kl(self, posterior: Posterior, images: Images) -> tuple[Scalar, Metrics]:
        """Compute the weighted KL term."""
        kl = posterior.kl().mean()
        loss = self.config.kl_weight * kl / images[0].numel()
        return loss, {"kl_per_element": kl.detach() / posterior.mean[0].numel()}

    def discriminator(
        self, images: Images, reconstructions: Images, discriminator: nn.Module
    ) -> tuple[Scalar, Metrics]:
        """Compute the hinge loss of the discriminator. The reconstructions get no gradient."""
        both = torch.cat([images, reconstructions.detach()])
        with self.precision:
            logits: Tensor = discriminator(both)
        real, fake = logits.float().chunk(2)
        loss = hinge_loss(real, fake)
        return loss, {
            "discriminator": loss.detach(),
            "logits_real": real.detach().mean(),
            "logits_fake": fake.detach().mean(),
            "discriminator_accuracy": torch.cat([real > 0, fake < 0]).float().mean(),
        }


def adaptive_weight(gradients: Tensor, factor: Factor = 1.0) -> Scalar:
    """Compute ||grad reconstruction|| / (||grad adversarial|| + 1e-4), between 0 and 10,000.

    Esser et al. 2021 (arXiv:2012.09841), eq. 7. The result is NaN if a gradient overflowed;
    otherwise an infinite adversarial gradient would look like a weight of 0.

    Args:
        gradients: of the reconstruction term and of the adversarial term with respect to the
            decoder's last weight, stacked.
        factor: by which both gradients are too large, such as the loss scale of float16.
    """
    norms = cast(
        Tensor,
        torch.linalg.vector_norm(  # pyright: ignore[reportUnknownMemberType]
            gradients.float().flatten(1), dim=1
        ),
    )
    weight = (norms[0] / (norms[1] + 1e-4 * factor)).clamp(0, MAX_ADAPTIVE_WEIGHT)
    return weight.where(norms.isfinite().all(), torch.nan)
