"""Latents of our samplers equal those of diffusers and k-diffusion to 1e-4."""

import pytest

from tests.parity.samplers import RUNS

# diffusers has not followed NumPy here
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.mark.parametrize(
    "run",
    [
        # 999 is as 1000, but for the rounding of timesteps, which 3 steps show too.
        pytest.param(run, id=f"{row}: {name}", marks=[pytest.mark.slow] * name.endswith("-999"))
        for row, named in RUNS.items()
        for name, run in named.items()
    ],
)
def test_samplers_equal_their_peers(run):
    assert run() < 1e-4
