"""The training step: both networks move, it learns, it resumes exactly, NaN is dropped."""

import copy
from itertools import pairwise

import pytest
import torch

from autoencoder import PRESETS, Autoencoder
from autoencoder.discriminator import Discriminator, DiscriminatorConfig
from autoencoder.losses import AutoencoderLoss, LossConfig
from autoencoder.optimization import TrainingStep
from training.checkpoint import load_state, save_state

STEPS = 6


def make(**settings) -> TrainingStep:
    torch.manual_seed(0)
    config = LossConfig(
        perceptual="none",
        discriminator_start=1,
        adversarial_start=2,
        adversarial_ramp=2,
        **settings,
    )
    discriminator = Discriminator(DiscriminatorConfig(width=8, layers=2, groups=4))
    return TrainingStep(
        Autoencoder(PRESETS["tiny-32"]),
        discriminator if config.adversarial_weight else None,
        AutoencoderLoss(config, STEPS),
        clip_norm=1.0,
    )


def run(training: TrainingStep, first: int, last: int) -> dict[str, torch.Tensor]:
    for step in range(first, last):
        random = torch.Generator().manual_seed(step)
        images = torch.rand(2, 3, 32, 32, generator=random) * 2 - 1
        metrics = training(images, step, 1e-3, random)
    return metrics


def weights(training: TrainingStep) -> dict[str, torch.Tensor]:
    networks = {"a": training.autoencoder, "d": training.discriminator, "l": training.loss}
    return {
        f"{name}.{key}": value.clone()
        for name, network in networks.items()
        for key, value in network.state_dict().items()
    }


def test_each_network_moves_when_it_should():
    training = make(learned_logvar=True)
    snapshots = [weights(training)]
    for step in range(3):
        metrics = run(training, step, step + 1)
        snapshots.append(weights(training))
        assert all(value.dim() == 0 for value in metrics.values())
        assert ("discriminator" in metrics) == (step >= 1)
        assert ("adversarial" in metrics) == (step >= 2)
    # While no logit has passed the hinge, the gradients of the last bias cancel: real minus fake.
    last_bias = f"d.{[name for name, _ in training.discriminator.named_parameters()][-1]}"
    assert last_bias.endswith("bias")
    for name in snapshots[0].keys() - {last_bias}:
        moved = [not torch.equal(a[name], b[name]) for a, b in pairwise(snapshots)]
        assert moved == [not name.startswith("d."), True, True], name


def test_without_adversary_there_is_none():
    metrics = run(make(adversarial_weight=0.0), 0, STEPS)
    assert "adversarial" not in metrics and "discriminator" not in metrics


def test_it_learns():
    training = make()
    torch.manual_seed(1)
    images = torch.nn.functional.interpolate(torch.rand(4, 3, 4, 4) * 2 - 1, scale_factor=8)
    errors = [
        training(images, 0, 3e-3, torch.Generator().manual_seed(step))["l1"].item()
        for step in range(60)
    ]
    assert errors[-1] < 0.5 * errors[0]


def test_resume_is_exact(tmp_path):
    """Also where the convolutions' memory layout differs from that of the file."""
    whole, before, after = make(), make(), make()
    run(whole, 0, STEPS)
    run(before, 0, 3)
    save_state(tmp_path, 3, before.parts)
    assert load_state(tmp_path / "step-0000003", after.parts) == 3
    run(after, 3, STEPS)
    expected = weights(whole)
    assert all(torch.equal(expected[key], value) for key, value in weights(after).items())


def test_gradients_that_are_not_finite_are_dropped():
    training = make()
    run(training, 0, 3)
    before, state = weights(training), copy.deepcopy(training.optimizer.state_dict())
    images = torch.full((2, 3, 32, 32), torch.nan)
    metrics = training(images, 3, 1e-3, torch.Generator())
    assert not metrics["gradient_norm"].isfinite()
    assert all(torch.equal(before[key], value) for key, value in weights(training).items())
    kept = training.optimizer.state_dict()["state"][0]
    assert torch.equal(state["state"][0]["exp_avg"], kept["exp_avg"])
    run(training, 4, 5)
    after = weights(training)
    assert all(value.isfinite().all() for value in after.values())
    assert not torch.equal(before["a.decoder.conv_out.weight"], after["a.decoder.conv_out.weight"])


@pytest.mark.parametrize("rate", [0.0, 2.0])
def test_discriminator_has_its_own_rate(rate):
    training = make()
    training.discriminator_rate = rate
    before = weights(training)
    run(training, 1, 2)
    key = "d.network.0.weight"
    assert torch.equal(before[key], weights(training)[key]) == (rate == 0)
