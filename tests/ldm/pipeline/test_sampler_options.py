"""No sampler is given an option in silence: it is refused, or changes what is drawn."""

import pytest
import torch

import sample
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
    """By something that bends as denoisers do."""
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
        with pytest.raises(ValueError, match=r"leave it out|Leave the spacing out"):
            GenerationOptions(sampler=sampler, **{option: GIVEN[option]}).check()
        return
    without, with_it = (
        Sampling(sampler=sampler),
        Sampling(sampler=sampler, **{option: GIVEN[option]}),
    )
    assert not torch.equal(drawn(without, kind), drawn(with_it, kind))


def test_a_shift_is_that_of_the_flow():
    shifted = Sampling(steps=9, shift=3.0)
    assert torch.equal(shifted.timesteps(SCHEDULES["flow"]), RectifiedFlow(3.0).timesteps(9))
    assert not torch.equal(drawn(shifted, "flow"), drawn(Sampling(steps=9), "flow"))
    with pytest.raises(ValueError, match="a shift is for flows"):
        shifted.timesteps(SCHEDULES["table"])
    for other in ({"spacing": "karras"}, {"times": (999.0, 5.0)}):
        with pytest.raises(ValueError, match="moves the timesteps of the spacing trailing"):
            Sampling(shift=3.0, **other)


def test_values_that_no_sampler_has():
    for values, message in (
        ({"sampler": "unipc", "order": 4}, "unipc has order 1, 2, 3, not 4"),
        ({"sampler": "ddim", "eta": 1.5}, "eta is 1.5; it must be from 0 to 1"),
        ({"shift": 0.0}, "shift is 0; it must be above 0"),
        ({"steps": 0}, "1 to 1000 steps, not 0"),
        ({"steps": 1001}, "1 to 1000 steps, not 1001"),
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
def test_options_of_guidance_want_guidance(option, scale):
    flag = "--" + option.replace("_", "-")
    with pytest.raises(ValueError, match=f"{flag}.*--guidance-scale {scale:g}"):
        GenerationOptions(guidance_scale=scale, **{option: UNGUIDED[option]}).check()
    GenerationOptions(guidance_scale=2.0, **{option: UNGUIDED[option]}).check()


def test_a_weak_model_takes_the_place_of_a_negative_prompt(refused, world):
    pattern = "--weak-model.*negative prompt"
    refused(sample, pattern, "--weak-model", world / "ldm", "--negative-prompt", "red")
