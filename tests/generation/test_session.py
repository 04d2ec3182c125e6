"""Results that are not finite: once more in fp32, or an error and no file."""

import pytest
import torch

import sample
from ldm import TextToImage
from ldm.unet import CachedUNet
from tests.helpers.bad_calls import command, refusal
from tests.helpers.sample_runs import run_sample


@pytest.mark.parametrize("weak", [False, True])
def test_overflow_in_half_precision_is_generated_once_more_in_fp32(
    world, tmp_path, capsys, monkeypatch, weak
):
    call_unet, flags = CachedUNet.__call__, ("--weak-model", world / "ldm") if weak else ()
    (exact,) = run_sample(world, tmp_path / "exact", *flags)

    def overflows(self, *arguments):
        output = call_unet(self, *arguments)
        return output if output.dtype == torch.float32 else output * float("nan")

    monkeypatch.setattr(CachedUNet, "__call__", overflows)
    (again,) = run_sample(world, tmp_path / "half", "--dtype", "bf16", *flags)
    assert "fp32" in capsys.readouterr().err
    assert again.read_bytes() == exact.read_bytes()


@pytest.mark.parametrize("part", ["unet", "autoencoder"])
def test_weights_that_are_not_finite_give_an_error_and_no_file(world, tmp_path, capsys, part):
    broken = TextToImage.load(world / "ldm")
    module = broken.unet.conv_out if part == "unet" else broken.autoencoder.decoder.conv_out
    module.bias.data.fill_(float("nan"))
    broken.save(tmp_path / part / "model")
    arguments = command(sample, world, tmp_path / "out", "--model", tmp_path / part)
    assert "not finite" in refusal(capsys, sample, arguments)
    assert not list((tmp_path / "out").glob("*.png"))
