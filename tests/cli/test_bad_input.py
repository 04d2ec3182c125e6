"""Mistakes of users: one message that says what to do, status 2, and nothing written or lost."""

from pathlib import Path

import pytest

import check
import evaluate
import sample
import train_clip
import train_ldm
import train_vae
from foundation.errors import UserError
from tests.helpers.bad_calls import TRAININGS, command, refusal
from tests.helpers.images import captioned, picture, truncated, write_metadata

# The data folder.


def data_with(root: Path, kind: str) -> Path:
    """A data folder with one thing wrong."""
    folder = root / kind
    if kind == "no captions":
        for k in range(12):
            picture(folder / f"{k:03d}.png", seed=k)
    elif kind == "no images":
        folder.mkdir()
        write_metadata(folder, [{"file_name": "a.png", "text": "an apple"}])
    elif kind != "missing":
        captioned(folder, 12)
    if kind == "a caption missing":
        picture(folder / "lonely.png", seed=99)
    elif kind == "an image missing":
        (folder / "003.png").unlink()
    elif kind == "a broken image":
        truncated(folder / "013.jpg")
    return folder


DATA_MISTAKES = {  # kind -> what the message must name
    "missing": r"/missing\b",
    "no images": r"/no images\b.*\.png.*1 \.jsonl",
    "no captions": r"\b12 of 12 images.*000\.png",
    "a caption missing": r"\b1 of 13 images.*lonely\.png",
    "an image missing": r"003\.png.*metadata\.jsonl line 4",
    "a broken image": r"013\.jpg.*check\.py",
}


@pytest.fixture(scope="module")
def bad_data(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("bad")
    return {kind: data_with(root, kind) for kind in DATA_MISTAKES}


@pytest.mark.parametrize("kind", DATA_MISTAKES)
def test_data_folders(refused, bad_data, kind):
    for script in TRAININGS:
        if script is not train_vae or "caption" not in kind:  # stage 1 needs none
            refused(script, DATA_MISTAKES[kind], "--data", bad_data[kind])


def test_an_empty_data_folder(refused, world):
    for script in TRAININGS:
        refused(script, r"/empty\b.*\.png", "--data", world / "empty")


def test_a_misspelled_data_folder_is_guessed_by_its_name(refused, world):
    refused(train_vae, r"/dat\b.*/data\?", "--data", world / "dat")


@pytest.mark.parametrize(
    "script",
    [train_clip, *(pytest.param(s, marks=pytest.mark.slow) for s in (train_vae, train_ldm))],
)
def test_broken_images_can_be_left_out(world, bad_data, tmp_path, capsys, script):
    given = ("--data", bad_data["a broken image"], "--skip-unusable", "--dry-run")
    script.main(command(script, world, tmp_path / "out", *given))
    assert "11 images (1 held out)" in capsys.readouterr().out


def test_a_single_image_cannot_be_held_out(refused, tmp_path_factory):
    data = captioned(tmp_path_factory.mktemp("one"), 1)
    refused(train_ldm, r"\b1 image", "--data", data)


def test_check_names_the_mistakes_of_a_folder_and_ends_with_status_1(bad_data, capsys):
    for kind, path in (("no captions", "000.png"), ("a broken image", "013.jpg")):
        with pytest.raises(SystemExit) as stopped:
            check.main([str(bad_data[kind]), "--batch-size", "4"])
        assert stopped.value.code == 1
        text = capsys.readouterr().out
        assert "PROBLEM: " in text and path in text


# Flags.

NUMBERS = [
    ("--steps", "0", "--steps is 0"),
    ("--batch-size", "0", "--batch-size is 0"),
    ("--batch-size", "100", r"\b11\b.*\b100\b"),
    ("--learning-rate", "-1", r"--learning-rate is -1\.0.*\b0\.00"),  # and the default
    ("--learning-rate", "nan", "--learning-rate is nan"),
    ("--warmup", "-1", "--warmup is -1"),
    ("--held-out", "1", r"--held-out is 1\.0"),
    ("--held-out", "-0.5", r"--held-out is -0\.5"),
    ("--save-every", "0", "--save-every is 0"),
    ("--device", "nonsense", "--device nonsense .*--device cpu"),
    ("--device", "meta", "--device meta .*--device cpu"),
    ("--preset", "smal-64", "'smal-64'.*'small-64'"),
    ("--preset", "", "''.*tiny-32"),
    ("--learning-rte", "1", "--learning-rte.*--learning-rate"),
]


@pytest.mark.parametrize("script", TRAININGS, ids=lambda s: s.__name__)
def test_flags_that_all_trainings_have(refused, script):
    for flag, value, pattern in NUMBERS:
        refused(script, pattern, flag, value)


@pytest.mark.parametrize(
    ("script", "pattern", "flags"),
    [
        (train_clip, "--batch-size is 1", ["--batch-size", "1"]),
        (train_clip, "--context-length is -5", ["--context-length", "-5"]),
        (train_clip, "--size is 33.*even", ["--size", "33"]),
        (train_clip, "--size is 30.*32", ["--size", "30"]),
        (train_clip, "--augment .*--preset judge --size", ["--augment"]),
        (train_clip, r"\b2 tokens.*\b3\b", ["--context-length", "2"]),
        (train_vae, "--size 30 .*--size 28", ["--size", "30"]),
        (train_vae, "--size is -4", ["--size", "-4"]),
        (train_vae, r"000\.png.*\b5\b", ["--channels", "5"]),
        (train_vae, r"kl_weight is -1\.0", ["--kl-weight", "-1"]),
        (train_ldm, r"--size 30 .*\b8\b.*\b4\b.*\b2\b", ["--size", "30"]),
        (train_ldm, "--size 36 .*--size 32", ["--size", "36"]),
        (train_ldm, r"--caption-dropout is 2\.0", ["--caption-dropout", "2"]),
        (train_ldm, "prediction noise.*t = 999", ["--noise-schedule", "linear"]),
        (train_ldm, "'nois'.*'noise'", ["--prediction", "nois"]),
    ],
)
def test_flags_of_one_training(refused, script, pattern, flags):
    if "linear" in flags:
        flags = [*flags, "--prediction", "noise", "--zero-terminal-snr"]
    refused(script, pattern, *flags)


@pytest.mark.parametrize("script", [sample, evaluate], ids=lambda s: s.__name__)
def test_flags_of_sampling(refused, script):
    refused(script, r"\b1 to 1000\b.*\b0\b", "--steps", 0)
    refused(script, r"\b1 to 1000\b.*\b1001\b", "--steps", 1001)
    refused(script, r"dpm\+\+2m.*dpmpp_2m", "--sampler", "dpm++2m")
    refused(script, "--guidance-scale is nan", "--guidance-scale", "nan")
    refused(script, r"--seed .*-1", "--seed", "-1")
    refused(script, "--device nonsense .*--device cpu", "--device", "nonsense")


def test_flags_of_sample(refused, world):
    refused(sample, "--count is 0", "-n", 0)
    refused(sample, "--batch-size is 0", "--batch-size", 0)
    refused(sample, r"\b32x30\b.*\b8\b.*\b32x24\b", "--height", 30)
    refused(sample, r"--width is 0\b", "--width", 0)
    refused(sample, r"--height is 32000000\b", "--height", 32000000)
    file = world / "data" / "000.png"
    refused(sample, r"--out .*000\.png", "--out", file)
    refused(evaluate, "--samples is 0", "--samples", 0)


def test_prompts_from_files(refused, world, tmp_path_factory):
    folder = tmp_path_factory.mktemp("prompts")
    (folder / "blank.txt").write_text("\n  \n")
    (folder / "latin.txt").write_bytes(b"tea\ncaf\xe9\n")
    refused(sample, r"/blank\.txt\b", "--prompts", folder / "blank.txt")
    refused(sample, r"/latin\.txt\b.*line 2\b", "--prompts", folder / "latin.txt")
    refused(sample, r"/nowhere\.txt\b", "--prompts", folder / "nowhere.txt")
    (folder / "signs.txt").write_text("a cat\na (red cat\n")
    refused(sample, r"signs\.txt, line 2: .*a .red cat", "--prompts", folder / "signs.txt")
    (folder / "start.jsonl").write_text(
        '{"prompt": "a"}\n{"prompt": "b", "init_image": "none.png"}'
    )
    refused(sample, r"start\.jsonl, line 2: none\.png: ", "--prompts", folder / "start.jsonl")


def test_no_prompt_at_all(world, tmp_path, capsys):
    arguments = command(sample, world, tmp_path / "out")
    arguments.remove("red")
    assert 'python sample.py "' in refusal(capsys, sample, arguments)


@pytest.mark.parametrize("words", [["task", "m", "--data", "d"], ["reconstruct", "m", "p"],
                                   ["compare", "a", "b"]])  # fmt: skip
def test_evaluations_of_one_process_refuse_several(words, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("foundation.collectives.world_size", lambda: 2)
    with pytest.raises(UserError, match="without torchrun"):
        evaluate.main(words)
    assert not any(tmp_path.iterdir())
