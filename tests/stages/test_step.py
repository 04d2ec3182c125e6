"""A step of any stage: it uses no global random numbers, changes nothing if its gradient is not
finite, and computes the same in one batch as in parts."""

import re

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


def saved_tensors(trainer) -> dict[str, torch.Tensor]:
    """Return every tensor that the trainer saves, except for the means of the GAN's balance."""
    found = {}
    for name, part in trainer.state.items():
        flatten(part.state_dict(), found, name)
    return {name: value.clone() for name, value in found.items() if not name.startswith("contest")}


def global_generators() -> tuple[torch.Tensor, np.ndarray]:
    return torch.get_rng_state(), np.random.get_state()[1]  # noqa: NPY002


@pytest.mark.parametrize("script", TRAININGS, ids=lambda s: s.__name__)
def test_a_step_without_finite_gradient_changes_nothing(world, tmp_path, monkeypatch, script):
    """Neither the other network, nor averages, moments, or statistics of a norm.

    And no step uses the global random generators, so that their state need not be saved.
    """

    def checked(trainer, number):
        network = next(part for part in trainer.state.values() if isinstance(part, torch.nn.Module))
        before, generators = saved_tensors(trainer), global_generators()
        hook = next(network.parameters()).register_hook(lambda g: g * torch.nan if number else g)
        metrics = step(trainer, number)
        hook.remove()
        for old, new in zip(generators, global_generators(), strict=True):
            assert np.array_equal(old, new)
        assert metrics["step_applied"] == (number == 0)
        assert metrics["gradient_norm"].isfinite() == (number == 0)
        if number:
            after = saved_tensors(trainer)
            assert before.keys() == after.keys()
            assert [name for name in before if not torch.equal(before[name], after[name])] == []
        return metrics

    step = TRAINERS[script].step
    monkeypatch.setattr(TRAINERS[script], "step", checked)
    script.main(command(script, world, tmp_path, *FLAGS[script]))


@pytest.mark.parametrize(("script", "network"), [(train_vae, "autoencoder"), (train_ldm, "unet")])
def test_accumulation_trains_as_the_whole_batch_does(world, tmp_path, script, network):
    files = []
    for parts in (1, 4):
        out = tmp_path / str(parts)
        flags = (*FLAGS[script], "--accumulate", parts, "--precision", "fp32", "--warmup", 1)
        script.main(command(script, world, out, *flags))
        files.append(out / "state" / "step-0000002" / f"{network}.safetensors")
    same_weights(*files)


def test_accumulation_is_refused_where_it_would_train_something_else(world, tmp_path, capsys):
    given = command(train_clip, world, tmp_path / "run", "--accumulate", 2)
    assert "--accumulate 2" in refusal(capsys, train_clip, given)
    given = command(train_vae, world, tmp_path / "run", "--accumulate", 3)
    assert re.search(r"\b4\b.*\b3\b", refusal(capsys, train_vae, given))
    given = command(train_ldm, world, tmp_path / "run", "--precision", "fp16")
    assert "--precision fp16" in refusal(capsys, train_ldm, given)
