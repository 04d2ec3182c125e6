"""LPIPS, the perceptual distance of Zhang et al. 2018 (arXiv:1801.03924), as a training loss.

The only module that imports `lpips`. It needs two files: the calibrated weights of each layer,
which come with that package, and the backbone (VGG, AlexNet or SqueezeNet), which is torchvision's
and has to be on disk or downloadable.
"""

import hashlib
import socket
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import lpips
import torch
from jaxtyping import Float
from torch import Tensor
from torchvision import models

from foundation.errors import MissingFileError, UserError
from foundation.shapes import Images, PerImage

PerceptualNet = Literal["vgg", "alex", "squeeze"]
BACKBONES = {
    "vgg": models.VGG16_Weights.IMAGENET1K_V1,
    "alex": models.AlexNet_Weights.IMAGENET1K_V1,
    "squeeze": models.SqueezeNet1_1_Weights.IMAGENET1K_V1,
}
SMALLEST = 32  # pixels; below, the deepest layers of the backbones see nothing
TIMEOUT = 15.0  # seconds that a download may stand still


class PerceptualDistance:
    """LPIPS between images in [-1, 1]: 0 for equal ones, about 0.5 for unrelated ones.

    The backbones know RGB. Of images with other than three channels, those are taken three by three
    in their order, as if they were RGB; the one or two that remain are taken one by one, as gray.
    The distance is the mean over all of these, in which every channel counts the same: gray is
    replicated, RGBA gives 3/4 RGB + 1/4 alpha, five channels 3/5 (1, 2, 3) + 1/5 (4) + 1/5 (5).

    Not an nn.Module, so that nobody's train(), parameters() or state_dict() reaches the frozen
    network inside: it has a dropout that must stay off, and no weight of it is ever trained. The
    gradient with respect to the images does pass through.
    """

    def __init__(self, net: PerceptualNet, device: str | torch.device = "cpu"):
        weights = backbone_weights(net)
        self.lpips = build(net)
        load_backbone(self.lpips, weights)
        self.lpips.to(device).eval().requires_grad_(False)

    def __call__(self, images: Images, reconstructions: Images) -> PerImage:
        """One number per image, in float32. The gradient goes to the reconstructions alone."""
        with torch.autocast(images.device.type, enabled=False), torch.no_grad():
            wanted = self.features(images)
        with torch.autocast(images.device.type, enabled=False):
            given = self.features(reconstructions)
            distances = [
                layer((a - b).square()).mean(dim=(1, 2, 3))
                for layer, a, b in zip(self.lpips.lins, given, wanted, strict=True)
            ]
        channels = images.shape[1]
        shares = torch.tensor([len(group) / channels for group in groups(channels)])
        distance = torch.stack(distances).sum(0)
        return distance.unflatten(0, (len(images), -1)) @ shares.to(distance.device)

    def features(self, images: Images) -> list[Tensor]:
        """Activations of each layer, of each group of channels, of unit length at every place."""
        images = self.lpips.scaling_layer(as_rgb(images.float()))
        return [normalize(activations) for activations in self.lpips.net(images)]


def normalize(activations: Tensor) -> Tensor:
    """`lpips.normalize_tensor`, but with a gradient of 0 instead of NaN where all are zero."""
    length = activations.square().sum(dim=1, keepdim=True).clamp_min(1e-20).sqrt()
    return activations / (length + 1e-10)


def groups(channels: int) -> list[range]:
    """The channels that are looked at together: three each, and what remains one by one."""
    whole = channels - channels % 3
    triples = [range(first, first + 3) for first in range(0, whole, 3)]
    return triples + [range(one, one + 1) for one in range(whole, channels)]


def as_rgb(images: Images) -> Float[Tensor, "b_times_groups 3 height width"]:
    """What the backbones see of images of any number of channels, group by group of each image."""
    side = min(images.shape[-2:])
    if side < SMALLEST:
        raise UserError(
            f"LPIPS needs images of at least {SMALLEST} pixels, got {side}. "
            "Train with --perceptual none, or on larger images."
        )
    seen = [
        images[:, group.start : group.stop].expand(-1, 3, -1, -1)
        for group in groups(images.shape[1])
    ]
    return torch.stack(seen, dim=1).flatten(0, 1)


def build(net: PerceptualNet) -> lpips.LPIPS:
    """The network with calibrated layer weights; those of the backbone follow."""
    with warnings.catch_warnings():  # lpips calls torchvision in a way that it deprecates
        warnings.simplefilter("ignore")
        network = lpips.LPIPS(net=net, pnet_rand=True, verbose=False)
    # lpips would go on with random ones if its file were another.
    file = Path(lpips.__file__).parent / "weights" / "v0.1" / f"{net}.pth"
    calibrated = torch.load(file, map_location="cpu", weights_only=True)
    expected = [name for name, _ in network.named_parameters() if name.startswith("lin")]
    assert set(calibrated) == set(expected), f"{file} belongs to another version of lpips"
    return network


def load_backbone(network: lpips.LPIPS, weights: dict[str, Tensor]) -> None:
    """lpips cuts the backbone into slices but keeps the layers' numbers."""
    for name, parameter in network.net.named_parameters():  # such as slice2.5.weight
        key = "features." + name.partition(".")[2]
        with torch.no_grad():
            parameter.copy_(weights[key])


def backbone_weights(net: PerceptualNet) -> dict[str, Tensor]:
    """From torch.hub's folder; downloaded if they are not there and the network allows.

    Raises:
        FileNotFoundError: neither worked; says where the file should be and the ways out.
    """
    weights = BACKBONES[net]
    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(weights.url).name
    ways_out = (
        "Copy the file there from a machine that has a network, or set TORCH_HOME to the folder "
        f"that has hub/checkpoints/{path.name}, or train without: --perceptual none."
    )
    if path.exists() and not has_named_hash(path):
        raise UserError(f"{path} is damaged, perhaps cut short. Delete it. {ways_out}")
    try:
        with socket_timeout(TIMEOUT):
            return weights.get_state_dict(progress=True, check_hash=True, map_location="cpu")
    except (OSError, RuntimeError) as error:  # no network; a download cut short
        raise MissingFileError(
            f"the perceptual loss needs the weights of its backbone, {path}, and they could not "
            f"be fetched from {weights.url} ({error}). {ways_out}"
        ) from error


def has_named_hash(path: Path) -> bool:
    """torchvision's files carry the first digits of their sha256, as in vgg16-397923af.pth."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest().startswith(path.stem.split("-")[-1])


@contextmanager
def socket_timeout(seconds: float) -> Iterator[None]:
    """torch.hub opens its connection without a time limit: behind some firewalls, for ever."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
