"""What trains an autoencoder and its discriminator, and the gradients of one step."""

from collections.abc import Callable, Iterable
from contextlib import ExitStack, nullcontext
from functools import reduce

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from autoencoder.model import Autoencoder
from autoencoder.posterior import Posterior
from autoencoder.training.config import LossConfig
from autoencoder.training.discriminator import Discriminator, DiscriminatorConfig, check_size
from autoencoder.training.loss import (
    MAX_ADAPTIVE_WEIGHT,
    AutoencoderLoss,
    Factor,
    Metrics,
    Precision,
    adaptive_weight,
)
from foundation.collectives import mean as mean_over_ranks
from foundation.parameters import all_but
from foundation.shapes import Images, Latents, Scalar

MatrixOptimizer = Callable[[list[nn.Parameter]], Optimizer]


def identity(module: nn.Module) -> nn.Module:
    """Return the module itself: with one process there is nothing to average."""
    return module


def prepare_training(
    autoencoder: Autoencoder,
    loss: LossConfig,
    discriminator: DiscriminatorConfig,
    *,
    size: int,
    steps: int,
    device: torch.device,
    precision: Precision,
    parallel: Callable[[nn.Module], nn.Module] = identity,
    pretrained: bool = True,
    matrix_optimizer: MatrixOptimizer | None = None,
) -> "AutoencoderTraining":
    """Make everything that trains an autoencoder, on the device.

    Args:
        size: the smallest side of the training images, in pixels.
        steps: length of the run.
        precision: a context such as torch.autocast for the networks.
        parallel: wraps a module so that its gradients are averaged over the processes, such as
            DistributedDataParallel.
        pretrained: False leaves LPIPS with random weights, to measure memory and time alone.
        matrix_optimizer: as in `AutoencoderTraining`.

    Raises:
        UserError: something is missing or does not fit, such as LPIPS weights or the size.
    """
    blank = torch.empty(1, discriminator.in_channels, size, size, device="meta")
    perceptual, discriminator_network = None, None
    if loss.perceptual != "none":
        from autoencoder.training.lpips import PerceptualDistance, as_rgb  # lpips and torchvision

        as_rgb(blank)
        perceptual = PerceptualDistance(loss.perceptual, device, pretrained)
    if loss.adversarial_weight:
        check_size(blank, discriminator.layers)
        discriminator_network = Discriminator(discriminator).to(device)
    losses = AutoencoderLoss(loss, steps, perceptual, precision).to(device)
    autoencoder = autoencoder.to(device).train()
    return AutoencoderTraining(
        autoencoder, discriminator_network, losses, precision, parallel, matrix_optimizer
    )


class AutoencoderTraining:
    """Autoencoder and discriminator, each with an optimizer and with gradients of its own.

    `networks` and the states of `optimizers` are all that must be saved to resume.

    Args:
        discriminator: None if the loss gives it no weight.
        precision: a context such as torch.autocast for the autoencoder.
        parallel: wraps a module so that its gradients are averaged over the processes.
        matrix_optimizer: makes the optimizer of the autoencoder's matrices, such as Muon; None
            leaves them to Adam.
    """

    def __init__(
        self,
        autoencoder: Autoencoder,
        discriminator: Discriminator | None,
        loss: AutoencoderLoss,
        precision: Precision | None = None,
        parallel: Callable[[nn.Module], nn.Module] = identity,
        matrix_optimizer: MatrixOptimizer | None = None,
    ):
        self.autoencoder, self.discriminator, self.loss = autoencoder, discriminator, loss
        self.precision: Precision = precision or nullcontext()
        matrices = [] if matrix_optimizer is None else autoencoder.matrices()
        self.networks: dict[str, nn.Module] = {"autoencoder": autoencoder, "loss": loss}
        learned = [*all_but(matrices, autoencoder), *loss.parameters()]
        self.optimizers: dict[str, Optimizer] = {"optimizer": adam(learned, betas=(0.9, 0.99))}
        if matrix_optimizer is not None:
            self.optimizers["matrices"] = matrix_optimizer(matrices)
        # These are called where gradients are needed; the modules inside them hold the weights.
        self.parallel_autoencoder = parallel(autoencoder)
        self.parallel_discriminator: nn.Module | None = None
        if discriminator is not None:
            self.networks["discriminator"] = discriminator
            self.parallel_discriminator = parallel(discriminator)
            # a short memory, as usual for GANs, because its task changes all the time
            self.optimizers["adversary"] = adam(discriminator.parameters(), betas=(0.5, 0.9))

    def backward(
        self,
        images: Images,
        noise: Latents,
        step: int,
        micro_batches: int = 1,
        scale: Factor = 1.0,
        adversarial_weight: Factor | None = None,
    ) -> Metrics:
        """Add the gradients of both networks' losses, each to its own weights; return metrics.

        Args:
            noise: standard normal, for the samples of the posterior.
            micro_batches: how many equal parts of the batch are computed one after the other, to
                save memory. The gradient is the same. The adaptive weight is one for the whole
                batch, so with it each part is computed twice, which takes half as long again.
            scale: factor of the losses, for float16.
            adversarial_weight: in place of the step's own, if the step has that term; a tensor
                where steps are recorded, so that it can change.
        """
        if adversarial_weight is None:
            adversarial_weight = self.loss.adversarial_weight(step)
        batches = list(zip(images.chunk(micro_batches), noise.chunk(micro_batches), strict=True))
        factor, weight = scale / micro_batches, None
        if micro_batches > 1 and self.loss.uses_adaptive_weight(step):
            weight = self._adaptive_weight_of(batches, factor, scale)
        metrics: list[Metrics] = []
        for k, (some_images, some_noise) in enumerate(batches):
            with self._gradient_averaging(k == micro_batches - 1):
                metrics.append(
                    self._backward_micro_batch(
                        some_images, some_noise, step, factor, adversarial_weight, weight
                    )
                )
        for parameter in self.loss.parameters():
            if parameter.grad is not None:
                parameter.grad = mean_over_ranks(parameter.grad)
        return {name: add([each[name] for each in metrics]) / micro_batches for name in metrics[0]}

    def _backward_micro_batch(
        self,
        images: Images,
        noise: Latents,
        step: int,
        factor: Factor,
        adversarial_weight: Factor,
        weight: Scalar | None,
    ) -> Metrics:
        with self.precision:
            reconstructions, posterior = self.parallel_autoencoder(images, noise)
        metrics = backward_autoencoder(
            self.loss,
            images,
            reconstructions,
            posterior,
            self._last_weight,
            self.discriminator,
            step,
            factor=factor,
            adversarial_weight=adversarial_weight,
            weight=weight,
        )
        if self.parallel_discriminator is not None and self.loss.trains_discriminator(step):
            metrics |= backward_discriminator(
                self.loss, images, reconstructions, self.parallel_discriminator, factor=factor
            )
        return metrics

    def _adaptive_weight_of(
        self, batches: Iterable[tuple[Images, Latents]], factor: Factor, scale: Factor
    ) -> Scalar:
        """Compute the adaptive weight of the whole batch from the gradients of its parts.

        It compares norms, which cannot be added; so the gradients are added first.
        """
        assert self.discriminator is not None
        gradients: list[Tensor] = []
        for images, noise in batches:
            with self.precision:
                reconstructions: Tensor = self.autoencoder(images, noise)[0]
            pixels = reconstructions.detach().requires_grad_()
            error, _ = self.loss.reconstruction(images, pixels)
            (gradient,) = torch.autograd.grad(error * factor, pixels)
            adversarial, _ = self.loss.adversarial(pixels, self.discriminator)
            (adversarial_gradient,) = torch.autograd.grad(adversarial * factor, pixels)
            gradients.append(
                last_layer_gradients(
                    reconstructions, self._last_weight, gradient, adversarial_gradient
                )
            )
            del reconstructions  # frees the activations before the next part makes its own
        return adaptive_weight(mean_over_ranks(add(gradients)), scale)

    def _gradient_averaging(self, enabled: bool) -> ExitStack:
        """Make a context in which gradients are averaged over the processes only if `enabled`."""
        stack = ExitStack()
        for module in (self.parallel_autoencoder, self.parallel_discriminator):
            no_sync = getattr(module, "no_sync", None)  # of DistributedDataParallel
            if no_sync is not None and not enabled:
                stack.enter_context(no_sync())
        return stack

    @property
    def _last_weight(self) -> Tensor:
        return self.autoencoder.decoder.conv_out.weight


def backward_autoencoder(
    loss: AutoencoderLoss,
    images: Images,
    reconstructions: Images,
    posterior: Posterior,
    last_weight: Tensor,
    discriminator: Discriminator | None,
    step: int,
    *,
    factor: Factor = 1.0,
    adversarial_weight: Factor | None = None,
    weight: Scalar | None = None,
) -> Metrics:
    """Add the gradient of the whole loss to the weights of autoencoder and loss; return metrics.

    The gradients with respect to the pixels come first; from there one backward pass goes through
    the decoder. So the adaptive weight, which compares gradients at the last layer, costs two
    passes through that layer and no second pass through LPIPS and the discriminator.

    Args:
        last_weight: of the decoder's last convolution, which must not be compiled.
        discriminator: the bare module, which gets no gradient; None if its weight is 0.
        factor: of all gradients: the share of these images in the batch, times the loss scale.
        adversarial_weight: as for `AutoencoderTraining.backward`.
        weight: the adaptive weight, if these images are only a part of this process' batch.
    """
    pixels = reconstructions.detach().requires_grad_()
    error, metrics = loss.reconstruction(images, pixels)
    torch.autograd.backward(error * factor)  # gradients of the pixels and of the loss' own weight
    gradient = pixels.grad
    assert gradient is not None
    if loss.adversarial_weight(step) > 0:
        assert discriminator is not None
        adversarial, adversarial_metrics = loss.adversarial(pixels, discriminator)
        (adversarial_gradient,) = torch.autograd.grad(adversarial * factor, pixels)
        metrics |= adversarial_metrics
        total_weight = adversarial_weight
        if total_weight is None:
            total_weight = loss.adversarial_weight(step)
        if loss.config.adaptive:
            if weight is None:
                gradients = last_layer_gradients(
                    reconstructions, last_weight, gradient, adversarial_gradient
                )
                weight = adaptive_weight(mean_over_ranks(gradients), factor)
            metrics["adaptive_weight"] = weight
            metrics["adaptive_weight_at_clamp"] = (weight >= MAX_ADAPTIVE_WEIGHT).float()
            total_weight = total_weight * weight
        gradient = gradient + total_weight * adversarial_gradient
    kl, kl_metrics = loss.kl(posterior, images)
    metrics |= kl_metrics
    if kl.requires_grad:
        torch.autograd.backward([reconstructions, kl * factor], [gradient, None])
    else:  # the encoder is frozen
        torch.autograd.backward(reconstructions, gradient)
    return metrics


def backward_discriminator(
    loss: AutoencoderLoss,
    images: Images,
    reconstructions: Images,
    discriminator: nn.Module,
    *,
    factor: Factor = 1.0,
) -> Metrics:
    """Add the gradient of the hinge loss to the discriminator's weights alone; return metrics."""
    hinge, metrics = loss.discriminator(images, reconstructions, discriminator)
    torch.autograd.backward(hinge * factor)
    return metrics


def last_layer_gradients(
    reconstructions: Images, last_weight: Tensor, gradient: Images, adversarial_gradient: Images
) -> Tensor:
    """Return the gradients of both terms with respect to the decoder's last weight, stacked.

    No gradient is added to any weight. Those of the parts of a batch add up to that of the batch.

    Args:
        gradient, adversarial_gradient: of the reconstruction term and of the adversarial term with
            respect to the pixels.
    """
    both = [
        torch.autograd.grad(reconstructions, last_weight, each, retain_graph=True)[0]
        for each in (gradient, adversarial_gradient)
    ]
    return torch.stack(both)


def add(tensors: list[Tensor]) -> Tensor:
    """Add up tensors of equal shape, in their order."""
    return reduce(torch.add, tensors)


def adam(parameters: Iterable[nn.Parameter], betas: tuple[float, float]) -> torch.optim.Adam:
    """Make the fused Adam of one network."""
    return torch.optim.Adam(list(parameters), betas=betas, fused=True)
