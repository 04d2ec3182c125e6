"""scheduler_config.json: diffusers samples with ours as we do, and we read its own."""

import json
from dataclasses import replace

import diffusers
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from foundation.errors import UserError
from ldm.denoiser import Denoiser
from ldm.pipeline.scheduler_config import SCHEDULER_CLASSES, from_diffusers, to_diffusers
from ldm.samplers import ddim, dpmpp_2m
from ldm.schedule import ScheduleConfig, make_schedule
from tests.helpers.sampling import sample

# diffusers has not followed NumPy here
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

TABLES = ("linear", "scaled_linear", "cosine")
MODELS = [
    (ScheduleConfig(), "noise"),
    (ScheduleConfig(zero_terminal_snr=True), "velocity"),
    (ScheduleConfig(noise_schedule="linear", beta_start=0.0001, beta_end=0.02), "sample"),
    (ScheduleConfig(noise_schedule="cosine"), "velocity"),
    (ScheduleConfig(noise_schedule="flow"), "flow"),
    (ScheduleConfig(noise_schedule="flow", shift=3.0), "sample"),
]


@pytest.mark.parametrize(("config", "prediction"), MODELS)
def test_a_written_config_is_read_back(config, prediction):
    assert from_diffusers(to_diffusers(config, prediction)) == (config, prediction)


@pytest.mark.parametrize(("config", "prediction"), MODELS)
def test_diffusers_samples_as_we_do_with_the_written_config(config, prediction, tmp_path):
    entries = to_diffusers(config, prediction)
    kind = getattr(diffusers, entries["_class_name"])
    (tmp_path / "scheduler_config.json").write_text(json.dumps(entries))
    scheduler = kind.from_pretrained(tmp_path)
    unused = set(entries) - {"_class_name"} - set(scheduler.config)
    assert not unused

    class Network(torch.nn.Module):
        def forward(self, z_t, t, context=None):
            return 0.5 * torch.tanh(z_t) + 0.1 * (t / 1000).view(-1, 1, 1, 1)

    network = Network()
    schedule = make_schedule(config)
    noise = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(0))
    scheduler.set_timesteps(20)
    z = noise * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        z = scheduler.step(network(z, t.expand(2)), t, z).prev_sample
    sampler = dpmpp_2m if config.noise_schedule == "flow" else ddim
    ours = sample(sampler, Denoiser(network, schedule, prediction), noise, schedule, 20)
    torch.testing.assert_close(ours, z, rtol=1e-4, atol=1e-4)


@given(st.floats(1e-6, 0.01), st.floats(0.01, 0.5), st.booleans(), st.sampled_from(TABLES))
def test_any_betas_are_written_and_read_back(beta_start, beta_end, zero, kind):
    config = ScheduleConfig(
        noise_schedule=kind, beta_start=beta_start, beta_end=beta_end, zero_terminal_snr=zero
    )
    entries = json.loads(json.dumps(to_diffusers(config, "velocity")))
    assert from_diffusers(entries) == (config, "velocity")


SD15 = {  # the entries that matter, as in Stable Diffusion's own files
    "_class_name": "PNDMScheduler",
    "_diffusers_version": "0.6.0",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
    "clip_sample": False,
}


def test_files_of_stable_diffusion():
    assert from_diffusers(SD15) == (ScheduleConfig(), "noise")
    sd21 = SD15 | {"_class_name": "DDIMScheduler", "prediction_type": "v_prediction"}
    assert from_diffusers(sd21) == (ScheduleConfig(), "velocity")


@pytest.mark.parametrize("name", SCHEDULER_CLASSES)
def test_defaults_of_every_supported_scheduler(name):
    """A file may leave out entries that equal the default of its class."""
    with_defaults = dict(getattr(diffusers, name)().config) | {"_class_name": name}
    config = replace(ScheduleConfig(), noise_schedule="linear", beta_start=0.0001, beta_end=0.02)
    assert from_diffusers(with_defaults) == (config, "noise")
    assert from_diffusers({"_class_name": name}) == (config, "noise")


@pytest.mark.parametrize(
    ("entries", "match"),
    [
        ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, "FlowMatchEuler"),
        ({}, "None"),
        (SD15 | {"num_train_timesteps": 4000}, "num_train_timesteps=4000"),
        (SD15 | {"beta_schedule": "sigmoid"}, "beta_schedule='sigmoid'"),
        (SD15 | {"prediction_type": "score"}, "prediction_type='score'"),
        (SD15 | {"trained_betas": [0.1, 0.2]}, "trained_betas"),
    ],
)
def test_unsupported_settings_are_refused_by_name(entries, match):
    with pytest.raises(UserError, match=match):
        from_diffusers(entries)
