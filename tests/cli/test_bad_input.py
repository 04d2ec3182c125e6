"""Mistakes of users: one message that says what to do, status 2, and nothing written or lost."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import check
import evaluate
import sample
import train_clip
import train_ldm
import train_vae
from tests.helpers.bad_calls import TRAININGS, command, refusal, tree
from tests.helpers.images import captioned, picture, truncated, write_metadata
from training.cli import run_main

ROOT = Path(__file__).parents[2]

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


DATA_MISTAKES = {
    "missing": "missing",
    "no images": r"no images in .*Images end in .*\.png.*there are 1 \.jsonl",
    "no captions": "12 of 12 images .* have no caption.*000.png.*Add captions",
    "a caption missing": "1 of 13 images .* have no caption.*lonely.png.*Add captions",
    "an image missing": "cannot be used.*003.png: is named in metadata.jsonl line 4",
    "a broken image": "cannot be used.*013.jpg: .*truncated.*check.py",
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
        refused(script, "no images in .*there are no files", "--data", world / "empty")


def test_a_misspelled_data_folder_is_guessed_by_its_name(refused, world):
    refused(train_vae, r"Did you mean \S*/data\?", "--data", world / "dat")


def test_broken_images_can_be_left_out(world, bad_data, tmp_path, capsys):
    given = ("--data", bad_data["a broken image"], "--skip-unusable", "--dry-run")
    for script in TRAININGS:
        script.main(command(script, world, tmp_path / "out", *given))
        assert "11 images (1 held out)" in capsys.readouterr().out


def test_a_single_image_cannot_be_held_out(refused, tmp_path_factory):
    data = captioned(tmp_path_factory.mktemp("one"), 1)
    refused(train_ldm, "1 image.*held_out 0", "--data", data)


def test_check_names_the_mistakes_of_a_folder_and_ends_with_status_1(bad_data, capsys):
    for kind, path in (("no captions", "000.png"), ("a broken image", "013.jpg")):
        with pytest.raises(SystemExit) as stopped:
            check.main([str(bad_data[kind]), "--batch-size", "4"])
        assert stopped.value.code == 1
        text = capsys.readouterr().out
        assert "PROBLEM: " in text and path in text


# Flags.

NUMBERS = [
    ("--steps", "0", "above 0"),
    ("--batch-size", "0", "above 0|2 or more"),
    ("--batch-size", "100", "11 .* 100.*batch_size 11"),
    ("--learning-rate", "-1", "above 0. Left out, it is"),
    ("--learning-rate", "nan", "above 0"),
    ("--warmup", "-1", "0 or more"),
    ("--held-out", "1", "0 or more, and below 1"),
    ("--held-out", "-0.5", "0 or more, and below 1"),
    ("--save-every", "0", "above 0"),
    ("--device", "nonsense", "--device nonsense cannot be used here.*--device cpu"),
    ("--device", "meta", "--device meta cannot be used here.*--device cpu"),
    ("--preset", "smal-64", "unknown preset 'smal-64'. Did you mean 'small-64'"),
    ("--preset", "", "unknown preset ''.*There are: tiny-32"),
    ("--learning-rte", "1", "--learning-rte.*Perhaps you meant:.*--learning-rate"),
]


@pytest.mark.parametrize("script", TRAININGS, ids=lambda s: s.__name__)
def test_flags_that_all_trainings_have(refused, script):
    for flag, value, pattern in NUMBERS:
        refused(script, pattern, flag, value)


@pytest.mark.parametrize(
    ("script", "pattern", "flags"),
    [
        (train_clip, "2 or more", ["--batch-size", "1"]),
        (train_clip, "--context-length is -5; it must be above 0", ["--context-length", "-5"]),
        (train_clip, "no room for text", ["--context-length", "2"]),
        (train_vae, "--size 30 is not a multiple of 4.*--size 28", ["--size", "30"]),
        (train_vae, "--size is -4; it must be above 0", ["--size", "-4"]),
        (train_vae, "gives 1 .gray., 3 .RGB. or 4.* not 5", ["--channels", "5"]),
        (train_vae, "kl_weight is -1.0; weights are 0 or more", ["--kl-weight", "-1"]),
        (train_ldm, "--size 30 is not a multiple of 8.*4 times.*2 times", ["--size", "30"]),
        (train_ldm, "--size 36 is not a multiple of 8.*--size 32", ["--size", "36"]),
        (train_ldm, "--caption-dropout is 2.0; .*from 0 to 1", ["--caption-dropout", "2"]),
        (train_ldm, "zero terminal SNR.*Use prediction", ["--noise-schedule", "linear"]),
        (train_ldm, "invalid choice 'nois'.*'noise'", ["--prediction", "nois"]),
    ],
)
def test_flags_of_one_training(refused, script, pattern, flags):
    if "linear" in flags:
        flags = [*flags, "--prediction", "noise", "--zero-terminal-snr"]
    refused(script, pattern, *flags)


@pytest.mark.parametrize("script", [sample, evaluate], ids=lambda s: s.__name__)
def test_flags_of_sampling(refused, script):
    refused(script, "1 to 1000 steps, not 0", "--steps", 0)
    refused(script, "1 to 1000 steps, not 1001", "--steps", 1001)
    refused(script, "no sampler is called 'dpm\\+\\+2m'.*mean dpmpp_2m", "--sampler", "dpm++2m")
    refused(script, "--guidance-scale is nan; it must be a finite", "--guidance-scale", "nan")
    refused(script, "--seed .*-1.* from 0 to 2\\^63 - 1", "--seed", "-1")
    refused(script, "--device nonsense cannot be used here", "--device", "nonsense")


def test_flags_of_sample(refused, world):
    refused(sample, "--count is 0; it must be above 0", "-n", 0)
    refused(sample, "--batch-size is 0; it must be above 0", "--batch-size", 0)
    refused(sample, "30 cannot be drawn.*multiples of 8. Near: 32x24", "--height", 30)
    refused(sample, "0x32 cannot be drawn", "--width", 0)
    refused(sample, "32x32000000 is asked for.*1024 million", "--height", 32000000)
    file = world / "data" / "000.png"
    refused(sample, "--out .*000.png cannot be a folder.*Choose another", "--out", file)
    refused(evaluate, "--samples is 0; it must be above 0", "--samples", 0)


def test_prompts_from_files(refused, world, tmp_path_factory):
    folder = tmp_path_factory.mktemp("prompts")
    (folder / "blank.txt").write_text("\n  \n")
    (folder / "latin.txt").write_bytes(b"tea\ncaf\xe9\n")
    refused(sample, "blank.txt", "--prompts", folder / "blank.txt")
    refused(sample, "latin.txt.*line 2", "--prompts", folder / "latin.txt")
    refused(sample, "nowhere.txt.*No such file", "--prompts", folder / "nowhere.txt")
    (folder / "signs.txt").write_text("a cat\na (red cat\n")
    refused(sample, "signs.txt, line 2: .*a .red cat", "--prompts", folder / "signs.txt")
    (folder / "start.jsonl").write_text(
        '{"prompt": "a"}\n{"prompt": "b", "init_image": "none.png"}'
    )
    refused(sample, "start.jsonl, line 2: none.png: ", "--prompts", folder / "start.jsonl")


def test_no_prompt_at_all(world, tmp_path, capsys):
    arguments = command(sample, world, tmp_path / "out")
    arguments.remove("red")
    assert "no prompt given. For example: python sample.py" in refusal(capsys, sample, arguments)


def test_memory_that_does_not_suffice(capsys):
    def main():
        np.empty(2**57)

    with pytest.raises(SystemExit) as stopped:
        run_main(main)
    assert stopped.value.code == 2
    assert capsys.readouterr().err.startswith("error: the memory does not suffice")


# Whole processes.


def test_processes_end_with_status_2_and_one_message(world, tmp_path):
    """Both at a time, since most of their time goes into imports."""
    mistakes = {
        "train_ldm.py": command(train_ldm, world, tmp_path, "--vae", world / "clip"),
        "sample.py": command(sample, world, tmp_path, "--model", world / "vae"),
    }
    processes = [
        subprocess.Popen([sys.executable, ROOT / script, *given], stderr=subprocess.PIPE, text=True)
        for script, given in mistakes.items()
    ]
    patterns = ("no autoencoder", "names the class AutoencoderKL")
    for process, pattern in zip(processes, patterns, strict=True):
        _, stderr = process.communicate()
        assert process.returncode == 2, stderr
        assert stderr.startswith("error: ") and stderr.count("\n") == 1, stderr
        assert pattern in stderr
    assert not tree(tmp_path)
