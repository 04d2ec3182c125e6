"""Gradients with checkpointing equal those without it, in every precision."""

import pytest
import torch

from ldm.unet import UNet
from tests.helpers.peer_settings import SMALL_UNET
from tests.helpers.sampling import make_unet, randn
from training.precision import Precision


def gradients(unet: UNet, precision: str) -> list[torch.Tensor]:
    unet.zero_grad()
    context = randn(2, 5, unet.config.cross_attention_dim, seed=1)
    with Precision(torch.device("cpu"), precision):
        output = unet(randn(2, unet.config.in_channels, 8, 8), torch.tensor([5, 900]), context)
        loss = output.float().square().mean()
    loss.backward()
    return [weight.grad.clone() for weight in unet.parameters()]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_gradients_are_the_same_with_checkpointing(precision):
    """The forward pass is repeated after the autocast context has ended.

    In bf16 on a CPU that context also chooses the kernel of attention.
    """
    unet = make_unet(SMALL_UNET).train().requires_grad_(True)
    expected = gradients(unet, precision)
    unet.gradient_checkpointing = True
    torch.testing.assert_close(gradients(unet, precision), expected)
