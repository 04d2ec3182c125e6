"""Muon: the step of torch.optim.Muon, singular values near 1, and steps that are skipped."""

import copy

import pytest
import torch
from torch import nn

from ldm.unet import UNet, UNetConfig
from tests.helpers.peer_settings import SMALL_UNET
from training.optimizer import OptimizerStep
from training.weights.muon import Muon, orthogonal

SHAPES = [(6, 40), (40, 6), (12, 12), (16, 30)]


def random_matrices(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", SHAPES)
def test_the_steps_are_those_of_pytorch(shape):
    """Theirs takes matrices alone, and rounds its products to bf16."""
    ours, theirs = (nn.Parameter(random_matrices(*shape)) for _ in range(2))
    muon = Muon([ours], weight_decay=0.1)
    muon.initialize()
    peer = torch.optim.Muon([theirs], lr=0.02, weight_decay=0.1, adjust_lr_fn="original")
    muon.param_groups[0]["lr"] = 0.02
    for seed in range(1, 5):
        ours.grad = random_matrices(*shape, seed=seed)
        theirs.grad = ours.grad.clone()
        muon.step()
        peer.step()
    moved = (ours - random_matrices(*shape)).abs().max()
    torch.testing.assert_close(ours.data, theirs.data, rtol=0, atol=0.05 * moved.item())


@pytest.mark.parametrize("shape", [(32, 200), (200, 32), (48, 64)])
def test_all_singular_values_are_near_one(shape):
    matrices = random_matrices(3, *shape)
    found = orthogonal(matrices)
    values = torch.linalg.svdvals(found)
    assert found.dtype == torch.float32 and found.shape == matrices.shape
    assert values.min() > 0.6 and values.max() < 1.3
    u, _, v = torch.linalg.svd(matrices, full_matrices=False)
    turned = u.mT @ found @ v.mT  # diagonal, as the singular vectors stay
    kept = torch.linalg.diagonal(turned)
    assert (turned - torch.diag_embed(kept)).abs().max() < 0.03
    assert kept.min() > 0.6


def test_a_convolution_moves_as_its_matrix_does():
    convolution = nn.Parameter(random_matrices(6, 4, 3, 3))
    matrix = nn.Parameter(convolution.detach().flatten(1).clone())
    for weight in (convolution, matrix):
        muon = Muon([weight])
        muon.initialize()
        muon.param_groups[0]["lr"] = 0.1
        weight.grad = random_matrices(6, 36, seed=1).view_as(weight)
        muon.step()
    torch.testing.assert_close(convolution.flatten(1), matrix)


def test_a_step_that_is_not_finite_changes_nothing():
    weight = nn.Parameter(random_matrices(4, 5))
    update = OptimizerStep({"matrices": Muon([weight], weight_decay=0.1)})
    rates = {"matrices": 0.1}
    (weight * random_matrices(4, 5, seed=1)).sum().backward()
    update({}, rates)
    before, state = weight.detach().clone(), copy.deepcopy(update.state_dict())
    (weight * torch.nan).sum().backward()
    assert update({}, rates)["step_applied"] == 0
    assert torch.equal(weight, before)
    momentum = update.state_dict()["moments"]["matrices"][0]["momentum"]
    assert torch.equal(momentum, state["moments"]["matrices"][0]["momentum"])
    (weight * random_matrices(4, 5, seed=2)).sum().backward()
    assert update({}, rates)["step_applied"] == 1 and not torch.equal(weight, before)


def test_a_resumed_optimizer_goes_on_as_the_unbroken_one():
    def begin() -> tuple[nn.Parameter, OptimizerStep]:
        weight = nn.Parameter(random_matrices(4, 5))
        return weight, OptimizerStep({"matrices": Muon([weight])})

    def train(weight: nn.Parameter, update: OptimizerStep, steps: range) -> None:
        for step in steps:
            (weight * random_matrices(4, 5, seed=step)).sum().backward()
            update({}, {"matrices": 0.1})

    straight, update = begin()
    train(straight, update, range(6))
    first, update = begin()
    train(first, update, range(3))
    resumed, again = begin()
    resumed.data.copy_(first.data)
    again.load_state_dict(copy.deepcopy(update.state_dict()))
    train(resumed, again, range(3, 6))
    assert torch.equal(resumed, straight)


def test_the_matrices_of_a_unet_are_inside_its_blocks():
    unet = UNet(
        UNetConfig(**SMALL_UNET, addition_embed_type="text", addition_embed_type_num_heads=4)
    )
    chosen = {id(weight) for weight in unet.matrices()}
    names = [name for name, weight in unet.named_parameters() if id(weight) in chosen]
    rest = [name for name, weight in unet.named_parameters() if id(weight) not in chosen]
    assert "mid_block.attentions.0.transformer_blocks.0.attn2.to_q.weight" in names
    assert "up_blocks.0.resnets.0.conv1.weight" in names
    outside = ("conv_in", "conv_out", "conv_norm_out", "time_embedding", "add_embedding")
    for name in rest:
        small = name.endswith(".bias") or "norm" in name or "time_emb_proj" in name
        assert small or name.startswith(outside), name
