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

from autoencoder.discriminator import Discriminator, hinge_loss
from autoencoder.posterior import Posterior
from autoencoder.shapes import Images, PerImage, Scalar

Metrics = dict[str, Tensor]  # 0-dim tensors: reading them is up to the caller, who pays the wait
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
                raise ValueError(f"{name} is {getattr(self, name)}; weights are 0 or more.")


def start_step(start: Start, steps: int) -> int:
    """The step that `start` means in a run of `steps`: itself, or a fraction of the run."""
    if start < 0 or (isinstance(start, float) and start >= 1):
        raise ValueError(
            f"a start of {start} is neither a step (0, 1, 2, ...) nor a fraction of the run "
            "(0.0 up to, not including, 1.0)."
        )
    return round(start * steps) if isinstance(start, float) else start


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
    ):
        """
        Args:
            steps: length of the run.
            perceptual: a `PerceptualDistance`, or None for "none".
            precision: a context such as torch.autocast for the discriminator.
        """
        super().__init__()
        assert (perceptual is None) == (config.perceptual == "none")
        self.config, self.perceptual = config, perceptual
        self.precision = precision or nullcontext()
        self.discriminator_start = start_step(config.discriminator_start, steps)
        self.adversarial_start = start_step(config.adversarial_start, steps)
        self.adversarial_ramp = start_step(config.adversarial_ramp, steps)
        if config.adversarial_weight and self.adversarial_start < self.discriminator_start:
            raise ValueError(
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

    def backward_autoencoder(
        self,
        images: Images,
        reconstructions: Images,
        posterior: Posterior,
        last_weight: Tensor,
        discriminator: Discriminator | None,
        step: int,
    ) -> Metrics:
        """Adds the gradient of the whole loss to the autoencoder's parameters, and to ours.

        The gradient is taken to the pixels first and from there, once, through the decoder. So the
        adaptive weight, which compares gradients at the last layer, costs two passes through that
        layer and not a second one through LPIPS and the discriminator. The discriminator takes part
        with detached weights: it gets no gradient.

        Args:
            last_weight: of the decoder's last convolution, which must not be compiled.
            discriminator: the bare module, not its DDP wrapper; None if its weight is 0.
        """
        pixels = reconstructions.detach().requires_grad_()
        metrics = self.backward_reconstruction(images, pixels)
        gradient = pixels.grad
        if (factor := self.adversarial_factor(step)) > 0:
            with self.precision:
                logits = frozen(discriminator)(pixels)
            adversarial = -logits.float().mean()
            (against,) = torch.autograd.grad(adversarial, pixels)
            metrics["adversarial"] = adversarial.detach()
            if self.config.adaptive:
                weight = adaptive_weight(reconstructions, last_weight, gradient, against)
                metrics["adaptive_weight"] = weight
                metrics["adaptive_weight_at_clamp"] = (weight >= LARGEST_ADAPTIVE_WEIGHT).float()
                factor = factor * weight
            gradient = gradient + factor * against
        kl = posterior.kl().mean()
        metrics["kl_per_element"] = kl.detach() / posterior.mean[0].numel()
        kl_loss = self.config.kl_weight * kl / images[0].numel()
        ends = [(reconstructions, gradient), (kl_loss, None)]
        ends = ends[: 1 + kl_loss.requires_grad]  # a frozen encoder does not hear the KL
        torch.autograd.backward(*zip(*ends, strict=True))
        return metrics

    def backward_reconstruction(self, images: Images, pixels: Images) -> Metrics:
        """Negative log-likelihood of the images: its gradient goes to `pixels` and to `logvar`."""
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
        error.backward()
        return metrics

    def backward_discriminator(
        self, images: Images, reconstructions: Images, discriminator: nn.Module
    ) -> Metrics:
        """Adds the gradient of the hinge loss to the discriminator's parameters, to no others."""
        both = torch.cat([images, reconstructions.detach()])
        with self.precision:
            logits = discriminator(both)
        real, fake = logits.float().chunk(2)
        loss = hinge_loss(real, fake)
        loss.backward()
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


def adaptive_weight(
    reconstructions: Images, last_weight: Tensor, gradient: Images, against: Images
) -> Scalar:
    """How many times the adversarial gradient at the decoder's last weights fits into that of the
    reconstruction: ||grad rec|| / (||grad adv|| + 1e-4), between 0 and 10,000.

    Esser et al. 2021 (arXiv:2012.09841), eq. 7. gradient, against: those of the two losses with
    respect to the pixels.
    """
    norms = [
        torch.autograd.grad(reconstructions, last_weight, pixels, retain_graph=True)[0].norm()
        for pixels in (gradient, against)
    ]
    return (norms[0] / (norms[1] + 1e-4)).clamp(0, LARGEST_ADAPTIVE_WEIGHT).detach()
