"""The validation loss: the same at every call; whether a network learns and uses the text."""

import pytest
import torch
from torch import nn

from foundation.errors import UserError
from ldm.denoiser import Conditioning, Denoiser
from ldm.loss import ObjectiveConfig
from ldm.schedule import ScheduleConfig, make_schedule
from ldm.validation import TIMESTEPS, Validation, check_latent_std, learning_status

OBJECTIVE = ObjectiveConfig(prediction="velocity")


class PerfectNetwork(nn.Module):
    """Reads the clean latents from the context, and computes the velocity from them and z_t."""

    def __init__(self, schedule):
        super().__init__()
        self.schedule = schedule

    def forward(self, z_t, t, context):
        z_0 = context[:, 0, : z_t[0].numel()].view_as(z_t)
        alpha, sigma = self.schedule(t)
        noise = (z_t - alpha * z_0) / sigma
        return alpha * noise - sigma * z_0


def make(indices: torch.Tensor | None = None) -> tuple[Validation, Denoiser]:
    latents = torch.randn(32, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    schedule = make_schedule(ScheduleConfig())
    validation = Validation(
        latents,
        Conditioning(text=latents.flatten(1)[:, None]),  # the context holds the latents
        schedule_steps=len(schedule),
        seed=1,
        batch_size=8,
        indices=indices,
    )
    return validation, Denoiser(PerfectNetwork(schedule), schedule, "velocity")


def test_the_loss_is_the_same_at_every_call_and_batch_size():
    validation, denoiser = make()
    first = validation.loss(denoiser, OBJECTIVE)
    torch.rand(1)  # as other code that draws random numbers would
    validation.batch_size = 5
    assert validation.loss(denoiser, OBJECTIVE) == pytest.approx(first, abs=1e-6)


@pytest.mark.parametrize("pairs", [3, 10, 24])
def test_each_timestep_is_measured_about_as_often(pairs):
    latents = torch.zeros(pairs, 1, 2, 2)
    text = Conditioning(text=latents.flatten(1)[:, None])
    validation = Validation(latents, text, 1000, 0, batch_size=8)
    _, counts = validation.t.unique(return_counts=True)
    assert len(counts) == TIMESTEPS and counts.max() - counts.min() <= 1


def test_processes_that_share_the_pairs_measure_the_same_loss():
    """Each evaluates its part; `gather` is replaced by the losses of both, in order."""
    whole, denoiser = make()
    parts = [make(indices=torch.arange(first, first + 16))[0] for first in (0, 16)]
    losses = torch.cat([part.losses(denoiser, OBJECTIVE, part.conditioning) for part in parts])
    for part in parts:
        part.gather = lambda own, count: losses
    expected = whole.loss(denoiser, OBJECTIVE)
    for part in parts:
        assert part.loss(denoiser, OBJECTIVE)["val"] == pytest.approx(expected["val"], abs=1e-9)


def test_the_wrong_text_raises_the_loss_of_a_network_that_uses_the_text():
    validation, denoiser = make()
    losses = validation.loss(denoiser, OBJECTIVE)
    assert losses["val"] < 1e-6 < losses["val/wrong_text"]
    assert learning_status(losses, validation.baseline(denoiser, OBJECTIVE)).startswith("learning")


def test_a_zero_output_has_loss_one_and_is_reported_as_not_learning():
    validation, denoiser = make()
    baseline = validation.baseline(denoiser, OBJECTIVE)
    assert baseline == pytest.approx(1, abs=0.1)
    text = learning_status({"val": baseline, "val/wrong_text": baseline}, baseline)
    assert text.startswith("NOT LEARNING") and "learning rate" in text
    assert learning_status({"val": float("nan"), "val/wrong_text": 1.0}, baseline).startswith("NOT")


def test_the_status_says_whether_the_text_is_used():
    assert "ignores the text" in learning_status({"val": 0.4, "val/wrong_text": 0.4001}, 1.0)
    assert "lower it by 20.0%" in learning_status({"val": 0.4, "val/wrong_text": 0.5}, 1.0)
    few = learning_status({"val": 0.4, "val/wrong_text": 0.4001}, 1.0, held_out=3)
    assert "only 3 images are held out, too few" in few and "held_out" in few


def test_latents_that_are_not_normalized_are_refused():
    noise = torch.randn(8, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    check_latent_std(noise)
    with pytest.raises(UserError, match=r" 5\.\d+"):
        check_latent_std(noise / 0.18215)
