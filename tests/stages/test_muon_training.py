"""Trainings of stage 2 in which Muon moves the matrices."""

import pytest

import train_ldm
from tests.helpers.bad_calls import TRAINERS, command, refusal
from tests.helpers.short_runs import killed_in_step, numbers, state

MUON = ("--optimizer", "muon")


def test_it_resumes_exactly_and_is_another_training(world, tmp_path):
    def run(out, *flags) -> None:
        train_ldm.main(command(train_ldm, world, tmp_path / out, *flags))

    flags = ("--steps", 4, "--save-every", 2, "--log-every", 1)
    run("straight", *MUON, *flags)
    with killed_in_step(TRAINERS[train_ldm], 3):
        run("parts", *MUON, *flags)
    run("parts", *MUON, *flags)
    assert state(tmp_path / "straight") == state(tmp_path / "parts")
    run("adamw", *flags)
    assert state(tmp_path / "straight") != state(tmp_path / "adamw")
    lines = [line for line in numbers(tmp_path / "straight") if "loss" in line]
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
