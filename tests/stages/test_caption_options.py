"""Trainings whose captions have variants, weights and languages: exact, recorded, and refused."""

import json
from pathlib import Path

import pytest
import tyro

import train_clip
import train_ldm
from foundation.errors import UserError
from stages.clip import ClipTrainingConfig
from stages.diffusion import DiffusionTrainingConfig
from tests.helpers.bad_calls import TRAINERS, command
from tests.helpers.images import picture, write_metadata
from tests.helpers.short_runs import killed_in_step
from training.checkpoint import saved_states
from training.flags import flag_name, help_page

OPTIONS = ("--shuffle-tags", "--keep-tags", 1, "--tag-dropout", 0.3, "--tag-variants", 4)
OPTIONS += ("--caption-languages", "en=3,de=1", "--caption-prefix", "drawing,")


def tagged(root, count: int = 24):
    rows = []
    for k in range(count):
        picture(root / f"{k:03d}.png", seed=k, size=(32, 32))
        texts = [f"red, {k}, old, round", f"rot, {k}, alt, rund", f"rouge, {k}"]
        row = {"text": texts, "caption_languages": ["en", "de", "fr"], "caption_weights": [1, 2, 1]}
        rows.append({"file_name": f"{k:03d}.png", **row})
    write_metadata(root, rows)
    return root


def state(run) -> dict[str, bytes]:
    newest = saved_states(run / "state")[-1]
    return {path.name: path.read_bytes() for path in sorted(newest.rglob("*.safetensors"))}


@pytest.mark.slow
@pytest.mark.parametrize("script", [train_clip, train_ldm])
def test_a_training_with_options_of_captions_resumes_exactly(world, tmp_path, script, capsys):
    data = tagged(tmp_path / "data")
    flags = ("--data", data, "--steps", 4, "--save-every", 2, "--held-out", 0.2, *OPTIONS)
    script.main(command(script, world, tmp_path / "straight", *flags))
    with killed_in_step(TRAINERS[script], 3):
        script.main(command(script, world, tmp_path / "parts", *flags))
    script.main(command(script, world, tmp_path / "parts", *flags))
    assert state(tmp_path / "straight").keys()
    assert state(tmp_path / "straight") == state(tmp_path / "parts")
    config = json.loads((tmp_path / "parts" / "config.json").read_text())
    assert config["caption_languages"] == "en=3,de=1" and config["tag_variants"] == 4
    card = next((tmp_path / "parts" / "model").rglob("README.md"), None)
    assert card is None or "en=3,de=1" in card.read_text()
    capsys.readouterr()
    changed = (*flags, "--keep-tags", 2)
    with pytest.raises(Exception, match=r"keep_tags: 1 -> 2"):
        script.main(command(script, world, tmp_path / "parts", *changed))


@pytest.mark.parametrize(
    "options",
    [
        {"tag_separator": "", "shuffle_tags": True},
        {"caption_languages": "en=3,de"},
    ],
)
def test_options_of_captions_that_make_no_sense_are_refused(options):
    required = {"data": Path("data"), "out": Path("out")}
    models = {"vae": Path("vae"), "text_encoder": "clip"}
    name = flag_name(next(iter(options)))
    with pytest.raises(UserError, match=name):
        ClipTrainingConfig(**required, **options).check()
    with pytest.raises(UserError, match=name):
        DiffusionTrainingConfig(**required, **models, **options).check()


def test_bounds_and_languages_are_checked_before_anything_is_written(refused):
    refused(train_ldm, "--tag-variants is 0", "--shuffle-tags", "--tag-variants", 0)
    refused(train_ldm, r"--tag-dropout is 1\.5", "--tag-dropout", 1.5)
    refused(train_clip, "xx.*--caption-languages", "--caption-languages", "xx")


def test_the_help_page_has_a_section_on_captions():
    page = help_page(DiffusionTrainingConfig, tyro.MISSING, "")
    section = page.partition("\ncaptions:\n")[2].partition("\n\n")[0]
    assert "--shuffle-tags" in section and "--caption-languages" in section
