"""Wrong shapes are found in tests: in the first calls of each function in each test."""

import jaxtyping
import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from foundation.tiling import blend_ramp
from tests import CHECKED, check


@jaxtyping.jaxtyped(typechecker=check)
def joined(a: Float[Tensor, "n c"], b: Float[Tensor, "n d"]) -> Float[Tensor, "n e"]:
    return torch.cat([a, b], dim=1)


@pytest.mark.parametrize("_", range(2))
def test_the_first_calls_of_each_test_are_checked(_):
    for _call in range(CHECKED - 1):
        joined(torch.zeros(2, 3), torch.zeros(2, 4))
    with pytest.raises(jaxtyping.TypeCheckError):
        joined(torch.zeros(2, 3), torch.zeros(2))
    with pytest.raises(RuntimeError):  # PyTorch's own; this call was not checked
        joined(torch.zeros(2, 3), torch.zeros(2))


def test_the_code_is_checked():
    with pytest.raises(jaxtyping.TypeCheckError):
        blend_ramp("a", 1)
