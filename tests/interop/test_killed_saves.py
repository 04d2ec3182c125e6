"""A kill at any moment leaves the old model or the new one, whole: for every kind of save."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
KINDS = {
    "autoencoder",
    "unet",
    "text_encoder",
    "model",
    "lora",
    "file.safetensors",
    "export",
    "export.safetensors",
}
WAYS = ("exchange", "two renames")


def run_killer(*arguments: object) -> dict[str, dict]:
    command = [sys.executable, "-m", "tests.helpers.killing.killed_saves", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


def check(results: dict[str, dict], expected: set[str]) -> None:
    assert results.keys() == expected
    for name, result in results.items():
        assert result["wrong"] == [], name
        assert result["old"], f"{name}: no kill came before the change of names"


def test_kills_around_the_change_of_names_and_at_some_other_moments(tmp_path):
    expected = {f"{kind}, exchange" for kind in KINDS} | {"model, two renames"}
    check(run_killer(tmp_path, 2), expected)


@pytest.mark.slow
def test_kills_before_every_change(tmp_path):
    results = run_killer(tmp_path)
    check(results, {f"{kind}, {way}" for kind in KINDS for way in WAYS})
    for name, result in results.items():
        assert result["old"] + result["new"] == result["changes"], name
    for way in WAYS:  # removing the old folder changes files after the change of names
        assert results[f"model, {way}"]["new"] and results[f"model, {way}"]["changes"] > 100
