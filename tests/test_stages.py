"""What the three stages' steps have in common: nothing random outside their seeds, nothing moved
by a step that is not finite, and parts of a batch that add up to the batch."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import train_clip
import train_ldm
import train_vae
from tests.mistakes import TRAININGS, command, refusal
from training.checkpoint import flatten

ADVERSARY = ("--adversarial-weight", 0.5, "--discriminator-start", 0, "--adversarial-start", 0,
             "--discriminator-width", 16, "--discriminator-layers", 2)  # fmt: skip
FLAGS = {train_clip: (), train_vae: ADVERSARY, train_ldm: ()}


def tensors(stage) -> dict[str, torch.Tensor]:
    """All that the stage would save, but for a mere measurement."""
    found = {}
    for name, part in stage.parts.items():
        flatten(part.state_dict(), found, name)
    return {name: tensor for name, tensor in found.items() if not name.startswith("contest")}


def with_step(monkeypatch, script, world, out, change, *flags) -> None:
    """Runs a training in which change(stage, step, number) takes the place of every step."""
    step = script.Stage.step
    monkeypatch.setattr(script.Stage, "step", lambda stage, k: change(stage, step, k))
    script.main(command(script, world, out, *FLAGS[script], *flags))


@pytest.mark.parametrize("script", TRAININGS, ids=lambda s: s.__name__)
def test_a_gradient_that_is_not_finite_moves_nothing(world, tmp_path, monkeypatch, script):
    """Not the other network, the averages, the moments, nor the statistics of a norm."""

    def spoil(stage, step, number):
        if number != 1:
            return step(stage, number)
        network = next(part for part in stage.parts.values() if isinstance(part, torch.nn.Module))
        before = tensors(stage)
        handle = next(network.parameters()).register_hook(lambda gradient: gradient * torch.nan)
        metrics = step(stage, number)
        handle.remove()
        assert metrics["taken"] == 0 and not metrics["gradient_norm"].isfinite()
        after = tensors(stage)
        assert before.keys() == after.keys()
        assert [name for name in before if not torch.equal(before[name], after[name])] == []
        return metrics

    with_step(monkeypatch, script, world, tmp_path, spoil, "--steps", 3)


@pytest.mark.parametrize("script", TRAININGS, ids=lambda s: s.__name__)
def test_steps_draw_nothing_from_global_generators(world, tmp_path, monkeypatch, script):
    """So there is no state of any to save, on any rank."""

    def watch(stage, step, number):
        before = torch.get_rng_state(), np.random.get_state()[1]  # noqa: NPY002
        metrics = step(stage, number)
        assert torch.equal(before[0], torch.get_rng_state())
        assert np.array_equal(before[1], np.random.get_state()[1])  # noqa: NPY002
        return metrics

    with_step(monkeypatch, script, world, tmp_path, watch)


@pytest.mark.parametrize(("script", "network"), [(train_vae, "autoencoder"), (train_ldm, "unet")])
def test_accumulation_gives_what_the_whole_batch_gives(world, tmp_path, script, network):
    states = []
    for parts in (1, 4):
        out = tmp_path / str(parts)
        flags = (*FLAGS[script], "--accumulate", parts, "--precision", "fp32", "--warmup", 1)
        script.main(command(script, world, out, *flags))
        states.append(load_file(out / "state" / "step-0000002" / f"{network}.safetensors"))
    for name, weight in states[0].items():
        torch.testing.assert_close(states[1][name], weight, rtol=0, atol=2e-4, msg=name)


def test_accumulation_is_refused_where_it_is_something_else(world, tmp_path, capsys):
    given = command(train_clip, world, tmp_path / "run", "--accumulate", 2)
    assert "normalizes over the batch" in refusal(capsys, train_clip, given)
    given = command(train_vae, world, tmp_path / "run", "--accumulate", 3)
    assert "a batch of 4 does not divide into 3" in refusal(capsys, train_vae, given)
    given = command(train_ldm, world, tmp_path / "run", "--precision", "fp16")
    assert "--precision fp16 needs a CUDA device" in refusal(capsys, train_ldm, given)
