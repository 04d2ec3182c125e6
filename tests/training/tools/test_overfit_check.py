"""--overfit: a handful of images is memorized, or the loss curve says what is wrong."""

import re
from dataclasses import replace

import pytest

import train_clip
import train_ldm
import train_vae
from stages import before_training
from tests.helpers.bad_calls import command, refusal, tree
from training.tools.overfit_check import Target, describe_outcome, likely_cause

TARGET = Target(
    metric="psnr", bound=20.0, above=True, words="PSNR", steps=100, limits="Likely: the limits."
)
FALLING = [1.0 * 0.8**k for k in range(40)]


@pytest.mark.parametrize(
    ("losses", "words"),
    [
        ([1.0, 0.5, None, 0.4], "infinite or NaN: the learning rate is too high"),
        ([1.0, 1.01, 0.99, 1.0, 1.0, 0.98, 1.0, 1.0], "hardly moved"),
        ([1.0, 5.0, 9.0, 8.0, 9.0, 7.0, 8.0, 9.0], "hardly moved.*far too high"),
        ([1.0, 0.5, 0.1, 0.1, 0.2, 0.3, 0.4, 0.5], "fell and rose again.*too high"),
        (FALLING, "still falling: too slow"),
        ([1.0, 0.4, 0.3, 0.3, 0.3, 0.3, 0.3, 0.3], r"to 0\.3 .*Likely: the limits\."),
    ],
)
def test_the_loss_curve_names_the_likely_cause(losses, words):
    assert re.search(words, likely_cause(losses, TARGET))


def test_the_outcome_states_the_target_and_the_value():
    text = describe_outcome(TARGET, 24.5, FALLING, images=8)
    assert "memorized: PSNR on 8 images is 24.5 after 100 steps; at least 20" in text
    with pytest.raises(ValueError, match="not memorized: PSNR on 8 images is 12"):
        describe_outcome(TARGET, 12.0, FALLING, images=8)
    with pytest.raises(ValueError, match="is nan"):
        describe_outcome(TARGET, float("nan"), [None], images=8)
    below = replace(TARGET, above=False, bound=0.3)
    assert "at most 0.3" in describe_outcome(below, 0.2, FALLING, images=8)


def shortened(monkeypatch, name: str, **changes) -> None:
    """Change the target of a stage, so that it is reached in a few steps."""
    monkeypatch.setattr(before_training, name, replace(getattr(before_training, name), **changes))


def test_an_autoencoder_learns_a_few_images_and_leaves_no_file(
    world, tmp_path, capsys, monkeypatch
):
    shortened(monkeypatch, "AUTOENCODER_TARGET", steps=40, bound=13.0)
    train_vae.main(command(train_vae, world, tmp_path / "out", "--overfit", 4))
    text = capsys.readouterr().out
    assert re.fullmatch(r"memorized: PSNR in dB on 4 images is [\d.]+ after 40 .*\n", text)
    assert not tree(tmp_path)


def test_an_autoencoder_that_cannot_learn_says_why(world, tmp_path, capsys, monkeypatch):
    shortened(monkeypatch, "AUTOENCODER_TARGET", steps=8)
    given = command(train_vae, world, tmp_path / "out", "--overfit", 4, "--learning-rate", 1e-9)
    message = refusal(capsys, train_vae, given)
    assert "not memorized" in message and "hardly moved" in message
    assert not tree(tmp_path)


@pytest.mark.parametrize(
    ("script", "name", "bound"),
    [(train_clip, "CLIP_TARGET", 0.0), (train_ldm, "DIFFUSION_TARGET", 9.0)],
)
def test_the_other_stages_have_it(world, tmp_path, capsys, monkeypatch, script, name, bound):
    shortened(monkeypatch, name, steps=4, bound=bound)
    script.main(command(script, world, tmp_path / "out", "--overfit", 4))
    assert "memorized" in capsys.readouterr().out
    assert not tree(tmp_path)


def test_more_images_than_there_are_are_refused(world, tmp_path, capsys):
    given = command(train_vae, world, tmp_path / "out", "--overfit", 50)
    assert "--overfit 50: there are 12 images" in refusal(capsys, train_vae, given)
