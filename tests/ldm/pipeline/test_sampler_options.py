"""An option that a sampler does not have is refused; any other changes the result."""

import pytest
import torch

import sample
from generation.meaning import check_options
from generation.options import GenerationOptions
from ldm.pipeline.sampling import Sampling
from ldm.samplers import SAMPLERS, NoiseLevels, find_sampler
from ldm.samplers.noise import SeededNoise
from ldm.schedule import RectifiedFlow, ScheduleConfig, make_schedule

SCHEDULES = {
    "table": make_schedule(ScheduleConfig()),
    "flow": make_schedule(ScheduleConfig(noise_schedule="flow")),
}
GIVEN = {
    "eta": 0.5,
    "order": 3,
    "spacing": "karras",
    "steps": 7,
    "times": (999.0, 700.0, 400.0, 100.0),
}
TAKE_ETA = {"ddim", "dpmpp_2m_sde", "dpmpp_3m_sde", "euler_a"}
REFUSED = {  # by whom
    "eta": SAMPLERS.keys() - TAKE_ETA,
    "order": SAMPLERS.keys() - {"unipc"},
    "spacing": {"plms"},
    "steps": set(),
    "times": set(),
}


def drawn(sampling: Sampling, kind: str) -> torch.Tensor:
    """Sample with a denoiser that is not linear."""
    schedule, noise = SCHEDULES[kind], SeededNoise((2, 4, 4), [1], torch.device("cpu"))

    def denoise(z_t, t):
        return schedule(t)[0] * torch.tanh(z_t)

    sampler = find_sampler(sampling.sampler)
    levels = NoiseLevels(schedule, sampling.timesteps(schedule))
    return sampler(denoise, noise.initial(), levels, **sampling.sampler_options(noise.between))


@pytest.mark.parametrize("kind", SCHEDULES)
@pytest.mark.parametrize("option", GIVEN)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_an_option_is_refused_or_changes_the_result(sampler, option, kind):
    if sampler in REFUSED[option]:
        with pytest.raises(ValueError, match=f"{sampler}.*{option}|{option}.*{sampler}"):
            Sampling(sampler=sampler, **{option: GIVEN[option]})
        with pytest.raises(ValueError, match=sampler):
            check_options(GenerationOptions(sampler=sampler, **{option: GIVEN[option]}))
        return
    without, with_it = (
        Sampling(sampler=sampler),
        Sampling(sampler=sampler, **{option: GIVEN[option]}),
    )
    assert not torch.equal(drawn(without, kind), drawn(with_it, kind))


def test_a_shift_changes_the_timesteps_of_a_flow_only():
    shifted = Sampling(steps=9, shift=3.0)
    assert torch.equal(shifted.timesteps(SCHEDULES["flow"]), RectifiedFlow(3.0).timesteps(9))
    assert not torch.equal(drawn(shifted, "flow"), drawn(Sampling(steps=9), "flow"))
    with pytest.raises(ValueError, match="shift"):
        shifted.timesteps(SCHEDULES["table"])
    for other in ({"spacing": "karras"}, {"times": (999.0, 5.0)}):
        with pytest.raises(ValueError, match="trailing"):
            Sampling(shift=3.0, **other)


def test_values_out_of_range_are_refused():
    for values, message in (
        ({"sampler": "unipc", "order": 4}, "not 4"),
        ({"sampler": "ddim", "eta": 1.5}, "eta is 1.5"),
        ({"shift": 0.0}, "shift is 0"),
        ({"clip_range": 0.0}, "clip_range is 0.*above 0"),
        ({"steps": 0}, "1000.*0"),
        ({"steps": 1001}, "1001"),
    ):
        with pytest.raises(ValueError, match=message):
            Sampling(**values)


UNGUIDED = {
    "guidance_rescale": 0.5,
    "guidance_interval": (0.1, 0.9),
    "guidance_parallel": 0.5,
    "guidance_max_norm": 9.0,
    "guidance_momentum": -0.5,
}


@pytest.mark.parametrize("scale", [0.0, 1.0])
@pytest.mark.parametrize("option", UNGUIDED)
def test_guidance_options_need_guidance(option, scale):
    flag = "--" + option.replace("_", "-")
    with pytest.raises(ValueError, match=f"{flag}.*--guidance-scale {scale:g}"):
        check_options(GenerationOptions(guidance_scale=scale, **{option: UNGUIDED[option]}))
    check_options(GenerationOptions(guidance_scale=2.0, **{option: UNGUIDED[option]}))


def test_a_weak_model_takes_the_place_of_a_negative_prompt(refused, world):
    pattern = "--weak-model.*negative prompt"
    refused(sample, pattern, "--weak-model", world / "ldm", "--negative-prompt", "red")
