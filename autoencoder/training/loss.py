"""What the autoencoder is trained on: reconstruction, perception, KL, and an adversary.

Everything is a mean, so no weight depends on the resolution or on the batch:

    reconstruction   mean over the image values of |x - x'| (or its square), + perceptual per image
    KL               nats per image / number of image values (channels x height x width)
    adversarial      mean over the patches of -logit

This is the objective of latent diffusion (Rombach et al. 2022, arXiv:2112.10752, appendix G, and
its code, which sums all three over the image values) divided by the number of image values. So a
`kl_weight` of 1e-6 means here what it means there. For 256x256x3 images and 32x32x4 latents it
equals 2.1e-8 on a mean over latent elements, and 5.1e-12 on a sum over them.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from autoencoder.posterior import Posterior
from autoencoder.training.discriminator import Discriminator, hinge_loss
from foundation.errors import UserError
from foundation.shapes import Images, PerImage, Scalar

Metrics = dict[str, Tensor]  # 0-dim tensors: reading them is up to the caller, who pays the wait
Factor = float | Scalar
Start = int | float  # a step, or below 1 and with a decimal point a fraction of the run

LARGEST_ADAPTIVE_WEIGHT = 1e4


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    reconstruction: Literal["l1", "l2"] = "l1"  # l1 blurs less; l2 is a Gaussian likelihood
    perceptual: Literal["vgg", "alex", "squeeze", "none"] = "vgg"  # LPIPS backbone
    perceptual_weight: float = 1.0  # of LPIPS, beside the reconstruction
    kl_weight: float = 1e-6  # of the KL per image value; the number of Stable Diffusion
    adversarial_weight: float = 0.5  # 0: no discriminator at all
    adaptive: bool = True  # multiply that by ||grad reconstruction|| / ||grad adversarial||
    discriminator_start: Start = 0.2  # step, or share of the run: the discriminator begins to learn
    adversarial_start: Start = 0.3  # step, or share of the run: the autoencoder begins to hear it
    adversarial_ramp: Start = 0.1  # steps, or share of the run, until it hears it in full
    learned_logvar: bool = False  # train the variance of the reconstruction along

    def __post_init__(self):
        for name in ("perceptual_weight", "kl_weight", "adversarial_weight"):
            if getattr(self, name) < 0:
                raise UserError(f"{name} is {getattr(self, name)}; weights are 0 or more.")


def start_step(start: Start, steps: int) -> int:
    """The step that `start` means in a run of `steps`: itself, or a fraction of the run."""
    if start < 0 or (isinstance(start, float) and start >= 1):
        raise UserError(
            f"a start of {start} is neither a step (0, 1, 2, ...) nor a fraction of the run "
            "(0.0 up to, not including, 1.0)."
        )
    return round(start * steps) if isinstance(start, float) else start


def unchanged(tensor: Tensor) -> Tensor:
    """The mean over processes where there is one."""
    return tensor


class AutoencoderLoss(nn.Module):
    """The losses of one training run, and the gradients that they send.

    Its own parameters (one, if the variance is learned) belong into the autoencoder's optimizer.
    """

    def __init__(
        self,
        config: LossConfig,
        steps: int,
        perceptual: Callable[[Images, Images], PerImage] | None = None,
        precision: AbstractContextManager | None = None,
        average: Callable[[Tensor], Tensor] = unchanged,
    ):
        """
        Args:
            steps: length of the run.
            perceptual: a `PerceptualDistance`, or None for "none".
            precision: a context such as torch.autocast for the discriminator.
            average: mean over the processes that share a batch.
        """
        super().__init__()
        assert (perceptual is None) == (config.perceptual == "none")
        self.config, self.perceptual = config, perceptual
        self.precision, self.average = precision or nullcontext(), average
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
        """The loss in a line, for people."""
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
        return self.config.adversarial_weight > 0 and step >= self.discriminator_start

    def adversarial_factor(self, step: int) -> float:
        """adversarial_weight, or the part of it that holds at this step."""
        risen = (step + 1 - self.adversarial_start) / max(1, self.adversarial_ramp)
        return self.config.adversarial_weight * min(1.0, max(0.0, risen))

    def balances(self, step: int) -> bool:
        """Whether this step needs the adaptive weight."""
        return self.config.adaptive and self.adversarial_factor(step) > 0

    def backward_autoencoder(
        self,
        images: Images,
        reconstructions: Images,
        posterior: Posterior,
        last_weight: Tensor,
        discriminator: Discriminator | None,
        step: int,
        *,
        factor: Factor = 1.0,
        balance: Scalar | None = None,
    ) -> Metrics:
        """Adds the gradient of the whole loss to the autoencoder's parameters, and to ours.

        The gradient is taken to the pixels first and from there, once, through the decoder. So the
        adaptive weight, which compares gradients at the last layer, costs two passes through that
        layer and not a second one through LPIPS and the discriminator. The discriminator takes part
        with detached weights: it gets no gradient.

        Args:
            last_weight: of the decoder's last convolution, which must not be compiled.
            discriminator: the bare module; None if its weight is 0.
            factor: of all gradients: the share of these images in the batch, times the loss scale.
            balance: the adaptive weight, if these images are but a part of this process' share.
        """
        pixels = reconstructions.detach().requires_grad_()
        error, metrics = self.reconstruction(images, pixels)
        (error * factor).backward()
        gradient = pixels.grad
        if (weight := self.adversarial_factor(step)) > 0:
            adversarial, against = self.against(pixels, discriminator, factor)
            metrics["adversarial"] = adversarial
            if self.config.adaptive:
                if balance is None:
                    gradients = at_last_layer(reconstructions, last_weight, gradient, against)
                    balance = adaptive_weight(self.average(gradients), factor)
                metrics["adaptive_weight"] = balance
                metrics["adaptive_weight_at_clamp"] = (balance >= LARGEST_ADAPTIVE_WEIGHT).float()
                weight = weight * balance
            gradient = gradient + weight * against
        kl = posterior.kl().mean()
        metrics["kl_per_element"] = kl.detach() / posterior.mean[0].numel()
        kl_loss = self.config.kl_weight * kl / images[0].numel()
        ends = [(reconstructions, gradient), (kl_loss * factor, None)]
        ends = ends[: 1 + kl_loss.requires_grad]  # a frozen encoder does not hear the KL
        torch.autograd.backward(*zip(*ends, strict=True))
        return metrics

    def compare(
        self,
        images: Images,
        reconstructions: Images,
        last_weight: Tensor,
        discriminator: Discriminator,
        factor: Factor,
    ) -> Tensor:
        """What the adaptive weight compares (`at_last_layer`), and no gradient left anywhere. Of
        the parts of a batch these add up to that of the batch."""
        pixels = reconstructions.detach().requires_grad_()
        error, _ = self.reconstruction(images, pixels)
        (gradient,) = torch.autograd.grad(error * factor, pixels)
        _, against = self.against(pixels, discriminator, factor)
        return at_last_layer(reconstructions, last_weight, gradient, against)

    def reconstruction(self, images: Images, pixels: Images) -> tuple[Scalar, Metrics]:
        """Negative log-likelihood of the images, a function of `pixels` and of `logvar`."""
        distance = F.l1_loss if self.config.reconstruction == "l1" else F.mse_loss
        error = distance(pixels, images)
        metrics = {self.config.reconstruction: error.detach()}
        if self.perceptual is not None:
            perceptual = self.perceptual(images, pixels).mean()
            metrics["lpips"] = perceptual.detach()
            error = error + self.config.perceptual_weight * perceptual
        if self.config.learned_logvar:
            metrics["logvar"] = self.logvar.detach().clone()
            error = error * torch.exp(-self.logvar) + self.logvar
        return error, metrics

    def against(
        self, pixels: Images, discriminator: Discriminator, factor: Factor
    ) -> tuple[Scalar, Images]:
        """The adversarial loss, and its gradient with respect to the pixels, times `factor`."""
        with self.precision:
            logits = frozen(discriminator)(pixels)
        adversarial = -logits.float().mean()
        (gradient,) = torch.autograd.grad(adversarial * factor, pixels)
        return adversarial.detach(), gradient

    def backward_discriminator(
        self,
        images: Images,
        reconstructions: Images,
        discriminator: nn.Module,
        factor: Factor = 1.0,
    ) -> Metrics:
        """Adds the gradient of the hinge loss to the discriminator's parameters, to no others."""
        both = torch.cat([images, reconstructions.detach()])
        with self.precision:
            logits = discriminator(both)
        real, fake = logits.float().chunk(2)
        loss = hinge_loss(real, fake)
        (loss * factor).backward()
        right = torch.cat([real > 0, fake < 0]).float().mean()
        return {
            "discriminator": loss.detach(),
            "logits_real": real.detach().mean(),
            "logits_fake": fake.detach().mean(),
            "discriminator_accuracy": right,
        }


def frozen(module: nn.Module) -> Callable[[Tensor], Tensor]:
    """The same function of its input, without gradients to its weights."""
    weights = {name: parameter.detach() for name, parameter in module.named_parameters()}
    return lambda x: functional_call(module, weights, (x,))


def at_last_layer(
    reconstructions: Images, last_weight: Tensor, gradient: Images, against: Images
) -> Tensor:
    """The gradients of reconstruction and adversary at the decoder's last weights, stacked.

    gradient, against: those of the two losses with respect to the pixels.
    """
    return torch.stack(
        [
            torch.autograd.grad(reconstructions, last_weight, pixels, retain_graph=True)[0]
            for pixels in (gradient, against)
        ]
    )


def adaptive_weight(gradients: Tensor, factor: Factor = 1.0) -> Scalar:
    """How many times the adversarial gradient at the last layer fits into that of the
    reconstruction: ||grad rec|| / (||grad adv|| + 1e-4), between 0 and 10,000.

    Esser et al. 2021 (arXiv:2012.09841), eq. 7. NaN if a gradient overflowed, lest an infinite one
    should look like a weight of 0.

    factor: by which both gradients are too large.
    """
    norms = gradients.float().flatten(1).norm(dim=1)
    weight = (norms[0] / (norms[1] + 1e-4 * factor)).clamp(0, LARGEST_ADAPTIVE_WEIGHT)
    return weight.where(norms.isfinite().all(), torch.nan)
