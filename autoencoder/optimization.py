"""One training step of the autoencoder and its adversary."""

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from autoencoder.autoencoder import Autoencoder
from autoencoder.discriminator import Discriminator, DiscriminatorConfig, check_size
from autoencoder.losses import AutoencoderLoss, LossConfig, Metrics
from autoencoder.shapes import Images


def prepare(
    autoencoder: Autoencoder,
    loss: LossConfig,
    discriminator: DiscriminatorConfig,
    *,
    size: int,
    steps: int,
    device: torch.device,
    precision: AbstractContextManager,
    **options: float,
) -> "TrainingStep":
    """Everything that trains `autoencoder` on images of `size` pixels for `steps` steps, on the
    device. What is missing or does not fit, such as LPIPS weights or the size, is reported here.

    options: of `TrainingStep`.
    """
    blank = torch.empty(1, discriminator.in_channels, size, size, device="meta")
    perceptual = adversary = None
    if loss.perceptual != "none":
        from autoencoder.perceptual import PerceptualDistance, as_rgb  # lpips and torchvision

        as_rgb(blank)
        perceptual = PerceptualDistance(loss.perceptual, device)
    if loss.adversarial_weight:
        check_size(blank, discriminator.layers)
        adversary = Discriminator(discriminator).to(device)
    losses = AutoencoderLoss(loss, steps, perceptual, precision).to(device)
    autoencoder = autoencoder.to(device).train()
    return TrainingStep(autoencoder, adversary, losses, precision=precision, **options)


class TrainingStep:
    """Updates autoencoder and discriminator on a batch, each by its own gradient alone.

    One call is one step, however many optimizers take part in it. `parts` is all that must be saved
    to go on later.
    """

    def __init__(
        self,
        autoencoder: Autoencoder,
        discriminator: Discriminator | None,
        loss: AutoencoderLoss,
        *,
        clip_norm: float,
        discriminator_rate: float = 1.0,
        precision: AbstractContextManager | None = None,
    ):
        """
        Args:
            discriminator: None if the loss gives it no weight.
            clip_norm: each network's gradient is scaled down to this norm. Losses are means, so
                one value suits all resolutions.
            discriminator_rate: its learning rate, as a multiple of the autoencoder's.
            precision: a context such as torch.autocast for the autoencoder.
        """
        self.autoencoder, self.discriminator, self.loss = autoencoder, discriminator, loss
        self.clip_norm, self.discriminator_rate = clip_norm, discriminator_rate
        self.precision = precision or nullcontext()
        self.optimizer = adam([*autoencoder.parameters(), *loss.parameters()], betas=(0.9, 0.99))
        self.parts = {"autoencoder": autoencoder, "loss": loss, "optimizer": self.optimizer}
        if discriminator is not None:
            # a short memory, as usual for GANs: what it judges changes all the time
            self.adversary = adam(discriminator.parameters(), betas=(0.5, 0.9))
            self.parts |= {"discriminator": discriminator, "adversary": self.adversary}

    def __call__(
        self, images: Images, step: int, rate: float, generator: torch.Generator
    ) -> Metrics:
        """rate: the learning rate of this step; generator: draws the noise of the posterior."""
        with self.precision:
            reconstructions, posterior = self.autoencoder(images, generator)
        last_weight = self.autoencoder.decoder.conv_out.weight
        metrics = self.loss.backward_autoencoder(
            images, reconstructions, posterior, last_weight, self.discriminator, step
        )
        metrics["gradient_norm"] = self.update(self.optimizer, rate)
        if self.discriminator is not None and self.loss.trains_discriminator(step):
            metrics |= self.loss.backward_discriminator(images, reconstructions, self.discriminator)
            self.update(self.adversary, rate * self.discriminator_rate)
        return metrics

    def update(self, optimizer: torch.optim.Optimizer, rate: float) -> Tensor:
        """One optimizer step with the clipped gradient; returns the norm that it had before.

        A gradient that is not finite is dropped: weights and optimizer stay as they were.
        """
        (group,) = optimizer.param_groups
        group["lr"] = rate
        norm = nn.utils.clip_grad_norm_(group["params"], self.clip_norm)
        optimizer.found_inf = 1.0 - norm.isfinite().float()  # how fused Adam is told to stand still
        optimizer.step()
        optimizer.zero_grad()
        return norm


def adam(parameters: Iterable[nn.Parameter], betas: tuple[float, float]) -> torch.optim.Adam:
    return torch.optim.Adam(list(parameters), betas=betas, fused=True)
