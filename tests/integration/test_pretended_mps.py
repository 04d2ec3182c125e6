"""What must be right on MPS, on a device of the CPU that refuses what MPS refuses."""

import importlib
import json
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from autoencoder import PRESETS as AUTOENCODERS
from autoencoder import Autoencoder
from autoencoder.training.latent_statistics import LatentStatistics, fold_statistics
from conditioning.clip import PRESETS as CLIPS
from conditioning.clip import Clip
from conditioning.clip_loss import ContrastiveLoss
from evaluation.retrieval import recall_at
from foundation import collectives
from ldm.denoiser import Conditioning, Denoiser
from ldm.loss import ObjectiveConfig, denoising_loss, sample_timesteps_and_noise
from ldm.samplers import SAMPLERS
from ldm.samplers.noise import InterpolatedNoise, SeededNoise, slerp
from ldm.schedule import ScheduleConfig, make_schedule
from ldm.unet import PRESETS as UNETS
from ldm.unet import UNet
from tests.helpers.devices.pretended_mps import MPS, OnDevice, pretended_mps
from tests.helpers.sampling import randn, sample
from tests.helpers.short_runs import killed_in_step, numbers
from training.logging.metrics import RunningMeans
from training.optimizer import OptimizerStep
from training.weights.ema import EMA

Device = torch.device | str
ADVERSARY = ("--adversarial-weight", 0.5, "--discriminator-start", 0, "--adversarial-start", 1)
ADVERSARY += ("--discriminator-width", 16, "--discriminator-layers", 2, "--accumulate", 2)
OPTIONS = {
    "train_clip": ("--shift", 1),
    "train_vae": ADVERSARY,
    "train_ldm": ("--preview-prompts", "red"),
}


@pytest.fixture
def mps():
    with pretended_mps():
        yield MPS


def test_the_device_refuses_what_mps_refuses(mps):
    x = torch.ones(2, 3).to(mps)
    assert isinstance(x, OnDevice) and x.device == mps and x.cpu().device.type == "cpu"
    for refused in (
        lambda: x.double(),
        lambda: x.to("cpu", torch.float64),
        lambda: torch.zeros(2, 3).double().copy_(x),
        lambda: torch.ones(2, dtype=torch.float64).to(mps),
        lambda: torch.zeros(1, dtype=torch.float64, device=mps),
        lambda: x + torch.ones(3),
        lambda: torch.randn(2, device=mps),
        lambda: nn.functional.dropout(x),
    ):
        with pytest.raises(AssertionError, match=r"MPS|CPU"):
            refused()
    with pytest.raises(RuntimeError):
        torch.Generator(device=mps)
    assert torch.equal((x * torch.tensor(2.0).double()).cpu(), torch.full((2, 3), 2.0))
    assert torch.zeros(2, dtype=torch.float64).to(x).device == mps  # float32


@pytest.mark.parametrize("sampler", sorted(SAMPLERS))
def test_a_sampler_gives_the_same_on_the_device(sampler):
    schedule = make_schedule(ScheduleConfig())

    def drawn(device):
        def denoise(z_t, t):
            alpha, sigma = schedule(t)
            return z_t * (alpha / (4 * sigma**2 + alpha**2)).to(device)

        noise = SeededNoise((2, 4, 4), [3, 4], torch.device(device))
        return sample(sampler, denoise, noise.initial(), schedule, 5, draw_noise=noise.between)

    expected = drawn("cpu")
    with pretended_mps():
        torch.testing.assert_close(drawn(MPS).cpu(), expected)


def test_noise_between_two_seeds(mps):
    noises = [SeededNoise((2, 4, 4), [seed, seed + 1], mps) for seed in (3, 5)]
    mixed = InterpolatedNoise(*noises, [0.3, 1.0])
    ends = [noise.initial().cpu() for noise in noises]
    expected = slerp(*ends, torch.tensor([0.3, 1.0]))
    torch.testing.assert_close(mixed.initial().cpu(), expected)
    assert mixed.between(0.9, 0.8).device == mps


def unet_loss(device: Device) -> tuple[nn.Module, torch.Tensor]:
    unet, schedule = UNet(UNETS["tiny-32"]).to(device), make_schedule(ScheduleConfig())
    generators = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
    latents = randn(2, 4, 8, 8).to(device)
    t, noise = sample_timesteps_and_noise(latents, schedule, ObjectiveConfig(), generators)
    context = randn(2, 5, unet.config.cross_attention_dim).to(device)
    denoiser = Denoiser(unet, schedule.to(device), "velocity")
    losses = denoising_loss(
        denoiser, latents, Conditioning(text=context), ObjectiveConfig(), t=t, noise=noise
    )
    return unet, losses.mean()


def autoencoder_loss(device: Device) -> tuple[nn.Module, torch.Tensor]:
    model, images = Autoencoder(AUTOENCODERS["tiny-32"]).to(device), randn(2, 3, 32, 32).tanh()
    posterior = model.encode(images.to(device))
    z = posterior.sample(torch.Generator().manual_seed(0))
    error = (model.decode(z) - images.to(device)).square().mean()
    return model, error + posterior.kl().mean()


def clip_loss(device: Device) -> tuple[nn.Module, torch.Tensor]:
    model = ContrastiveLoss(Clip(CLIPS["tiny-32"])).to(device)
    images = (randn(2, 3, 32, 32).sigmoid() * 255).to(torch.uint8)
    ids = model.clip.tokenizer(["red", "a blue apple"])
    return model, model(images.to(device), ids.to(device))


def step_of(loss_of: Callable, device: Device) -> tuple[float, float, float]:
    """Return loss, gradient norm, and the mean of the averaged weights after a training step."""
    torch.manual_seed(0)
    model, loss = loss_of(device)
    loss.backward()
    update = OptimizerStep({"optimizer": torch.optim.AdamW(model.parameters(), fused=True)}, 0.5)
    ema, means = EMA(model, halflife=2), RunningMeans()
    metrics = {"loss": loss}
    metrics |= update(metrics, {"optimizer": 1e-3})
    ema.update(model, 3, metrics["step_applied"])
    means.add(metrics)
    read = means.pop()
    average = torch.cat([value.cpu().flatten() for value in ema.state_dict().values()])
    return read["loss"], read["gradient_norm"], average.mean().item()


@pytest.mark.parametrize("loss_of", [unet_loss, autoencoder_loss, clip_loss])
def test_a_step_of_a_network_gives_the_same_on_the_device(loss_of):
    expected = step_of(loss_of, "cpu")
    with pretended_mps():
        assert step_of(loss_of, MPS) == pytest.approx(expected, rel=1e-4)


def test_a_step_that_is_not_finite_moves_no_weight(mps):
    """The fused optimizer would move it, since it does not read `found_inf` there."""
    weight = nn.Parameter(torch.ones(2).to(mps))
    update = OptimizerStep({"optimizer": torch.optim.AdamW([weight], fused=True)})
    for factor, applied in ((math.inf, 0), (1.0, 1)):
        loss = (weight * factor).sum()
        loss.backward()
        assert update({"loss": loss}, {"optimizer": 0.1})["step_applied"].item() == applied
        moved = weight.detach().cpu() - 1
        assert moved.isfinite().all() and bool(moved.any()) == bool(applied)


def test_metrics_of_several_ranks(mps, monkeypatch):
    monkeypatch.setattr(collectives, "world_size", lambda: 2)
    monkeypatch.setattr(collectives.dist, "all_reduce", lambda tensor: tensor.mul_(2))
    given = {
        "loss": torch.tensor(0.5, dtype=torch.bfloat16).to(mps),
        "n": torch.tensor(3.0).to(mps),
    }
    assert {k: v.item() for k, v in collectives.mean_metrics(given).items()} == {
        "loss": 0.5,
        "n": 3,
    }


def test_retrieval_is_measured(mps):
    similarity = torch.tensor([[0.9, 0.1], [0.8, 0.2]]).to(mps)
    assert recall_at(similarity, ["red", "blue"], [1]) == {1: 0.5}


def test_statistics_of_latents_are_folded(mps):
    model = Autoencoder(AUTOENCODERS["tiny-32"]).to(mps)
    folded = fold_statistics(model, LatentStatistics((0.5,) * 4, (2.0,) * 4, images=1))
    image = torch.zeros(1, 3, 32, 32).to(mps)
    expected = (model.encode(image).mean.cpu() - 0.5) / 2
    torch.testing.assert_close(folded.encode(image).mean.cpu(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(OPTIONS))
def test_a_training_is_the_same_on_the_device(world, tmp_path, name):
    """With evaluations, and stopped and resumed there."""
    from tests.helpers.bad_calls import TRAINERS, command

    script = importlib.import_module(name)
    shared = ("--steps", 3, "--evaluate-every", 2, "--save-every", 1, "--log-every", 1)
    shared += ("--workers", 0, "--precision", "fp32", *OPTIONS[name])
    script.main(command(script, world, tmp_path / "cpu", *shared))
    arguments = command(script, world, tmp_path / "mps", *shared, "--device", str(MPS))
    with killed_in_step(TRAINERS[script], 1), pretended_mps():
        script.main(arguments)
    with pretended_mps():
        script.main(arguments)
    ours, theirs = (numbers(tmp_path / device) for device in ("mps", "cpu"))
    assert [line.keys() for line in ours] == [line.keys() for line in theirs]
    for line, other in zip(ours, theirs, strict=True):
        assert line == pytest.approx(other, rel=1e-2)


@pytest.mark.slow
def test_pictures_are_drawn_and_judged_on_the_device(world, tmp_path):
    import evaluate
    import sample as sample_script
    from tests.helpers.bad_calls import command

    options = ("--sampler", "dpmpp_2m_sde", "--steps", 2)
    calls = {
        "plain": ("--guidance-rescale", 0.5),
        "varied": ("--init-image", world / "data" / "000.png", "--strength", 0.5),
        "inverted": ("--style-image", world / "data" / "000.png", "--variation", 0.5),
    }
    for name, own in calls.items():
        flags = (*options, *own)
        sample_script.main(command(sample_script, world, tmp_path / f"{name}-cpu", *flags))
        with pretended_mps():
            flags = (*flags, "--device", str(MPS))
            sample_script.main(command(sample_script, world, tmp_path / f"{name}-mps", *flags))
        pictures = [np.asarray(Image.open(tmp_path / f"{name}-{d}" / "00000.png")).astype(int)
                    for d in ("cpu", "mps")]  # fmt: skip
        assert abs(pictures[0] - pictures[1]).max() <= 1
    judged = command(evaluate, world, tmp_path / "judged", "--samples", 2, "--device", str(MPS))
    with pretended_mps():
        evaluate.main(judged)
    report = json.loads((tmp_path / "judged" / "report.json").read_text())
    assert report["protocol"]["images"]["images"] == 2
