"""A training step moves both networks, learns, resumes exactly, and leaves NaN out."""

import copy
from itertools import pairwise

import pytest
import torch

from autoencoder import PRESETS, Autoencoder
from autoencoder.training.discriminator import Discriminator, DiscriminatorConfig
from autoencoder.training.loss import AutoencoderLoss, LossConfig
from autoencoder.training.step import AutoencoderTraining
from training.checkpoint import load_state, save_state
from training.optimizer import OptimizerStep

STEPS = 6


def make(**settings) -> tuple[AutoencoderTraining, OptimizerStep]:
    torch.manual_seed(0)
    config = LossConfig(
        perceptual="none",
        discriminator_start=1,
        adversarial_start=2,
        adversarial_ramp=2,
        **settings,
    )
    discriminator = Discriminator(DiscriminatorConfig(width=8, layers=2, groups=4))
    training = AutoencoderTraining(
        Autoencoder(PRESETS["tiny-32"]),
        discriminator if config.adversarial_weight else None,
        AutoencoderLoss(config, STEPS),
    )
    return training, OptimizerStep(training.optimizers, clip_norm=1.0)


def train(training, update, images, step, rate=1e-3, adversary=1.0, micro_batches=1):
    random = torch.Generator().manual_seed(step)
    noise = torch.randn(training.autoencoder.latent_shape(images), generator=random)
    metrics = training.backward(images, noise, step, micro_batches, update.scale)
    return metrics | update(metrics, {"optimizer": rate, "adversary": rate * adversary})


def run(training, update, first: int, last: int, **options) -> dict[str, torch.Tensor]:
    for step in range(first, last):
        random = torch.Generator().manual_seed(1000 + step)
        images = torch.rand(4, 3, 32, 32, generator=random) * 2 - 1
        metrics = train(training, update, images, step, **options)
    return metrics


def weights(training: AutoencoderTraining) -> dict[str, torch.Tensor]:
    return {
        f"{name}.{key}": value.clone()
        for name, network in training.networks.items()
        for key, value in network.state_dict().items()
    }


def test_each_network_moves_when_it_should():
    training, update = make(learned_logvar=True)
    snapshots = [weights(training)]
    for step in range(3):
        metrics = run(training, update, step, step + 1)
        snapshots.append(weights(training))
        assert all(value.dim() == 0 for value in metrics.values())
        assert ("discriminator" in metrics) == (step >= 1)
        assert ("adversarial" in metrics) == (step >= 2)
    # While no logit has passed the hinge, the gradients of the last bias cancel (real - fake).
    names = [name for name, _ in training.discriminator.named_parameters()]
    last_bias = f"discriminator.{names[-1]}"
    assert last_bias.endswith("bias")
    for name in snapshots[0].keys() - {last_bias}:
        moved = [not torch.equal(a[name], b[name]) for a, b in pairwise(snapshots)]
        assert moved == [not name.startswith("discriminator."), True, True], name


def test_without_adversarial_weight_there_is_no_discriminator():
    metrics = run(*make(adversarial_weight=0.0), 0, STEPS)
    assert "adversarial" not in metrics and "discriminator" not in metrics


def test_it_learns():
    training, update = make()
    torch.manual_seed(1)
    images = torch.nn.functional.interpolate(torch.rand(4, 3, 4, 4) * 2 - 1, scale_factor=8)
    errors = [train(training, update, images, 0, rate=3e-3)["l1"].item() for _ in range(60)]
    assert errors[-1] < 0.5 * errors[0]


def test_resume_is_exact(tmp_path):
    """The memory layout of the convolutions differs from that of the file."""
    whole, before, after = make(), make(), make()
    run(*whole, 0, STEPS)
    run(*before, 0, 3)
    save_state(tmp_path, 3, before[0].networks | {"update": before[1]})
    objects = after[0].networks | {"update": after[1]}
    assert load_state(tmp_path / "step-0000003", objects) == 3
    run(*after, 3, STEPS)
    expected = weights(whole[0])
    assert all(torch.equal(expected[key], value) for key, value in weights(after[0]).items())


@pytest.mark.parametrize("adaptive", [True, False])
def test_micro_batches_give_the_same_training(adaptive):
    """Also with the adaptive weight, which compares norms: those cannot be added."""
    whole, divided = (make(adaptive=adaptive, learned_logvar=True) for _ in range(2))
    for step in range(4):
        expected = run(*whole, step, step + 1)
        given = run(*divided, step, step + 1, micro_batches=2)
        for name, value in expected.items():
            torch.testing.assert_close(given[name], value, rtol=2e-3, atol=1e-4, msg=name)
        for key, value in weights(whole[0]).items():
            torch.testing.assert_close(weights(divided[0])[key], value, rtol=0, atol=5e-4, msg=key)


def test_a_loss_scale_changes_nothing():
    """The scale is 2^10: a power of two changes not even the rounding."""
    plain, scaled = (make(learned_logvar=True) for _ in range(2))
    scaled[1].scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for step in range(4):
        expected, given = (run(*each, step, step + 1) for each in (plain, scaled))
        for name, value in expected.items():
            torch.testing.assert_close(given[name], value, rtol=1e-5, atol=1e-7, msg=name)
    for key, value in weights(plain[0]).items():
        torch.testing.assert_close(weights(scaled[0])[key], value, msg=key)


def test_a_step_with_nan_changes_neither_network():
    training, update = make()
    run(training, update, 0, 3)
    before, state = weights(training), copy.deepcopy(update.state_dict())
    metrics = train(training, update, torch.full((2, 3, 32, 32), torch.nan), 3)
    assert not metrics["gradient_norm"].isfinite() and metrics["step_applied"] == 0
    assert all(torch.equal(before[key], value) for key, value in weights(training).items())
    for name, moments in state["moments"].items():
        kept = update.state_dict()["moments"][name]
        for k, values in moments.items():
            assert all(torch.equal(kept[k][key], value) for key, value in values.items())
    assert run(training, update, 4, 5)["step_applied"] == 1
    after = weights(training)
    assert all(value.isfinite().all() for value in after.values())
    assert not torch.equal(
        before["autoencoder.decoder.conv_out.weight"], after["autoencoder.decoder.conv_out.weight"]
    )


@pytest.mark.parametrize("rate", [0.0, 2.0])
def test_discriminator_has_its_own_rate(rate):
    training, update = make()
    before = weights(training)
    run(training, update, 1, 2, adversary=rate)
    key = "discriminator.network.0.weight"
    assert torch.equal(before[key], weights(training)[key]) == (rate == 0)
