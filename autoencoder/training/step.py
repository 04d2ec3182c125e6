"""Everything that trains an autoencoder and its adversary, and the gradients of one step."""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, ExitStack, nullcontext

import torch
from torch import Tensor, nn

from autoencoder.model import Autoencoder
from autoencoder.training.discriminator import Discriminator, DiscriminatorConfig, check_size
from autoencoder.training.loss import (
    AutoencoderLoss,
    Factor,
    LossConfig,
    Metrics,
    adaptive_weight,
    unchanged,
)
from foundation.shapes import Images, Latents, Scalar


def same(module: nn.Module) -> nn.Module:
    """What `parallel` does where there is one process."""
    return module


def prepare(
    autoencoder: Autoencoder,
    loss: LossConfig,
    discriminator: DiscriminatorConfig,
    *,
    size: int,
    steps: int,
    device: torch.device,
    precision: AbstractContextManager,
    parallel: Callable[[nn.Module], nn.Module] = same,
    average: Callable[[Tensor], Tensor] = unchanged,
) -> "Training":
    """Everything that trains `autoencoder` on images of `size` pixels for `steps` steps, on the
    device. What is missing or does not fit, such as LPIPS weights or the size, is reported here.

    parallel, average: DistributedDataParallel around a module, and the mean of a tensor over the
        processes, where several share a batch.
    """
    blank = torch.empty(1, discriminator.in_channels, size, size, device="meta")
    perceptual = adversary = None
    if loss.perceptual != "none":
        from autoencoder.training.lpips import PerceptualDistance, as_rgb  # lpips and torchvision

        as_rgb(blank)
        perceptual = PerceptualDistance(loss.perceptual, device)
    if loss.adversarial_weight:
        check_size(blank, discriminator.layers)
        adversary = Discriminator(discriminator).to(device)
    losses = AutoencoderLoss(loss, steps, perceptual, precision, average).to(device)
    return Training(autoencoder.to(device).train(), adversary, losses, precision, parallel)


class Training:
    """Autoencoder and discriminator, each with an optimizer and with gradients of its own.

    `networks` and the optimizers' states are all that must be saved to go on later.
    """

    def __init__(
        self,
        autoencoder: Autoencoder,
        discriminator: Discriminator | None,
        loss: AutoencoderLoss,
        precision: AbstractContextManager | None = None,
        parallel: Callable[[nn.Module], nn.Module] = same,
    ):
        """
        Args:
            discriminator: None if the loss gives it no weight.
            precision: a context such as torch.autocast for the autoencoder.
            parallel: makes a module average its gradients over the processes.
        """
        self.autoencoder, self.discriminator, self.loss = autoencoder, discriminator, loss
        self.precision = precision or nullcontext()
        learned = [*autoencoder.parameters(), *loss.parameters()]
        self.networks: dict[str, nn.Module] = {"autoencoder": autoencoder, "loss": loss}
        # what is called where a gradient is to follow; weights are read from the modules themselves
        self.called = [parallel(autoencoder)]
        self.optimizers = {"optimizer": adam(learned, betas=(0.9, 0.99))}
        if discriminator is not None:
            self.networks["discriminator"] = discriminator
            self.called.append(parallel(discriminator))
            # a short memory, as usual for GANs: what it judges changes all the time
            self.optimizers["adversary"] = adam(discriminator.parameters(), betas=(0.5, 0.9))

    def backward(
        self, images: Images, noise: Latents, step: int, parts: int = 1, scale: Factor = 1.0
    ) -> Metrics:
        """Adds the gradients of both networks' losses, each to its own weights.

        Args:
            noise: of the posterior, standard normal.
            parts: equal ones that the batch is computed in, one after the other. The gradient is
                the same. With the adaptive weight, which is one for the whole batch, all parts are
                looked at before the first is learned from, which takes half as long again.
            scale: of the losses, for float16.
        """
        pieces = list(zip(images.chunk(parts), noise.chunk(parts), strict=True))
        factor, balance = scale / parts, None
        if parts > 1 and self.loss.balances(step):
            compared = sum(self.compare(*piece, factor) for piece in pieces)
            balance = adaptive_weight(self.loss.average(compared), scale)
        metrics = []
        for piece in pieces:
            with self.kept_apart(piece is not pieces[-1]):
                metrics.append(self.backward_part(*piece, step, factor, balance))
        for weight in self.loss.parameters():
            if weight.grad is not None:
                weight.grad = self.loss.average(weight.grad)
        return {name: sum(each[name] for each in metrics) / parts for name in metrics[0]}

    def backward_part(
        self, images: Images, noise: Latents, step: int, factor: Factor, balance: Scalar | None
    ) -> Metrics:
        with self.precision:
            reconstructions, posterior = self.called[0](images, noise)
        metrics = self.loss.backward_autoencoder(
            images,
            reconstructions,
            posterior,
            self.last_weight,
            self.discriminator,
            step,
            factor=factor,
            balance=balance,
        )
        if self.discriminator is not None and self.loss.trains_discriminator(step):
            metrics |= self.loss.backward_discriminator(
                images, reconstructions, self.called[1], factor
            )
        return metrics

    def compare(self, images: Images, noise: Latents, factor: Factor) -> torch.Tensor:
        """What the adaptive weight of the whole batch is made of."""
        with self.precision:
            reconstructions, _ = self.autoencoder(images, noise)
        return self.loss.compare(
            images, reconstructions, self.last_weight, self.discriminator, factor
        )

    def kept_apart(self, wanted: bool) -> ExitStack:
        """A context in which gradients are not yet averaged over the processes, if wanted."""
        stack = ExitStack()
        for module in self.called:
            if wanted and hasattr(module, "no_sync"):
                stack.enter_context(module.no_sync())
        return stack

    @property
    def last_weight(self) -> nn.Parameter:
        return self.autoencoder.decoder.conv_out.weight


def adam(parameters: Iterable[nn.Parameter], betas: tuple[float, float]) -> torch.optim.Adam:
    return torch.optim.Adam(list(parameters), betas=betas, fused=True)
