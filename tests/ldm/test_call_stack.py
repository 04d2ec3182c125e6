"""Few functions of ours lie between a call and the network, so that a debugger can follow."""

import traceback
from pathlib import Path

import pytest
import torch
from PIL import Image

from ldm import tasks
from ldm.samplers import SAMPLERS
from ldm.unet.cached import forward_cached
from tests.helpers.random_models import make_pipeline

ROOT = str(Path(__file__).parents[2])
SIDE = 32  # pixels


class StackRecorder:
    """A cached forward that keeps the names of our functions on the stack at its first call."""

    def __init__(self):
        self.names: list[str] = []

    def __call__(self, *arguments):
        if not self.names:
            frames = traceback.extract_stack()[:-1]
            self.names = [frame.name for frame in frames if is_ours(frame.filename)]
            self.names.append("forward_cached")
        return forward_cached(*arguments)


def is_ours(filename: str) -> bool:
    return filename.startswith(f"{ROOT}/ldm/") or "test_call_stack" in filename


@pytest.fixture(scope="module")
def pipeline():
    return make_pipeline()


def record(pipeline, **arguments) -> list[str]:
    """Return the names of our functions from the user's call (left out) to the network."""
    recorder = StackRecorder()
    pipeline.cached_forward = recorder
    with torch.no_grad():
        pipeline(["a cat"], steps=2, **arguments)
    pipeline.cached_forward = None
    start = recorder.names.index("record") + 1
    return recorder.names[start:]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_three_frames_lie_between_a_sampler_and_the_network(pipeline, sampler):
    names = record(pipeline, sampler=sampler)
    assert len(names) <= 9 + (sampler == "euler_a")  # it calls ddim
    assert names[-4:] == [
        "__call__",
        "__call__",
        "__call__",
        "forward_cached",
    ]  # guidance, denoiser, cache
    assert names[0] == "__call__" and names[-5] in (sampler, "ddim")


def test_a_task_or_a_window_adds_one_frame(pipeline):
    picture = Image.new("RGB", (SIDE, SIDE), "red")
    plain = record(pipeline)
    assert len(record(pipeline, task=tasks.img2img(pipeline, picture))) == len(plain)
    mask = Image.new("L", (SIDE, SIDE), 255)
    mask.paste(0, (0, 0, SIDE, SIDE // 2))
    assert len(record(pipeline, task=tasks.inpaint(pipeline, picture, mask))) <= len(plain) + 1
    wide = record(pipeline, width=2 * SIDE, height=SIDE, window=SIDE)
    assert len(wide) == len(plain) + 1
