"""Which training a run folder belongs to, by the flags in its config.json."""

import dataclasses
import json

import pytest

from foundation.run_kind import hub_hint, run_hint, training_of
from stages.autoencoder import AutoencoderTrainingConfig
from stages.clip import ClipTrainingConfig
from stages.diffusion import DiffusionTrainingConfig

CONFIGS = {
    "train_clip.py": ClipTrainingConfig,
    "train_vae.py": AutoencoderTrainingConfig,
    "train_ldm.py": DiffusionTrainingConfig,
}


@pytest.mark.parametrize("training", CONFIGS)
def test_each_training_is_known_by_its_flags(tmp_path, training):
    flags = {field.name: None for field in dataclasses.fields(CONFIGS[training])}
    assert training_of(flags) == training
    (tmp_path / "config.json").write_text(json.dumps(flags))
    assert "not finished" in run_hint(tmp_path, training)
    for other in CONFIGS.keys() - {training}:
        assert training in run_hint(tmp_path, other) and other in run_hint(tmp_path, other)


def test_a_run_without_the_setting_is_named(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"text_encoder": "t", "lora": None}))
    assert "train_ldm.py without --lora." in run_hint(tmp_path, "train_ldm.py", "lora")
    (tmp_path / "config.json").write_text(json.dumps({"text_encoder": "t", "lora": 4}))
    assert "not finished" in run_hint(tmp_path, "train_ldm.py", "lora")


@pytest.mark.parametrize("content", [None, "{}", '{"steps": 3}', "not JSON"])
def test_other_folders_are_no_runs(tmp_path, content):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    assert run_hint(tmp_path, "train_vae.py") == ""


def test_names_on_the_hub_come_with_the_command_that_fetches_them(tmp_path):
    assert "`hf download owner/name`" in hub_hint("owner/name")
    for other in ("name", "a/b/c", tmp_path / "run", "own:laion/x"):
        assert hub_hint(other) == ""
