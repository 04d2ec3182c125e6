"""LPIPS equals the package, has a gradient, is never random, and names missing files."""

import hashlib
import io
import warnings
from types import SimpleNamespace

import lpips
import pytest
import torch

from autoencoder.training import lpips as lpips_module
from autoencoder.training.lpips import PerceptualDistance, backbone_file, backbone_weights
from foundation.errors import MissingFileError, UserError


@pytest.fixture(scope="module")
def reference() -> lpips.LPIPS:
    """Make the package's own network, with a random backbone, since nothing is downloaded."""
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return lpips.LPIPS(net="alex", pnet_rand=True, verbose=False)


@pytest.fixture
def distance(reference, monkeypatch) -> PerceptualDistance:
    weights = {
        "features." + name.partition(".")[2]: value
        for name, value in reference.net.state_dict().items()
    }
    monkeypatch.setattr(lpips_module, "backbone_weights", lambda net: weights)
    return PerceptualDistance("alex")


def test_equals_the_package(distance, reference):
    a, b = torch.rand(2, 2, 3, 48, 40) * 2 - 1
    torch.testing.assert_close(distance(a, b), reference(a, b).flatten(), rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(distance(a, a), torch.zeros(2))


def test_has_a_gradient_to_the_reconstruction_only(distance):
    images, reconstructions = torch.rand(2, 1, 3, 32, 32, requires_grad=True).unbind(0)
    images = images.detach().requires_grad_()
    reconstructions = reconstructions.detach().requires_grad_()
    distance(images, reconstructions).sum().backward()
    assert reconstructions.grad.abs().max() > 0 and images.grad is None
    assert not any(p.requires_grad for p in distance.lpips.parameters())


def test_gradient_is_finite_where_all_activations_are_zero():
    activations = torch.zeros(1, 4, 2, 2, requires_grad=True)
    lpips_module.normalize(activations).sum().backward()
    assert activations.grad.isfinite().all()


def test_dropout_stays_off_whatever_the_owner_does(distance):
    class Owner(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.distance = distance

    owner = Owner().train()
    assert not any(module.training for module in distance.lpips.modules())
    assert not list(owner.parameters()) and not owner.state_dict()


def test_gray_is_replicated(distance):
    gray = torch.rand(2, 1, 1, 32, 32)
    torch.testing.assert_close(distance(*gray), distance(*gray.expand(-1, -1, 3, -1, -1)))


@pytest.mark.parametrize("channels", [2, 4, 5, 6])
def test_every_channel_counts_the_same(distance, channels):
    """Channels are compared in threes and the rest one by one, weighted by their number."""
    a, b = torch.rand(2, 2, channels, 32, 32) * 2 - 1
    triples = channels // 3
    parts = [slice(3 * k, 3 * k + 3) for k in range(triples)]
    parts += [slice(k, k + 1) for k in range(3 * triples, channels)]
    sizes = [part.stop - part.start for part in parts]
    expected = sum(
        distance(a[:, part], b[:, part]) * size for part, size in zip(parts, sizes, strict=True)
    )
    torch.testing.assert_close(distance(a, b), expected / channels, rtol=1e-4, atol=1e-7)


def test_every_channel_gets_a_gradient(distance):
    images, reconstructions = torch.rand(2, 1, 5, 32, 32)
    distance(images, reconstructions.requires_grad_()).sum().backward()
    assert (reconstructions.grad.abs().amax(dim=(0, 2, 3)) > 0).all()


def test_small_images_are_refused(distance):
    with pytest.raises(UserError, match=r"\b32\b.*\b16\b"):
        distance(torch.zeros(1, 3, 16, 32), torch.zeros(1, 3, 16, 32))


@pytest.mark.parametrize("net", lpips_module.BACKBONES)
def test_missing_backbone_offline_is_one_clear_error(net, tmp_path, monkeypatch):
    def no_network(*_, **__):
        raise OSError("Name or service not known")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "urlopen", no_network)
    with pytest.raises(MissingFileError) as caught:
        PerceptualDistance(net)
    file = backbone_file(net)
    what = (file.stem[-8:], " MB", f"https://download.pytorch.org/models/{file.name}")
    for name in (str(tmp_path / "checkpoints"), "TORCH_HOME", "perceptual=", *what):
        assert name in str(caught.value)


def test_memory_is_estimated_without_the_weights(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    images = torch.zeros(2, 3, 32, 32)
    assert PerceptualDistance("alex", pretrained=False)(images, images + 0.5).shape == (2,)
    assert list(tmp_path.iterdir()) == []


def test_damaged_backbone_is_reported(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    file = tmp_path / "checkpoints" / "alexnet-owt-7be5be79.pth"
    file.parent.mkdir()
    file.write_bytes(b"half of a download")
    with pytest.raises(UserError, match=file.name):
        backbone_weights("alex")


def test_backbone_is_read_from_disk(tmp_path, monkeypatch):
    """The file is the one that torchvision would download; its name ends in its hash."""
    weights, content = {"features.0.weight": torch.ones(2)}, io.BytesIO()
    torch.save(weights, content)
    name = f"net-{hashlib.sha256(content.getvalue()).hexdigest()[:8]}.pth"
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / name).write_bytes(content.getvalue())
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    url = f"https://example.invalid/{name}"
    stand_in = SimpleNamespace(
        url=url,
        get_state_dict=lambda **options: torch.hub.load_state_dict_from_url(url, **options),
    )
    monkeypatch.setitem(lpips_module.BACKBONES, "alex", stand_in)
    assert torch.equal(backbone_weights("alex")["features.0.weight"], torch.ones(2))
