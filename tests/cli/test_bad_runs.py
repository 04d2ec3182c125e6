"""Run folders that must not be gone on with, and disks that fill up."""

import errno
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest

import sample
import train_clip
import train_ldm
import train_vae
from generation import output
from tests.helpers.bad_calls import TRAININGS, command, refusal, tree, unchanged
from tests.helpers.images import captioned


@pytest.fixture(scope="module")
def runs(world, tmp_path_factory) -> Path:
    """A finished run of every training, under its name, and the parts that stage 2 was given."""
    root = tmp_path_factory.mktemp("runs")
    for part in ("vae", "clip"):
        shutil.copytree(world / part, root / part)
    for script in TRAININGS:
        script.main(arguments(script, world, root))
    return root


def arguments(script: ModuleType, world: Path, root: Path, *flags: object) -> list[str]:
    """The command that goes on with a run of the fixture."""
    parts = ("--vae", root / "vae", "--text-encoder", root / "clip")
    given = parts if script is train_ldm else ()
    return command(script, world, root / script.__name__, *given, "--held-out", 0, *flags)


def test_trainings_need_no_held_out_pairs(runs):
    """The runs have none; they then report on training pairs, and no number is missing."""
    for script in TRAININGS:
        lines = (runs / script.__name__ / "metrics.jsonl").read_text().splitlines()
        assert None not in {value for line in lines for value in json.loads(line).values()}


@pytest.mark.parametrize("script", TRAININGS, ids=lambda s: s.__name__)
def test_a_run_with_other_settings_is_left_alone(world, runs, capsys, script):
    with unchanged(runs):
        given = arguments(script, world, runs, "--learning-rate", 0.5)
        message = refusal(capsys, script, given)
    assert re.search(r"rate: [\d.]+ -> 0\.5", message) and "--out" in message


def test_a_run_of_another_training_is_left_alone(world, runs, capsys):
    with unchanged(runs):
        given = command(train_clip, world, runs / "train_vae")
        message = refusal(capsys, train_clip, given)
    assert "train_vae.py" in message and "this is train_clip.py" in message


@pytest.mark.parametrize("part", ["vae", "clip"])
def test_a_run_of_stage_2_goes_on_with_no_other_part(world, runs, capsys, part):
    """Even where the path is the same: what lies there may have been trained anew."""
    replace(runs / part, world / f"other_{part}")
    with unchanged(runs):
        message = refusal(capsys, train_ldm, arguments(train_ldm, world, runs))
    replace(runs / part, world / part)
    assert re.search(r"_sha256: [0-9a-f]{64} -> [0-9a-f]{64}\n", message)


@pytest.mark.parametrize("script", TRAININGS, ids=lambda s: s.__name__)
def test_a_run_goes_on_with_no_other_images(world, runs, tmp_path, capsys, script):
    """They would come in another order, even if the flags are the same."""
    data = captioned(tmp_path / "data", 12)
    given = [*command(script, world, tmp_path / "run"), "--data", str(data)]
    script.main(given)
    metadata = (data / "metadata.jsonl").read_text()
    (data / "000.png").rename(data / "zzz.png")
    (data / "metadata.jsonl").write_text(metadata.replace("000.png", "zzz.png"))
    message = refusal(capsys, script, given)
    assert re.search(r"data_files\.sha256: [0-9a-f]{64} -> [0-9a-f]{64}\n", message)
    (data / "zzz.png").unlink()
    captioned(data, 13)
    message = refusal(capsys, script, given)
    assert re.search(r"data_files\.(training|held_out): \d+ -> \d+\n", message)


def replace(folder: Path, source: Path) -> None:
    shutil.rmtree(folder)
    shutil.copytree(source, folder)


@contextmanager
def unfinished(run: Path) -> Iterator[None]:
    """The run as it was before its model was written; a finished one would be left as it is."""
    aside = run.with_name(f"{run.name}-model")
    (run / "model").rename(aside)
    try:
        yield
    finally:
        shutil.rmtree(run / "model", ignore_errors=True)
        aside.rename(run / "model")


def test_a_cache_of_another_autoencoder_is_not_used(world, runs, capsys):
    """A cache from elsewhere, in a run that is about to begin."""
    run = runs / "train_ldm"
    mark = run / "cache" / "latent_cache.json"
    right = mark.read_text()
    mark.write_text(re.sub('"vae_sha256": "[0-9a-f]{64}"', '"vae_sha256": "0"', right))
    with unfinished(run), unchanged(runs):
        message = refusal(capsys, train_ldm, arguments(train_ldm, world, runs))
    mark.write_text(right)
    assert str(run / "cache") in message
    assert re.search(r"vae_sha256: .*\b0\b.*[0-9a-f]{64}", message)


def test_a_folder_that_is_no_run_is_left_alone(world, tmp_path, capsys):
    (tmp_path / "thesis.txt").write_text("two years of work")
    for script in TRAININGS:
        with unchanged(tmp_path):
            message = refusal(capsys, script, command(script, world, tmp_path))
        assert f"{tmp_path} " in message and "config.json" in message
        out = tmp_path / "thesis.txt" / "run"
        assert str(out) in refusal(capsys, script, command(script, world, out))


@pytest.mark.parametrize(
    ("file", "pattern"),
    [
        ("config.json", "train_vae/config.json"),
        ("state/step-0000002/autoencoder.safetensors", "train_vae/state/step-0000002"),
        ("state/step-0000002/update.json", "train_vae/state/step-0000002"),
    ],
)
def test_a_damaged_run_says_what_to_do(world, runs, capsys, file, pattern):
    path = runs / "train_vae" / file
    content = path.read_bytes()
    path.write_bytes(content[:-10])
    with unfinished(runs / "train_vae"):
        message = refusal(capsys, train_vae, arguments(train_vae, world, runs))
    path.write_bytes(content)
    assert re.search(pattern, message, flags=re.DOTALL)


def test_numbers_cut_short_by_a_crash_do_not_stop_a_run(world, runs):
    file = runs / "train_vae" / "metrics.jsonl"
    whole = file.read_text()
    file.write_text(whole + '{"step": 2, "psn')
    with unfinished(runs / "train_vae"):
        train_vae.main(arguments(train_vae, world, runs))
    assert file.read_text() == whole


# A full disk. A limit on the size of files stands in for it: the write that passes it fails.


@contextmanager
def disk_of(size: int) -> Iterator[None]:
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def full(capsys: pytest.CaptureFixture, script: ModuleType, given: list[str], size: int) -> str:
    with disk_of(size):
        message = refusal(capsys, script, given)
    assert os.strerror(errno.EFBIG) in message
    return message


def test_a_disk_too_full_for_the_cache(world, tmp_path, capsys):
    given = command(train_ldm, world, tmp_path / "run")
    assert "run/cache" in full(capsys, train_ldm, given, size=20_000)
    assert not (tmp_path / "run" / "cache").exists()
    train_ldm.main(given)  # there is space again
    assert (tmp_path / "run" / "model").is_dir()


@pytest.mark.parametrize("script", [train_clip, train_vae], ids=lambda s: s.__name__)
def test_a_disk_too_full_for_the_state(world, tmp_path, capsys, script):
    given = command(script, world, tmp_path / "run")
    full(capsys, script, given, size=300_000)
    left = {Path(file).parts[1] for file in tree(tmp_path)}
    assert left <= {"config.json", "history.jsonl", "metrics.jsonl", "tb", "previews"}
    script.main(given)  # there is space again
    assert (tmp_path / "run" / "model").is_dir()


@pytest.mark.parametrize("script", TRAININGS, ids=lambda s: s.__name__)
def test_a_disk_too_full_for_the_model_loses_nothing(world, runs, capsys, script):
    """No half model is left, and the same command again writes the whole one."""
    run = runs / script.__name__
    given = arguments(script, world, runs)
    files = sorted(tree(run / "model"))
    with unfinished(run):
        with unchanged(run / "state"):
            full(capsys, script, given, size=300_000)
        assert not [path for path in run.iterdir() if path.name.startswith((".", "model"))]
        script.main(given)
        assert sorted(tree(run / "model")) == files


def test_a_disk_too_full_for_a_picture_keeps_the_others(world, tmp_path, capsys, monkeypatch):
    sample.main(command(sample, world, tmp_path))
    before, write, calls = tree(tmp_path), output.encode_image, []

    def larger(picture, *how):
        calls.append(picture)
        return write(picture, *how) + bytes(100_000 * (len(calls) > 1))

    given = command(sample, world, tmp_path, "-n", 3)
    with monkeypatch.context() as patched:
        patched.setattr(output, "encode_image", larger)
        assert "00002.png" in full(capsys, sample, given, size=50_000)
    assert {file: tree(tmp_path)[file] for file in before} == before
    assert sorted(tree(tmp_path)) == ["00000.png", "00001.png"]
    sample.main(given)  # there is space again
    names = [f"{k:05d}.png" for k in range(5)]
    assert sorted(tree(tmp_path)) == [*names, "grid-0000.png"]
