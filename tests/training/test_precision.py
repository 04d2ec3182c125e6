"""Precision of the arithmetic, and training in float16."""

import pytest
import torch
from torch import nn

from foundation.errors import UserError
from training.optimizer import OptimizerStep
from training.precision import Precision


def test_the_forward_pass_is_computed_in_the_given_precision():
    cpu = torch.device("cpu")
    assert Precision(cpu, "fp32").name == "fp32" and Precision(cpu).name in ("bf16", "fp32")
    assert not Precision(cpu, "bf16").scaler().is_enabled()
    with pytest.raises(UserError, match=r"fp16.*cpu"):
        Precision(cpu, "fp16")
    linear = nn.Linear(2, 2)
    for name, dtype in {"fp32": torch.float32, "bf16": torch.bfloat16}.items():
        with Precision(cpu, name):
            assert linear(torch.ones(1, 2)).dtype == dtype


@pytest.mark.skipif(not torch.cuda.is_available(), reason="float16 is trained on CUDA only")
def test_float16_learns_with_loss_scaling():
    device = torch.device("cuda")
    precision, model = Precision(device, "fp16"), nn.Linear(8, 1).to(device)
    optimizers = {"optimizer": torch.optim.AdamW(model.parameters(), fused=True)}
    update = OptimizerStep(optimizers, 1.0, precision.scaler())
    losses = []
    for step in range(200):
        x = torch.randn(64, 8, generator=torch.Generator().manual_seed(step)).to(device)
        with precision:
            loss = (model(x).float() - x.sum(1, keepdim=True)).square().mean()
        (loss * update.scale).backward()
        update({"loss": loss}, {"optimizer": 0.05})
        losses.append(loss.item())
    assert losses[-1] < 0.05 * losses[0] and update.scale > 1
    assert model.weight.dtype == torch.float32
