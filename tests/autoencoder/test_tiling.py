"""Tiles and slices give the result of the whole image, or one close to it."""

import pytest
import torch
import torch.nn.functional as F

from autoencoder import PRESETS, Autoencoder, Posterior
from autoencoder.tiling import (
    blend_tiles,
    decode_sliced,
    decode_tiled,
    encode_sliced,
    encode_tiled,
)
from foundation.errors import UserError


class Local(Autoencoder):
    """An autoencoder whose outputs depend on the input at their own place only: tiling is exact."""

    def encode(self, images, check=True):
        means = F.avg_pool2d(images, self.factor)
        return Posterior(means, means - 1)

    def decode(self, latents):
        return F.interpolate(latents[:, :3], scale_factor=float(self.factor), mode="nearest")


@pytest.fixture(scope="module")
def tiny() -> Autoencoder:
    torch.manual_seed(0)
    return Autoencoder(PRESETS["tiny-32"]).eval()


def smooth(height: int, width: int, channels: int, period: int) -> torch.Tensor:
    """Make images of smooth waves."""
    y, x = (2 * torch.pi / period * torch.arange(side) for side in (height, width))
    waves = [torch.outer((y + k).sin(), (x + 2 * k).cos()) for k in range(channels)]
    return torch.stack(waves)[None]


@pytest.mark.parametrize(("tile", "overlap"), [(8, 2), (8, 0), (7, 6), (10, 5), (64, 16)])
@torch.no_grad()
def test_tiles_of_a_local_network_are_exact(tile, overlap):
    local = Local(PRESETS["tiny-32"])
    latents = torch.randn(2, 4, 21, 13)
    whole = local.decode(latents)
    torch.testing.assert_close(decode_tiled(local, latents, tile, overlap), whole)
    images = torch.rand(2, 3, 84, 52)
    posterior = encode_tiled(local, images, tile, overlap)
    torch.testing.assert_close(posterior.mean, local.encode(images).mean)
    torch.testing.assert_close(posterior.logvar, local.encode(images).logvar)


@pytest.mark.parametrize("direction", ["encode", "decode"])
@torch.no_grad()
def test_tiles_of_a_network_are_close_and_have_no_seams(tiny, direction):
    images, latents = smooth(160, 128, 3, period=24), smooth(40, 32, 4, period=6)
    if direction == "encode":
        whole = tiny.encode(images).mean
        hard, blended = (encode_tiled(tiny, images, 24, overlap).mean for overlap in (0, 8))
    else:
        whole = tiny.decode(latents)
        hard, blended = (decode_tiled(tiny, latents, 24, overlap) for overlap in (0, 8))
    errors = [(tiled - whole) / whole.std() for tiled in (hard, blended)]
    # GroupNorm sees a tile instead of the image: tones differ a little (measured: 0.06, 0.14).
    assert errors[1].square().mean().sqrt() < 0.2
    # At a seam the error jumps; blending spreads the jump over the overlap (0.4 to 0.6 of it).
    for dim in (2, 3):
        jumps = [error.diff(dim=dim).abs().max() for error in errors]
        assert jumps[1] < 0.7 * jumps[0]


@torch.no_grad()
def test_one_tile_is_the_whole(tiny):
    images = torch.rand(1, 3, 32, 32)
    posterior = tiny.encode(images)
    torch.testing.assert_close(encode_tiled(tiny, images).mean, posterior.mean)
    latents = posterior.mode()
    torch.testing.assert_close(decode_tiled(tiny, latents), tiny.decode(latents))


@torch.no_grad()
def test_slices_are_the_batch(tiny):
    images = torch.rand(3, 3, 16, 24)
    posterior = encode_sliced(tiny, images)
    torch.testing.assert_close(posterior.mean, tiny.encode(images).mean)
    torch.testing.assert_close(posterior.logvar, tiny.encode(images).logvar)
    torch.testing.assert_close(decode_sliced(tiny, posterior.mean), tiny.decode(posterior.mean))


def test_no_call_is_larger_than_a_tile():
    sizes = []

    def compute(top, left, height, width):
        sizes.append((height, width))
        return torch.ones(1, 1, height, width)

    assert (blend_tiles(compute, 50, 30, tile=16, overlap=4) == 1).all()
    assert set(sizes) == {(16, 16)} and len(sizes) == 4 * 3


def test_an_overlap_as_wide_as_a_tile_is_refused():
    with pytest.raises(UserError, match="16"):
        blend_tiles(lambda *_: torch.zeros(1, 1, 1, 1), 20, 20, tile=16, overlap=16)
