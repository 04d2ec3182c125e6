"""LPIPS, the perceptual distance of Zhang et al. 2018 (arXiv:1801.03924), as a training loss.

This is the only module that imports `lpips`. LPIPS needs two files: the calibrated weights of each
layer, which come with that package, and the weights of the backbone (VGG, AlexNet or SqueezeNet),
which come from torchvision and have to be on disk or downloadable.
"""

import socket
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from functools import reduce
from pathlib import Path
from typing import Literal

import lpips  # pyright: ignore[reportMissingTypeStubs]
import torch
from jaxtyping import Float
from torch import Tensor
from torchvision import models  # pyright: ignore[reportMissingTypeStubs]

from foundation.errors import MissingFileError, UserError
from foundation.hashing import file_sha256
from foundation.shapes import Images, PerImage

PerceptualNet = Literal["vgg", "alex", "squeeze"]
BACKBONES = {
    "vgg": models.VGG16_Weights.IMAGENET1K_V1,
    "alex": models.AlexNet_Weights.IMAGENET1K_V1,
    "squeeze": models.SqueezeNet1_1_Weights.IMAGENET1K_V1,
}
SMALLEST = 32  # pixels; for smaller images the deepest layers of the backbones have no output
DOWNLOAD_TIMEOUT = 15.0  # seconds without any data


class PerceptualDistance:
    """LPIPS between images in [-1, 1]: 0 for equal images, about 0.5 for unrelated ones.

    The backbones need RGB. Images with another number of channels are divided: each three channels
    in their order are one RGB image, and the one or two that remain are one gray image each. The
    distance is the mean over all of these, weighted by the number of channels. So gray images are
    replicated, RGBA gives 3/4 RGB + 1/4 alpha, and five channels give
    3/5 (1, 2, 3) + 1/5 (4) + 1/5 (5).

    It is not an nn.Module, so that train(), parameters() and state_dict() of a module that holds it
    do not reach the frozen network inside: its dropout must stay off, and its weights are never
    trained. The gradient with respect to the images does pass through.

    pretrained: False leaves the backbone with random weights. Its distances mean nothing then, but
        its memory and its time can be measured.
    """

    def __init__(
        self, net: PerceptualNet, device: str | torch.device = "cpu", pretrained: bool = True
    ):
        weights = backbone_weights(net) if pretrained else None
        self.lpips = build_lpips(net)
        if weights is not None:
            load_backbone(self.lpips, weights)
        self.lpips.to(device).eval().requires_grad_(False)

    def __call__(self, images: Images, reconstructions: Images) -> PerImage:
        """Compute one distance per image, in float32. Only the reconstructions get a gradient."""
        with torch.autocast(images.device.type, enabled=False), torch.no_grad():
            expected = self.features(images)
        with torch.autocast(images.device.type, enabled=False):
            given = self.features(reconstructions)
            distances = [
                layer((a - b).square()).mean(dim=(1, 2, 3))
                for layer, a, b in zip(self.lpips.lins, given, expected, strict=True)
            ]
        channels = images.shape[1]
        shares = [len(group) / channels for group in channel_groups(channels)]
        distance = torch.stack(distances).sum(0)
        per_group = distance.reshape(len(images), len(shares))
        # Numbers, since a tensor of them would have to be copied to the device in each step.
        return reduce(torch.add, [share * per_group[:, k] for k, share in enumerate(shares)])

    def features(self, images: Images) -> list[Tensor]:
        """Compute each layer's activations, of unit length per place, per group of channels."""
        images = self.lpips.scaling_layer(as_rgb(images.float()))
        return [normalize(activations) for activations in self.lpips.net(images)]


def normalize(activations: Tensor) -> Tensor:
    """Scale the channels at each place to unit length; where all are zero, the gradient is zero.

    `lpips.normalize_tensor` computes the same, but gives a gradient of NaN there.
    """
    length = activations.square().sum(dim=1, keepdim=True).clamp_min(1e-20).sqrt()
    return activations / (length + 1e-10)


def channel_groups(channels: int) -> list[range]:
    """Return which channels are compared together: three each, and the rest one by one."""
    whole = channels - channels % 3
    triples = [range(first, first + 3) for first in range(0, whole, 3)]
    return triples + [range(one, one + 1) for one in range(whole, channels)]


def as_rgb(images: Images) -> Float[Tensor, "b_times_groups 3 height width"]:
    """Convert images with any number of channels to RGB, group by group of each image.

    Raises:
        UserError: the images are too small for the backbones.
    """
    side = min(images.shape[-2:])
    if side < SMALLEST:
        raise UserError(
            f"LPIPS needs images of at least {SMALLEST} pixels, got {side}. "
            'Train with perceptual="none", or on larger images.'
        )
    groups = [
        images[:, group.start : group.stop].expand(-1, 3, -1, -1)
        for group in channel_groups(images.shape[1])
    ]
    return torch.stack(groups, dim=1).flatten(0, 1)


def build_lpips(net: PerceptualNet) -> lpips.LPIPS:
    """Make the network with calibrated layer weights, and a backbone of random weights."""
    with warnings.catch_warnings():  # lpips calls torchvision in a way that it deprecates
        warnings.simplefilter("ignore")
        network = lpips.LPIPS(net=net, pnet_rand=True, verbose=False)
    # If the names in lpips' own file were others, it would silently keep random weights.
    file = Path(lpips.__file__).parent / "weights" / "v0.1" / f"{net}.pth"
    calibrated = torch.load(file, map_location="cpu", weights_only=True)
    expected = [name for name, _ in network.named_parameters() if name.startswith("lin")]
    assert set(calibrated) == set(expected), f"{file} belongs to another version of lpips"
    return network


def load_backbone(network: lpips.LPIPS, weights: dict[str, Tensor]) -> None:
    """Copy torchvision's weights into the backbone, which lpips has divided into slices.

    lpips keeps the layers' numbers: slice2.5.weight is features.5.weight of torchvision.
    """
    for name, parameter in network.net.named_parameters():
        key = "features." + name.partition(".")[2]
        with torch.no_grad():
            parameter.copy_(weights[key])


def backbone_weights(net: PerceptualNet) -> dict[str, Tensor]:
    """Read the weights of a backbone from torch.hub's folder, or download them into it.

    Raises:
        MissingFileError: they are not there and cannot be downloaded.
        UserError: the file is damaged.
    """
    weights, path = BACKBONES[net], backbone_file(net)
    if path.exists() and not has_hash_of_its_name(path):
        raise UserError(f"{path} is damaged, perhaps cut short. Delete it. {ways_out(net)}")
    try:
        with socket_timeout(DOWNLOAD_TIMEOUT):
            return dict(
                weights.get_state_dict(
                    progress=True, check_hash=True, map_location="cpu", weights_only=True
                )
            )
    except (OSError, RuntimeError) as error:  # no network; a download cut short
        raise MissingFileError(
            f"the perceptual loss needs the weights of its backbone, {path}, and they could not "
            f"be downloaded ({error}). {ways_out(net)}"
        ) from error


def ways_out(net: PerceptualNet) -> str:
    """Return what to do where the weights of a backbone are missing."""
    weights, path = BACKBONES[net], backbone_file(net)
    return (
        f"Fetch {weights.url} ({weights.meta['_file_size']:.0f} MB; its sha256 begins with "
        f"{hash_of_name(path)}) on a machine that has a network, and copy it there, or set "
        f"TORCH_HOME to the folder that has hub/checkpoints/{path.name}, or train without LPIPS "
        '(perceptual="none").'
    )


def backbone_file(net: PerceptualNet) -> Path:
    """Return where the weights of a backbone lie, or would be downloaded to."""
    return Path(torch.hub.get_dir()) / "checkpoints" / Path(BACKBONES[net].url).name


def hash_of_name(path: Path) -> str:
    """Return the first digits of the sha256, which end the name: 397923af of vgg16-397923af.pth."""
    return path.stem.split("-")[-1]


def has_hash_of_its_name(path: Path) -> bool:
    """Return whether a file has the sha256 whose first digits end its name."""
    return file_sha256(path).startswith(hash_of_name(path))


@contextmanager
def socket_timeout(seconds: float) -> Generator[None]:
    """Limit how long connections may stand still: torch.hub sets no limit of its own."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
