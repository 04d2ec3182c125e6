"""Flags that do nothing without another one are refused; those of presets are not."""

from typing import Any

import pytest

from commands.flags import check, evaluate, export, sample
from foundation.errors import UserError
from stages.flags import autoencoder, clip, diffusion
from training.cli import parse
from training.flags import flat_values, needs_of

RUN = ("--data", "d", "--out", "o")
PROGRAMS: dict[str, tuple[Any, Any, tuple[str, ...]]] = {  # flags, presets, what is required
    "train_clip": (clip.ClipTrainingConfig, clip.PRESETS, RUN),
    "train_vae": (autoencoder.AutoencoderTrainingConfig, autoencoder.PRESETS, RUN),
    "train_ldm": (diffusion.DiffusionTrainingConfig, diffusion.PRESETS, (*RUN, "--vae", "v")),
    "sample": (sample.Config, None, ("a prompt",)),
    "check": (check.Options, None, ("d",)),
    "evaluate": (evaluate.COMMANDS, None, ("model", "m", "--data", "d")),
    "export": (export.Config, None, ("m", "o", "--format", "diffusers")),
}
# Program, what does nothing, and what gives it a meaning. One line for each line of the tables,
# and for each way.
CASES = """
train_vae   --images-per-second 3        --dry-run
train_vae   --averages-half              --averages-every 100
train_vae   --perceptual-weight 0.5      --perceptual alex
train_vae   --adaptive                   --adversarial-weight 0.5
train_vae   --matrix-rate 8              --optimizer muon
train_vae   --discriminator-start 100    --adversarial-weight 0.5
train_vae   --adversarial-start 0.5      --adversarial-weight 0.5
train_vae   --adversarial-ramp 9         --adversarial-weight 0.5
train_vae   --discriminator-rate 2       --adversarial-weight 0.5
train_vae   --discriminator-width 32     --adversarial-weight 0.5
train_vae   --discriminator-layers 2     --adversarial-weight 0.5
train_clip  --keep-tags 1                --shuffle-tags
train_clip  --keep-tags 1                --tag-dropout 0.1
train_clip  --tag-separator ;            --shuffle-tags
train_ldm   --tag-variants 4             --tag-dropout 0.1
train_ldm   --lora-alpha 8               --lora 4
train_ldm   --lora-targets to_q          --lora 4
train_ldm   --matrix-rate 8              --optimizer muon
train_ldm   --gamma 7                    --weighting min_snr
train_ldm   --gamma 7                    --weighting soft_min_snr
train_ldm   --beta-start 0.001           --noise-schedule scaled_linear
train_ldm   --beta-end 0.02              --noise-schedule linear
train_ldm   --whole-masks 0.5            --task inpaint
train_ldm   --max-noise-level 100        --task upscale
train_ldm   --damage-jpeg 50             --task restore
sample      --mask m.png                 --init-image i.png
sample      --strength 0.5               --init-image i.png
sample      --strength 0.5               --style-image i.png
sample      --noise-level 20             --upscale 2 --init-image i.png
sample      --resample 3                 --mask m.png --init-image i.png
sample      --source-prompt x            --style-image i.png
sample      --lora-scale 0.5             --lora l
sample      --quality 50                 --format webp
sample      --video mp4                  --interpolate 3
sample      --fps 24                     --interpolate 3
evaluate    --held-out-split test        --split train
evaluate    --language-samples 9         --judge j
evaluate    --attribute-words a b        --judge j
evaluate    --sweep-samples 9            --sweep-guidance 1 2
"""
# Program, what does nothing, and what takes the meaning away.
AGAINST = """
train_vae   --find-batch-size            --dry-run
train_vae   --find-batch-size            --overfit 8
train_vae   --dry-run                    --overfit 8
train_vae   --kl-weight 1e-5             --freeze encoder
train_vae   --statistics-images 100      --freeze encoder
train_ldm   --logit-mean 0.5             --times uniform
train_ldm   --logit-std 2                --times continuous
train_ldm   --text-encoder t             --condition class
train_ldm   --caption-prefix x           --condition class
train_ldm   --shuffle-tags               --condition none
train_ldm   --allow-missing-captions     --condition none
train_ldm   --caption-dropout 0.2        --condition none
train_ldm   --preview-guidance 2         --condition none
sample      --steps 9                    --times 999 500
sample      --format webp                --interpolate 3
sample      --no-grid                    --interpolate 3
sample      --save-latents               --interpolate 3
sample      --grid-x steps=5,10          --no-grid
sample      --grid-x steps=5,10          --interpolate 3
sample      --dtype bf16                 --reproduce a.png
sample      --compile                    --reproduce a.png
sample      --interpolate 3              --reproduce a.gif
check       --json                       --part 1/2
check       --no-near-duplicates         --part 1/2
evaluate    --held-out 0.5               --split test
export      --ema                        --part vae
"""


def lines(table: str) -> list[tuple[str, list[str], list[str]]]:
    """Split a table into program, flag and other flags."""
    found = []
    for line in table.strip().splitlines():
        program, *words = line.split()
        second = next(k for k, word in enumerate(words[1:], 1) if word.startswith("--"))
        found.append((program, words[:second], words[second:]))
    return found


def given(program: str, *words: str) -> Any:
    """Parse a command line that would do for the program."""
    config, presets, required = PROGRAMS[program]
    return parse(config, [*required, *words], "", presets)


@pytest.mark.parametrize(("program", "flag", "others"), lines(CASES))
def test_a_flag_without_the_one_that_it_needs_is_refused(program, flag, others):
    usual_off = {"--averages-half": ["--no-averages-half"], "--adaptive": ["--no-adaptive"]}
    flag = usual_off.get(flag[0], flag)
    with pytest.raises(UserError, match=rf"^{flag[0]}.* does nothing here: .*{others[0]}"):
        given(program, *flag)
    given(program, *flag, *others)


@pytest.mark.parametrize(("program", "flag", "others"), lines(AGAINST))
def test_a_flag_beside_one_that_makes_it_useless_is_refused(program, flag, others):
    with pytest.raises(UserError, match=rf"^{flag[0]}.* does nothing here: .*{others[0]}"):
        given(program, *flag, *others)
    given(program, *flag)


def test_a_held_out_split_uses_the_fraction_that_is_held_out():
    words = ("--held-out", "0.5", "--split", "train", "--held-out-split", "test")
    assert given("evaluate", *words).held_out == 0.5


@pytest.mark.parametrize("command", ["autoencoder", "task"])
def test_a_split_is_measured_whole(command):
    words = [command, "m", "--data", "d", "--split", "test", "--held-out", "0.5"]
    with pytest.raises(UserError, match=r"^--held-out 0\.5 .*without --split"):
        parse(evaluate.COMMANDS, words, "")


def test_values_of_a_preset_are_not_refused():
    """base-128 has a discriminator, small-64 none; sd15 has betas, small-64 is the flow."""
    given("train_vae", "--preset", "base-128", "--adversarial-weight", "0")
    given("train_ldm", "--preset", "sd15", "--noise-schedule", "cosine")
    given("train_ldm", "--preset", "small-64", "--times", "uniform")
    for presets in ("train_clip", "train_vae", "train_ldm"):
        for name in PROGRAMS[presets][1]:
            given(presets, "--preset", name)


def test_a_flag_may_be_given_with_the_value_that_it_has_anyway():
    """So that a run that was begun with a useless flag can go on by `--override`."""
    words = ("--gamma", "7", "--override", "gamma=5.0")
    assert given("train_ldm", *words).objective.gamma == 5


def test_overrides_are_refused_like_flags():
    with pytest.raises(UserError, match="--gamma 7 does nothing here"):
        given("train_ldm", "--override", "gamma=7")


def test_a_long_value_is_shortened():
    with pytest.raises(UserError) as error:
        given("train_ldm", "--condition", "none", "--caption-prefix", "x" * 10_000)
    assert len(str(error.value)) < 500


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_name_in_the_tables_is_a_flag(program):
    config = given(program)
    names = set(flat_values(config))
    for need in needs_of(config):
        assert {*need.names, *need.ways} <= names
