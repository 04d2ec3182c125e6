"""The mathematics of tasks, where the answer is known."""

import numpy as np
import pytest
import torch
from PIL import Image

from ldm.pipeline.sampling import Sampling
from ldm.samplers import SAMPLERS, NoiseLevels, ddim, ddpm
from ldm.samplers.noise import InterpolatedNoise, SeededNoise, slerp
from ldm.schedule import ScheduleConfig, make_schedule
from ldm.tasks.base import Task, count_steps, last_times
from ldm.tasks.inpaint import Inpainting, composite, match_colors, repaint
from ldm.tasks.inversion import invert
from ldm.tasks.multidiffusion import WindowedNetwork
from ldm.tasks.upscale import back_project
from ldm.timesteps import trailing
from tests.helpers.sampling import sample

STD = 0.5  # of Gaussian data, whose ideal denoiser is known
CPU = torch.device("cpu")
SCHEDULES = {
    "table": make_schedule(ScheduleConfig()),
    "zero SNR": make_schedule(ScheduleConfig(zero_terminal_snr=True)),
    "flow": make_schedule(ScheduleConfig(noise_schedule="flow")),
}


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def gaussian(schedule):
    """Return the ideal denoiser of Gaussian data of standard deviation STD."""

    def denoise(z_t, t):
        alpha, sigma = schedule(t)
        return alpha * STD**2 / (alpha**2 * STD**2 + sigma**2) * z_t

    return denoise


# Strength.


def test_strength_keeps_the_last_steps_rounded_up():
    times = torch.arange(9, -1, -1)
    assert last_times(times, 0.3).tolist() == [2, 1, 0]
    assert last_times(times, 0.31).tolist() == [3, 2, 1, 0]
    assert len(last_times(times, 1.0)) == 10 and len(last_times(times, 0.0)) == 0
    assert [count_steps(100, share) for share in (0.07, 0.29, 0.001)] == [7, 29, 1]
    task = Task()
    task.strength = 0.5
    assert (
        Sampling(steps=5, sampler="heun").network_calls(task) == 5
    )  # three steps, the last of one call


# Inversion.


@pytest.mark.parametrize("kind", SCHEDULES)
def test_ddim_undoes_the_inversion(kind):
    """More iterations of the inversion come closer."""
    schedule, z_0 = SCHEDULES[kind], STD * randn(2, 4, 8, 8)
    times = trailing(schedule, 25)
    denoise, errors = gaussian(schedule), []
    for rounds in (1, 3, 6):
        z_t = invert(denoise, z_0, schedule, times, rounds)
        back = sample(ddim, denoise, z_t, schedule, times)
        errors.append(((back - z_0).norm() / z_0.norm()).item())
    assert errors[0] > errors[1] > errors[2]
    assert errors[1] < 0.1 and errors[2] < 0.02, errors


def test_inverted_data_have_unit_variance():
    schedule = SCHEDULES["flow"]
    z_t = invert(gaussian(schedule), STD * randn(1, 4, 32, 32), schedule, trailing(schedule, 100))
    assert z_t.std().item() == pytest.approx(1, rel=0.05)


# Inpainting.


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("kind", ["table", "flow"])
def test_every_sampler_ends_in_the_kept_part(sampler, kind):
    schedule, known = SCHEDULES[kind], 3 * randn(1, 4, 4, 4)
    mask = (randn(1, 1, 4, 4) > 0).float()
    task = Inpainting(known, Image.new("RGB", (4, 4)), mask)
    free_denoise = gaussian(schedule)

    def denoise(z_t, t):
        return task.constrain(free_denoise(z_t, t))

    noise = SeededNoise((4, 4, 4), [1, 2], CPU)
    z = sample(sampler, denoise, noise.initial(), schedule, 6, noise.between)
    outside = (mask == 0).expand_as(z)
    torch.testing.assert_close(z[outside], known.expand_as(z)[outside], rtol=0, atol=1e-4)
    free = sample(
        SAMPLERS[sampler], gaussian(schedule), noise.initial(), schedule, 6, noise.between
    )
    torch.testing.assert_close(z[~outside], free[~outside])


def test_repainting_keeps_the_distribution():
    schedule, noise = SCHEDULES["table"], SeededNoise((4, 16, 16), [0], CPU)
    times = trailing(schedule, 50)
    denoise, start = gaussian(schedule), noise.initial()

    def stream(k):
        return noise.stream(k).between

    levels = NoiseLevels(schedule, times)
    once = repaint(denoise, start, levels, noise.between, repeats=1, streams=stream)
    assert torch.equal(once, sample(ddpm, denoise, start, schedule, times, noise.between))
    thrice = repaint(denoise, start, levels, noise.between, repeats=3, streams=stream)
    assert not torch.equal(thrice, once)
    assert thrice.std().item() == pytest.approx(once.std().item(), rel=0.1)


def test_streams_of_noise_are_independent_and_depend_on_the_seed_alone():
    noise = SeededNoise((4, 32, 32), [7, 8], CPU)
    parts = [n.between(0.9, 0.3)[1].flatten() for n in (noise, noise.stream(0), noise.stream(1))]
    torch.testing.assert_close(torch.stack(parts).corrcoef(), torch.eye(3), rtol=0, atol=0.06)
    alone = SeededNoise((4, 32, 32), [8], CPU).stream(1)
    assert torch.equal(alone.between(0.9, 0.3)[0].flatten(), parts[2])


def test_colors_are_matched_at_the_seam_and_the_outside_is_untouched():
    """A difference of 40 gray levels vanishes at the seam, and stays far from it."""
    original = Image.fromarray(np.random.default_rng(0).integers(90, 110, (64, 64, 3), np.uint8))
    drawn = Image.new("RGB", (64, 64), (140, 140, 140))
    mask = torch.zeros(1, 1, 64, 64)
    mask[..., 24:] = 1
    result = np.asarray(composite(original, drawn, mask, radius=4)).astype(float)
    assert np.array_equal(result[:, :24], np.asarray(original)[:, :24])
    assert abs(result[:, 24].mean() - 100) < 5  # of 40
    assert np.abs(result[:, 44:] - 140).max() < 1
    assert np.abs(np.diff(result[:, 24:].mean(axis=(0, 2)))).max() < 8  # no step in between
    soft = composite(original, drawn, 0.5 * mask, radius=4)
    assert abs(np.asarray(soft)[:, 44:].mean() - 120) < 1


def test_without_an_outside_colors_are_not_changed():
    drawn, original = randn(3, 16, 16), randn(3, 16, 16, seed=1)
    assert torch.equal(match_colors(drawn, original, torch.zeros(16, 16, dtype=bool), 4.0), drawn)


# Windows.


@pytest.mark.parametrize("overlap", [0, 4, 7])
def test_windows_do_not_change_a_network_that_sees_single_pixels(overlap):
    seen = []

    def network(z, t, labels):
        seen.append(z.shape[-2:])
        return 3 * z + t[:, None, None, None] + labels.mean()

    arguments = randn(2, 9, 8, 30), torch.tensor([1.0, 2.0]), randn(2)
    windowed = WindowedNetwork(network, 8, overlap)
    torch.testing.assert_close(windowed(*arguments), network(*arguments))
    assert set(seen[:-1]) == {(8, 8)} and len(seen) > 4


def test_windows_must_overlap_by_less_than_their_side():
    with pytest.raises(ValueError, match="8"):
        WindowedNetwork(lambda z: z, 8, 8)


# Interpolation.


def test_slerp_has_constant_speed_and_keeps_the_norm():
    a, b = randn(3, 4, 16, 16), randn(3, 4, 16, 16, seed=1)
    assert torch.equal(slerp(a, b, 0.0), a) and torch.equal(slerp(a, b, 1.0), b)
    middle = slerp(a, b, 0.5)
    assert middle.std().item() == pytest.approx(1, rel=0.05)  # a straight line gives 0.71
    for end in (a, b):
        cosine = (middle * end).flatten(1).sum(1) / (middle.flatten(1).norm(dim=1) ** 2)
        torch.testing.assert_close(cosine, torch.full((3,), 0.5**0.5), rtol=0, atol=0.05)
    torch.testing.assert_close(slerp(a, a, 0.3), a)


def test_interpolated_noise_ends_in_both_seeds():
    shape, steps = (4, 16, 16), (0.8, 0.2)
    a, b = SeededNoise(shape, [1], CPU), SeededNoise(shape, [2], CPU)
    ways = [InterpolatedNoise(a, b, [share]) for share in (0.0, 0.5, 1.0)]
    assert torch.equal(ways[0].initial(), a.initial())
    assert torch.equal(ways[2].between(*steps), b.between(*steps))
    assert ways[1].between(*steps).std().item() == pytest.approx(1, rel=0.1)
    assert torch.equal(ways[2].stream(3).initial(), b.stream(3).initial())


# Super-resolution.


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_back_projection_restores_the_small_picture(mode):
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(60, 190, (16, 12, 3), np.uint8)).convert(mode)
    detail = Image.fromarray(rng.integers(0, 256, (64, 48, 3), np.uint8)).convert(mode)
    again = back_project(detail, small).resize(small.size, Image.Resampling.BOX)
    assert np.abs(np.asarray(again).astype(int) - np.asarray(small)).mean() < 4
    assert back_project(detail, small).mode == mode


def test_the_base_task_changes_nothing():
    noise, task = randn(1, 4, 8, 8), Task()
    assert task.initial_latents(noise, SCHEDULES["flow"], torch.tensor([999.0])) is noise
    assert task.constrain(noise) is noise and task.repeats_per_step() == 1
