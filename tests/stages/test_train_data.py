"""The trainings on shards, on several shapes, and on a cache that is verified."""

import json
import os

import pytest

import train_ldm
import train_vae
from tests.helpers.bad_calls import TRAINERS, command, refusal
from tests.helpers.images import picture, write_metadata
from tests.helpers.shards import make_shards
from tests.helpers.short_runs import killed_in_step, state

ASPECT = ("--max-aspect", "2", "--held-out", "0.2")


def of_three_shapes(root, count: int = 24):
    sizes = [(20, 40), (32, 32), (40, 20)]
    rows = []
    for k in range(count):
        picture(root / f"{k:03d}.png", seed=k, size=sizes[k % 3])
        rows.append({"file_name": f"{k:03d}.png", "text": f"picture number {k}"})
    write_metadata(root, rows)
    return root


def run(script, world, out, *flags) -> None:
    script.main(command(script, world, out, *flags))


@pytest.mark.parametrize("script", [train_vae, train_ldm])
def test_a_training_on_several_shapes_resumes_exactly(world, tmp_path, script, capsys):
    data = of_three_shapes(tmp_path / "data")
    flags = ("--data", data, *ASPECT, "--steps", 4, "--save-every", 2)
    run(script, world, tmp_path / "straight", *flags)
    text = capsys.readouterr().out
    assert "of 24x40" in text and "of 32x32" in text and "of 40x24" in text
    with killed_in_step(TRAINERS[script], 3):
        run(script, world, tmp_path / "parts", *flags)
    run(script, world, tmp_path / "parts", *flags)
    assert state(tmp_path / "straight").keys()
    assert state(tmp_path / "straight") == state(tmp_path / "parts")


def test_a_run_on_shards_resumes_with_its_cache_when_a_shard_is_touched(world, tmp_path):
    data = make_shards(tmp_path, 12)
    flags = ("--data", data, "--steps", 2)
    run(train_ldm, world, tmp_path / "run", *flags)
    about = json.loads((tmp_path / "run" / "cache" / "latent_cache.json").read_text())
    assert about["identity"]["shapes"] == [[32, 32]]
    kept = state(tmp_path / "run")
    os.utime(tmp_path / "shards" / "000.tar", ns=(7, 7))  # same bytes: read again, same cache
    (tmp_path / "run" / "state").rename(tmp_path / "old")
    (tmp_path / "run" / "history.jsonl").unlink()  # it says that all is done
    run(train_ldm, world, tmp_path / "run", *flags)
    assert state(tmp_path / "run") == kept


def test_a_stale_or_damaged_cache_is_refused(world, tmp_path, capsys, monkeypatch):
    data = of_three_shapes(tmp_path / "data", 12)
    flags = ("--data", data, "--steps", 2)
    run(train_ldm, world, tmp_path / "run", *flags)
    capsys.readouterr()
    for folder in ("state", "model"):
        (tmp_path / "run" / folder).rename(tmp_path / folder)

    def message(*more) -> str:
        return refusal(
            capsys, train_ldm, command(train_ldm, world, tmp_path / "run", *flags, *more)
        )

    image = data / "004.png"
    before = image.stat()
    content = image.read_bytes()
    image.write_bytes(
        content[:-20] + b"!" + content[-19:]
    )  # within the check sum of the last chunk
    os.utime(image, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert "004.png" in message("--verify-cache")
    image.write_bytes(content)
    os.utime(image, ns=(before.st_atime_ns, before.st_mtime_ns))
    picture(image, seed=99, size=(32, 32))
    assert "data_files.sha256: " in message()
    image.write_bytes(content)
    moments = tmp_path / "run" / "cache" / "moments-0.npy"
    with moments.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"!")
    assert "moments-0.npy" in message("--verify-cache")


def test_an_aspect_ratio_below_1_is_refused(refused):
    for script in (train_vae, train_ldm):
        refused(script, r"--max-aspect is 0\.5", "--max-aspect", "0.5")
