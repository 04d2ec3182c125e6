"""The discriminator of the autoencoder's adversarial loss, which makes textures sharp.

PatchGAN: Isola et al. 2017 (arXiv:1611.07004). Hinge loss: Lim & Ye 2017 (arXiv:1705.02894).
"""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, nn

from autoencoder.layers import group_norm
from foundation.errors import UserError
from foundation.shapes import Images, Scalar

Logits = Float[Tensor, "b 1 h w"]  # one per patch: above 0 says real, below 0 reconstructed


@dataclass(frozen=True, kw_only=True)
class DiscriminatorConfig:
    """The architecture of a discriminator."""

    in_channels: int = 3  # of the images
    width: int = 64  # channels of the first convolution; doubled per layer, at most to 8 times
    layers: int = 3  # each halves the image; patches are 16, 34 or 70 pixels wide with 1, 2 or 3
    groups: int = 16  # of every GroupNorm; must divide width

    def __post_init__(self):
        if self.layers < 1 or self.width % self.groups:
            raise UserError(
                f"a discriminator needs layers >= 1 (got {self.layers}) and a width that its "
                f"{self.groups} groups divide (got {self.width})."
            )


class Discriminator(nn.Module):
    """Convolutions that rate each patch of an image as real or reconstructed.

    It has GroupNorm where the original has BatchNorm. The running statistics of a BatchNorm would
    also be changed by the step of the autoencoder, are undefined at batch size 1, and differ
    between processes. Spectral normalization has a state that every forward pass changes, too.
    """

    def __init__(self, config: DiscriminatorConfig):
        super().__init__()
        self.config = config
        widths = [config.width * min(2**layer, 8) for layer in range(config.layers + 1)]
        modules: list[nn.Module] = [nn.Conv2d(config.in_channels, widths[0], 4, 2, padding=1)]
        for layer in range(1, config.layers + 1):
            stride = 2 if layer < config.layers else 1
            modules += [
                nn.LeakyReLU(0.2),
                nn.Conv2d(widths[layer - 1], widths[layer], 4, stride, padding=1, bias=False),
                group_norm(config.groups, widths[layer]),
            ]
        modules += [nn.LeakyReLU(0.2), nn.Conv2d(widths[-1], 1, 4, padding=1)]
        self.network = nn.Sequential(*modules)
        for module in self.network:
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.02)  # as in the paper, appendix 6.2

    def forward(self, images: Images) -> Logits:
        check_size(images, self.config.layers)
        return self.network(images)


def check_size(images: Images, layers: int) -> None:
    """Refuse images of which a discriminator would have no patch left.

    Each layer halves the image, and two convolutions without stride take one more pixel each.

    Args:
        layers: of the discriminator.

    Raises:
        UserError: the images are smaller than 3 * 2^layers pixels.
    """
    smallest = 3 * 2**layers
    if min(images.shape[-2:]) < smallest:
        raise UserError(
            f"images are {images.shape[-2]}x{images.shape[-1]}; a discriminator with "
            f"{layers} layers needs at least {smallest} pixels. Give it fewer layers."
        )


def hinge_loss(real: Logits, fake: Logits) -> Scalar:
    """Compute the loss of the discriminator.

    It is 1 if all logits are 0, and 0 if real images are above 1 and reconstructions below -1.
    """
    return 0.5 * ((1 - real).relu().mean() + (1 + fake).relu().mean())


def describe_gan_balance(loss: float, real: float, fake: float) -> str:
    """Say in words whether discriminator and autoencoder are in balance.

    Args:
        loss: mean hinge loss of the discriminator.
        real, fake: mean logits of images and of reconstructions.
    """
    if loss < 0.1:
        return "the discriminator is winning: its gradient fades (lower its learning rate)"
    if abs(real - fake) < 0.02:
        return "the discriminator is dead: it rates both alike (train it earlier or faster)"
    return "balanced"
