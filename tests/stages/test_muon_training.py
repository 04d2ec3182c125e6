"""Trainings of both stages in which Muon moves the matrices."""

import pytest
import torch

import train_ldm
import train_vae
from autoencoder import Autoencoder
from tests.helpers.bad_calls import TRAINERS, command, refusal
from tests.helpers.short_runs import killed_in_step, numbers, state

MUON = ("--optimizer", "muon")


@pytest.mark.parametrize("program", [train_vae, train_ldm])
def test_it_resumes_exactly_and_is_another_training(world, tmp_path, program):
    def run(out, *flags) -> None:
        program.main(command(program, world, tmp_path / out, *flags))

    flags = ("--steps", 4, "--save-every", 2, "--log-every", 1)
    run("straight", *MUON, *flags)
    with killed_in_step(TRAINERS[program], 3):
        run("parts", *MUON, *flags)
    run("parts", *MUON, *flags)
    assert state(tmp_path / "straight") == state(tmp_path / "parts")
    run("adam", *flags)
    assert state(tmp_path / "straight") != state(tmp_path / "adam")
    lines = [line for line in numbers(tmp_path / "straight") if "gradient_norm" in line]
    assert lines[-1]["matrices_gradient_norm"] > 0


def test_it_moves_whole_matrices_only(world, tmp_path, capsys):
    given = command(train_ldm, world, tmp_path / "run", *MUON, "--shard")
    assert "--optimizer adamw" in refusal(capsys, train_ldm, given)


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_a_lora_is_trained_by_adamw(world, tmp_path, optimizer):
    train_ldm.main(command(train_ldm, world, tmp_path / "model", "--steps", 1))
    lora = ("--init-from", tmp_path / "model", "--lora", 2, "--steps", 1, "--log-every", 1)
    run = tmp_path / optimizer
    train_ldm.main(command(train_ldm, world, run, *lora, "--optimizer", optimizer))
    assert not any("matrices_gradient_norm" in line for line in numbers(run))


def test_the_encoder_stays_frozen(world, tmp_path):
    frozen = ("--init-from", world / "vae", "--freeze", "encoder", "--steps", 2)
    train_vae.main(command(train_vae, world, tmp_path / "run", *MUON, *frozen))
    before, after = (Autoencoder.load(path) for path in (world / "vae", tmp_path / "run"))
    for name, weight in before.encoder.named_parameters():
        assert torch.equal(weight, after.encoder.get_parameter(name))
    moved = [
        not torch.equal(weight, after.decoder.get_parameter(name))
        for name, weight in before.decoder.named_parameters()
    ]
    assert all(moved)
