"""The instruments of stage 2: a loss that does not jump, and a verdict that can be wrong-footed."""

import pytest
import torch
from torch import nn

from ldm.denoiser import Denoiser
from ldm.loss import ObjectiveConfig
from ldm.schedule import ScheduleConfig, make_schedule
from ldm.validation import Validation, check_latent_std, learning_status

OBJECTIVE = ObjectiveConfig(prediction="velocity")


class Reader(nn.Module):
    """Knows the clean latents from the context alone, and velocity from them and z_t."""

    def __init__(self, schedule):
        super().__init__()
        self.schedule = schedule

    def forward(self, z_t, t, context):
        z_0 = context[:, 0, : z_t[0].numel()].view_as(z_t)
        alpha, sigma = self.schedule(t)
        noise = (z_t - alpha * z_0) / sigma
        return alpha * noise - sigma * z_0


def make(seed: int = 0) -> tuple[Validation, Denoiser]:
    latents = torch.randn(32, 2, 4, 4, generator=torch.Generator().manual_seed(seed))
    schedule = make_schedule(ScheduleConfig())
    validation = Validation(
        latents,
        latents.flatten(1)[:, None],  # a text that says everything
        schedule_steps=len(schedule),
        generator=torch.Generator().manual_seed(1),
        batch_size=8,
    )
    return validation, Denoiser(Reader(schedule), schedule, "velocity")


def test_the_loss_is_the_same_at_every_call_and_batch_size():
    validation, denoiser = make()
    first = validation.loss(denoiser, OBJECTIVE)
    torch.rand(1)  # whatever else draws random numbers
    validation.batch_size = 5
    assert validation.loss(denoiser, OBJECTIVE) == pytest.approx(first, abs=1e-6)


def test_a_network_that_reads_the_text_is_found_out():
    validation, denoiser = make()
    losses = validation.loss(denoiser, OBJECTIVE)
    assert losses["val"] < 1e-6 < losses["val/wrong_text"]
    assert learning_status(losses, validation.baseline(denoiser, OBJECTIVE)).startswith("learning")


def test_predicting_nothing_scores_one_and_is_called_so():
    validation, denoiser = make()
    baseline = validation.baseline(denoiser, OBJECTIVE)
    assert baseline == pytest.approx(1, abs=0.1)
    text = learning_status({"val": baseline, "val/wrong_text": baseline}, baseline)
    assert text.startswith("NOT LEARNING") and "learning rate" in text
    assert learning_status({"val": float("nan"), "val/wrong_text": 1.0}, baseline).startswith("NOT")


def test_a_network_deaf_to_the_text_is_called_so():
    assert "ignores the text" in learning_status({"val": 0.4, "val/wrong_text": 0.4001}, 1.0)
    assert "lower it by 20.0%" in learning_status({"val": 0.4, "val/wrong_text": 0.5}, 1.0)


def test_latents_that_are_not_normalized_are_refused():
    noise = torch.randn(8, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    check_latent_std(noise)
    with pytest.raises(ValueError, match=r"standard deviation of 5\.\d+"):
        check_latent_std(noise / 0.18215)
