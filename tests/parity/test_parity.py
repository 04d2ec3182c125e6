"""Networks, tokens and images equal those of diffusers and transformers for the same weights."""

import pytest
import torch
from diffusers.models.embeddings import AttentionPooling

from tests.helpers.peer_settings import ODD_AUTOENCODERS, ODD_UNETS
from tests.parity import run as parity

# diffusers has not followed NumPy here
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=name, marks=[pytest.mark.slow] if case.slow else [])
        for name, case in parity.CASES.items()
    ],
)
def test_equals_its_peer(case):
    for what, figure in case.measure().figures.items():
        assert figure <= case.bound, what


@pytest.mark.parametrize("settings", ODD_AUTOENCODERS.values(), ids=ODD_AUTOENCODERS.keys())
def test_autoencoders_differ_only_by_rounding(settings):
    figures = parity.autoencoder(settings, (16, 24), torch.float64).figures
    assert max(figures.values()) < 1e-12


@pytest.mark.parametrize("settings", ODD_UNETS.values(), ids=ODD_UNETS.keys())
def test_unets_differ_only_by_rounding(settings, monkeypatch):
    pool = AttentionPooling.forward

    def pool_in_float64(self, states):
        # diffusers computes the softmax of pooled text in float32, whatever the weights are
        with monkeypatch.context() as patch:
            patch.setattr(torch.Tensor, "float", torch.Tensor.double)
            return pool(self, states)

    monkeypatch.setattr(AttentionPooling, "forward", pool_in_float64)
    figures = parity.unet(settings, (8, 16), torch.float64).figures
    assert max(figures.values()) < 1e-12


def test_other_settings_of_the_same_shapes_are_noticed():
    """Show that the tests above can fail."""
    settings = ODD_UNETS["heads per level"]
    heads = parity.unet(settings, (8, 16), attention_head_dim=[2, 8]).figures
    assert heads["prediction"] > 1e-4
    settings = ODD_AUTOENCODERS["four image channels, latents_mean and latents_std"]
    groups = parity.autoencoder(settings, (16, 24), norm_num_groups=8).figures
    scale = parity.autoencoder(settings, (16, 24), latents_std=[8.4, 5.9, 6.5, 5.2]).figures
    assert min(*groups.values(), *scale.values()) > 1e-3
