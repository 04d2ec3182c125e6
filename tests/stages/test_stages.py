"""What the three stages' steps have in common: nothing random outside their seeds, nothing moved
by a step that is not finite, and parts of a batch that add up to the batch."""

import numpy as np
import pytest
import torch

import train_clip
import train_ldm
import train_vae
from tests.helpers.bad_calls import TRAINERS, TRAININGS, command, refusal
from tests.helpers.short_runs import same_weights
from training.checkpoint import flatten

ADVERSARY = ("--adversarial-weight", 0.5, "--discriminator-start", 0, "--adversarial-start", 0,
             "--discriminator-width", 16, "--discriminator-layers", 2)  # fmt: skip
FLAGS = {train_clip: (), train_vae: ADVERSARY, train_ldm: ("--preview-prompts", "red")}


def tensors(stage) -> dict[str, torch.Tensor]:
    """All that the stage would save, but for a mere measurement."""
    found = {}
    for name, part in stage.state.items():
        flatten(part.state_dict(), found, name)
    return {name: value.clone() for name, value in found.items() if not name.startswith("contest")}


def global_generators() -> tuple[torch.Tensor, np.ndarray]:
    return torch.get_rng_state(), np.random.get_state()[1]  # noqa: NPY002


@pytest.mark.parametrize("script", TRAININGS, ids=lambda s: s.__name__)
def test_what_a_step_leaves_alone(world, tmp_path, monkeypatch, script):
    """The global generators, always: so there is no state of theirs to save, on any rank. And if a
    gradient is not finite everything: the other network, the averages, the moments, the statistics
    of a norm."""

    def watch(stage, step, number):
        network = next(part for part in stage.state.values() if isinstance(part, torch.nn.Module))
        before, generators = tensors(stage), global_generators()
        hook = next(network.parameters()).register_hook(lambda g: g * torch.nan if number else g)
        metrics = step(stage, number)
        hook.remove()
        for old, new in zip(generators, global_generators(), strict=True):
            assert np.array_equal(old, new)
        assert metrics["step_applied"] == (number == 0)
        assert metrics["gradient_norm"].isfinite() == (number == 0)
        if number:
            after = tensors(stage)
            assert before.keys() == after.keys()
            assert [name for name in before if not torch.equal(before[name], after[name])] == []
        return metrics

    step = TRAINERS[script].step
    monkeypatch.setattr(TRAINERS[script], "step", lambda stage, k: watch(stage, step, k))
    script.main(command(script, world, tmp_path, *FLAGS[script]))


@pytest.mark.parametrize(("script", "network"), [(train_vae, "autoencoder"), (train_ldm, "unet")])
def test_accumulation_gives_what_the_whole_batch_gives(world, tmp_path, script, network):
    files = []
    for parts in (1, 4):
        out = tmp_path / str(parts)
        flags = (*FLAGS[script], "--accumulate", parts, "--precision", "fp32", "--warmup", 1)
        script.main(command(script, world, out, *flags))
        files.append(out / "state" / "step-0000002" / f"{network}.safetensors")
    same_weights(*files)


def test_accumulation_is_refused_where_it_is_something_else(world, tmp_path, capsys):
    given = command(train_clip, world, tmp_path / "run", "--accumulate", 2)
    assert "normalizes over the batch" in refusal(capsys, train_clip, given)
    given = command(train_vae, world, tmp_path / "run", "--accumulate", 3)
    assert "a batch of 4 does not divide into 3" in refusal(capsys, train_vae, given)
    given = command(train_ldm, world, tmp_path / "run", "--precision", "fp16")
    assert "--precision fp16 needs a CUDA device" in refusal(capsys, train_ldm, given)
