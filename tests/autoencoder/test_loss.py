"""Each weight of the loss has its defined meaning, and each gradient goes where it belongs."""

import copy
import math

import pytest
import torch

from autoencoder import PRESETS, Autoencoder, Posterior
from autoencoder.training.discriminator import (
    Discriminator,
    DiscriminatorConfig,
    describe_gan_balance,
    hinge_loss,
)
from autoencoder.training.loss import AutoencoderLoss, LossConfig, adaptive_weight, start_step
from autoencoder.training.step import (
    backward_autoencoder,
    backward_discriminator,
    last_layer_gradients,
)
from foundation.errors import UserError

STEPS = 100
NOISE = torch.zeros(2, 4, 8, 8)  # of the posterior
ALWAYS = {"discriminator_start": 0, "adversarial_start": 0, "adversarial_ramp": 0}


def lpips_stand_in(images, reconstructions):
    """Compute a distance with a gradient of its own, in place of LPIPS."""
    return (images.cos() - reconstructions.cos()).square().mean(dim=(1, 2, 3))


def make(**settings) -> AutoencoderLoss:
    return AutoencoderLoss(LossConfig(perceptual="none", **settings), STEPS)


@pytest.fixture(scope="module")
def networks():
    torch.manual_seed(0)
    autoencoder = Autoencoder(PRESETS["tiny-32"])
    discriminator = Discriminator(DiscriminatorConfig(width=8, layers=2, groups=4))
    return autoencoder, discriminator, torch.rand(2, 3, 32, 32) * 2 - 1


def gradients(module: torch.nn.Module) -> list[torch.Tensor]:
    return [p.grad.clone() for p in module.parameters()]


def test_gradient_is_that_of_the_sum_of_the_terms(networks):
    autoencoder, discriminator, images = copy.deepcopy(networks)
    config = LossConfig(perceptual="vgg", perceptual_weight=0.7, kl_weight=0.1, **ALWAYS)
    loss = AutoencoderLoss(config, STEPS, lpips_stand_in)
    last = autoencoder.decoder.conv_out.weight

    posterior = autoencoder.encode(images)
    reconstructions = autoencoder.decode(posterior.mode())
    metrics = backward_autoencoder(
        loss, images, reconstructions, posterior, last, discriminator, step=0
    )
    given = gradients(autoencoder)
    autoencoder.zero_grad()

    posterior = autoencoder.encode(images)
    reconstructions = autoencoder.decode(posterior.mode())
    error = (reconstructions - images).abs().mean()
    error = error + 0.7 * lpips_stand_in(images, reconstructions).mean()
    adversarial = -discriminator(reconstructions).mean()
    norms = [
        torch.autograd.grad(term, last, retain_graph=True)[0].norm()
        for term in (error, adversarial)
    ]
    weight = (norms[0] / (norms[1] + 1e-4)).detach()
    torch.testing.assert_close(metrics["adaptive_weight"], weight)
    kl = posterior.kl().mean() / (3 * 32 * 32)
    (error + 0.5 * weight * adversarial + 0.1 * kl).backward()
    for ours, expected in zip(given, gradients(autoencoder), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-7)


def test_a_frozen_encoder_gets_no_gradient_and_the_decoder_does(networks):
    autoencoder, _, images = copy.deepcopy(networks)
    autoencoder.encoder.requires_grad_(False)
    autoencoder.quant_conv.requires_grad_(False)
    reconstructions, posterior = autoencoder(images, NOISE)
    last = autoencoder.decoder.conv_out.weight
    loss = make(adversarial_weight=0.0)
    metrics = backward_autoencoder(loss, images, reconstructions, posterior, last, None, step=0)
    assert metrics["kl_per_element"] > 0
    trained = {name for name, p in autoencoder.named_parameters() if p.grad is not None}
    assert trained == {name for name, p in autoencoder.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("adaptive", [True, False])
def test_autoencoder_step_leaves_the_discriminator_untouched(networks, adaptive):
    autoencoder, discriminator, images = copy.deepcopy(networks)
    before = copy.deepcopy(discriminator.state_dict())
    reconstructions, posterior = autoencoder(images, NOISE)
    loss = make(adaptive=adaptive, **ALWAYS)
    last = autoencoder.decoder.conv_out.weight
    metrics = backward_autoencoder(
        loss, images, reconstructions, posterior, last, discriminator, step=0
    )
    assert "adversarial" in metrics
    assert all(p.grad is None and p.requires_grad for p in discriminator.parameters())
    assert all(torch.equal(before[k], v) for k, v in discriminator.state_dict().items())


def test_discriminator_gradient_is_its_own_loss_alone(networks):
    autoencoder, discriminator, images = copy.deepcopy(networks)
    reconstructions, posterior = autoencoder(images, NOISE)
    loss, last = make(**ALWAYS), autoencoder.decoder.conv_out.weight
    backward_autoencoder(loss, images, reconstructions, posterior, last, discriminator, step=0)
    before = gradients(autoencoder)
    backward_discriminator(loss, images, reconstructions, discriminator)
    given = gradients(discriminator)
    for a, b in zip(before, gradients(autoencoder), strict=True):
        assert torch.equal(a, b)

    alone = copy.deepcopy(networks[1])
    hinge_loss(alone(images), alone(reconstructions.detach())).backward()
    for ours, expected in zip(given, gradients(alone), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-6)


def test_discriminator_moves_and_learns(networks):
    _, discriminator, images = copy.deepcopy(networks)
    blurred = torch.nn.functional.avg_pool2d(images, 3, stride=1, padding=1)
    before = copy.deepcopy(list(discriminator.parameters()))
    optimizer = torch.optim.Adam(discriminator.parameters(), lr=1e-3, betas=(0.5, 0.9))
    loss, values = make(**ALWAYS), []
    for _ in range(20):
        optimizer.zero_grad()
        values.append(backward_discriminator(loss, images, blurred, discriminator)["discriminator"])
        optimizer.step()
    for old, new in zip(before, discriminator.parameters(), strict=True):
        assert not torch.equal(old, new)
    assert values[0] == pytest.approx(1, abs=0.05) and values[-1] < 0.5


def test_adaptive_weight_is_clamped_and_balances_the_gradients():
    weight = torch.ones(4, requires_grad=True)
    pixels = (weight * torch.arange(1.0, 5)).view(1, 1, 2, 2)
    gradient, adversarial = torch.ones(1, 1, 2, 2), torch.full((1, 1, 2, 2), 0.01)
    length = (1 + 4 + 9 + 16) ** 0.5
    gradients = last_layer_gradients(pixels, weight, gradient, adversarial)
    value = adaptive_weight(gradients)
    assert value == pytest.approx(length / (0.01 * length + 1e-4)) and not value.requires_grad
    assert adaptive_weight(1024 * gradients, 1024.0) == value  # a loss scale changes nothing
    assert adaptive_weight(torch.tensor([1e3, 0.0])[:, None] * gradients) == 1e4
    for overflowed in (0, 1):
        assert adaptive_weight(gradients.index_fill(0, torch.tensor(overflowed), math.inf)).isnan()


def test_weights_do_not_depend_on_the_resolution():
    """Tile an image 2x2: all statistics stay, so each tile gets a quarter of the gradient.

    The balance between the terms is then the same.
    """
    torch.manual_seed(0)

    def run(images, reconstructions, moments):
        reconstructions, moments = (x.clone().requires_grad_() for x in (reconstructions, moments))
        posterior = Posterior.from_moments(moments)
        loss = make(kl_weight=0.1, adversarial_weight=0.0)
        backward_autoencoder(loss, images, reconstructions, posterior, moments, None, step=0)
        return reconstructions.grad, moments.grad

    images, other, moments = torch.rand(1, 3, 8, 8), torch.rand(1, 3, 8, 8), torch.rand(1, 8, 2, 2)
    small = run(images, other, moments)
    large = run(*(x.repeat(1, 1, 2, 2) for x in (images, other, moments)))
    for one, four in zip(small, large, strict=True):
        torch.testing.assert_close(one.repeat(1, 1, 2, 2) / 4, four)


def test_kl_weight_is_that_of_latent_diffusion():
    """The code of latent diffusion sums |x - x'| over pixels and the KL over latents, per image."""
    torch.manual_seed(0)
    images, other = torch.rand(2, 3, 8, 8), torch.rand(2, 3, 8, 8, requires_grad=True)
    moments = torch.randn(2, 8, 2, 2, requires_grad=True)
    loss = make(kl_weight=1e-6, adversarial_weight=0.0)
    backward_autoencoder(loss, images, other, Posterior.from_moments(moments), moments, None, 0)
    ours = other.grad.norm() / moments.grad.norm()
    other.grad = moments.grad = None
    kl = Posterior.from_moments(moments).kl().sum() / 2
    ((images - other).abs().sum() / 2 + 1e-6 * kl).backward()
    torch.testing.assert_close(ours, other.grad.norm() / moments.grad.norm())


def test_learned_variance_reaches_its_optimum(networks):
    autoencoder, _, images = copy.deepcopy(networks)
    loss = make(learned_logvar=True, adversarial_weight=0.0, kl_weight=0.0)
    optimizer = torch.optim.Adam(loss.parameters(), lr=0.1)
    fixed = autoencoder(images, NOISE)[0].detach().requires_grad_()
    posterior = Posterior(torch.zeros(2, 4, 8, 8, requires_grad=True), torch.zeros(2, 4, 8, 8))
    for _ in range(150):
        optimizer.zero_grad()
        metrics = backward_autoencoder(loss, images, fixed, posterior, fixed, None, step=0)
        optimizer.step()
    assert loss.logvar.item() == pytest.approx(math.log(metrics["l1"]), abs=0.02)
    assert not make().logvar.requires_grad


def test_starts_are_steps_or_shares_of_the_run():
    assert start_step(0.25, STEPS) == 25
    assert start_step(3, STEPS) == 3
    for wrong in (1.0, -1, -0.5, math.nan):
        with pytest.raises(UserError, match=str(wrong)):
            start_step(wrong, STEPS)


def test_adversarial_weight_ramps_up():
    loss = make(discriminator_start=0.1, adversarial_start=20, adversarial_ramp=0.1)
    assert [loss.trains_discriminator(step) for step in (9, 10)] == [False, True]
    assert loss.adversarial_weight(19) == 0
    assert loss.adversarial_weight(20) == pytest.approx(0.05)
    assert loss.adversarial_weight(24) == pytest.approx(0.25)
    assert loss.adversarial_weight(29) == loss.adversarial_weight(99) == 0.5


def test_an_untrained_discriminator_is_refused():
    with pytest.raises(UserError, match=r"step 10.*step 20"):
        make(discriminator_start=0.2, adversarial_start=0.1)
    assert not make(adversarial_weight=0.0).trains_discriminator(99)


def test_hinge_loss_by_hand():
    real, fake = torch.tensor([2.0, 0.5]), torch.tensor([-3.0, 0.0])
    loss = hinge_loss(real.view(1, 1, 1, 2), fake.view(1, 1, 1, 2))
    assert loss == pytest.approx(0.5 * (0.25 + 0.5))


def test_the_discriminator_rates_each_image_alone_and_has_no_state():
    discriminator = Discriminator(DiscriminatorConfig(in_channels=1, width=8, layers=3, groups=8))
    images = torch.rand(3, 1, 32, 64)
    single = torch.cat([discriminator(image) for image in images.split(1)])
    torch.testing.assert_close(discriminator(images), single)
    assert single.shape == (3, 1, 2, 6) and not list(discriminator.buffers())
    with pytest.raises(UserError, match=r"20x64.*24"):
        discriminator(torch.rand(1, 1, 20, 64))


def test_the_balance_is_described_in_words():
    assert "winning" in describe_gan_balance(0.01, 1.5, -1.5)
    assert "dead" in describe_gan_balance(1.0, 0.003, 0.001)
    assert describe_gan_balance(0.7, 0.4, -0.4) == "balanced"
