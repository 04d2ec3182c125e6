"""Latents of our samplers equal those of diffusers and k-diffusion to 1e-4."""

import pytest

from tests.parity.samplers import RUNS

# diffusers has not followed NumPy here
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

MANY = ("-999", "-1000")  # steps; they take three quarters of the time


@pytest.mark.parametrize(
    "run",
    [
        pytest.param(run, id=f"{row}: {name}", marks=[pytest.mark.slow] * name.endswith(MANY))
        for row, named in RUNS.items()
        for name, run in named.items()
    ],
)
def test_samplers_equal_their_peers(run):
    assert run() < 1e-4
