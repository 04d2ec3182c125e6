"""A seed means the same noise here and in diffusers: both draw the same picture from it.

No latents are handed over. Ours gets `seed=s`, diffusers gets
`generator=torch.Generator().manual_seed(s)`, for the same model folder.
"""

from dataclasses import dataclass, field
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch

from ldm import TextToImage
from ldm.denoiser import Prediction
from ldm.schedule import ScheduleConfig
from tests.helpers.random_models import FLOW, SIDE, make_pipeline, pixels

# diffusers has not followed NumPy here
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

STEPS, SCALE = 8, 4.0
PROMPTS = ["a cat", "a red heart", "seven"]


@dataclass(frozen=True)
class Case:
    """A model, one of our samplers, and the scheduler of diffusers that is the same solver."""

    schedule: ScheduleConfig
    prediction: Prediction
    sampler: str
    scheduler: str
    settings: dict[str, object] = field(default_factory=dict)  # others than in the model folder
    tolerance: int = 1  # gray levels of 255


ZERO_SNR = ScheduleConfig(zero_terminal_snr=True)
CASES = {
    "DDIM, noise": Case(ScheduleConfig(), "noise", "ddim", "DDIMScheduler"),
    "DDIM, velocity, zero terminal SNR": Case(ZERO_SNR, "velocity", "ddim", "DDIMScheduler"),
    "DPM++ 2M, flow": Case(FLOW, "flow", "dpmpp_2m", "DPMSolverMultistepScheduler"),
    "DPM++ 2M, noise": Case(
        ScheduleConfig(), "noise", "dpmpp_2m", "DPMSolverMultistepScheduler",
        {"final_sigmas_type": "zero", "lower_order_final": True},
    ),
    # diffusers' Euler begins with 0.998 times the noise, as the noisiest timestep has it.
    "Euler, velocity": Case(
        ScheduleConfig(), "velocity", "euler", "EulerDiscreteScheduler", tolerance=2
    ),
}  # fmt: skip


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


@pytest.fixture(scope="module")
def ours(case: Case) -> TextToImage:
    return make_pipeline(case.schedule, case.prediction)


@pytest.fixture(scope="module")
def theirs(
    case: Case, ours: TextToImage, tmp_path_factory: pytest.TempPathFactory
) -> diffusers.StableDiffusionPipeline:
    folder: Path = tmp_path_factory.mktemp("model") / "model"
    ours.save(folder)
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(folder, low_cpu_mem_usage=False)
    scheduler = getattr(diffusers, case.scheduler)
    pipeline.scheduler = scheduler.from_config(pipeline.scheduler.config, **case.settings)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def draw(pipeline: TextToImage, case: Case, prompts: list[str], seed: int) -> np.ndarray:
    pictures = pipeline(prompts, seed=seed, steps=STEPS, guidance_scale=SCALE, sampler=case.sampler)
    return np.stack([pixels(picture) for picture in pictures])


def draw_with_diffusers(
    pipeline: diffusers.StableDiffusionPipeline,
    prompts: list[str],
    generator: torch.Generator | list[torch.Generator],
) -> np.ndarray:
    pictures = pipeline(
        prompts,
        generator=generator,
        num_inference_steps=STEPS,
        guidance_scale=SCALE,
        height=SIDE,
        width=SIDE,
        output_type="pil",
    ).images
    return np.stack([pixels(picture) for picture in pictures])


@pytest.mark.parametrize("seed", [0, 7, 2**40 + 1])
def test_a_seed_draws_the_picture_that_it_draws_in_diffusers(case, ours, theirs, seed):
    generator = torch.Generator().manual_seed(seed)
    expected = draw_with_diffusers(theirs, PROMPTS[:1], generator)
    actual = draw(ours, case, PROMPTS[:1], seed)
    assert np.abs(actual - expected).max() <= case.tolerance
    other = draw(ours, case, PROMPTS[:1], seed + 1)
    assert np.abs(other - expected).max() > 10 * case.tolerance


def test_picture_k_of_a_batch_has_the_generator_of_seed_plus_k(case, ours, theirs):
    generators = [torch.Generator().manual_seed(5 + k) for k in range(len(PROMPTS))]
    expected = draw_with_diffusers(theirs, PROMPTS, generators)
    assert np.abs(draw(ours, case, PROMPTS, seed=5) - expected).max() <= case.tolerance
