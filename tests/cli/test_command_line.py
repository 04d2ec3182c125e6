"""Help, presets and dry runs of the scripts, and what sample.py writes."""

import dataclasses
import json
import re
import shlex
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from PIL import Image

import app
import check
import evaluate
import export
import sample
import train_clip
import train_ldm
import train_vae
from autoencoder import PRESETS as AUTOENCODERS
from conditioning.clip import PRESETS as CLIPS
from ldm.unet import PRESETS as UNETS
from tests.helpers.bad_calls import CONFIGS, TRAININGS, command, tree
from training.cli import parse, run_main

ROOT = Path(__file__).parents[2]
COMMANDS = (check, train_clip, train_vae, train_ldm, sample, evaluate, export, app)
SCRIPTS = {script.__name__: script for script in COMMANDS}
ARCHITECTURES = {train_clip: CLIPS, train_vae: AUTOENCODERS, train_ldm: UNETS}
REQUIRED = ("--data", "d", "--out", "o")
RECIPES = [(script, name) for script in TRAININGS for name in script.PRESETS]


def configuration(script: ModuleType, *arguments: str) -> Any:
    """What the script would run with."""
    config = app.Config if script is app else CONFIGS[script]
    return parse(config, arguments, script.__doc__, getattr(script, "PRESETS", None))


def required(script: ModuleType) -> tuple[str, ...]:
    parts = ("--vae", "v", "--text-encoder", "t")
    return (*REQUIRED, *parts) if script is train_ldm else REQUIRED


def shown_help(capsys: pytest.CaptureFixture, script: ModuleType, *arguments: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        script.main([*arguments, "--help"])
    assert stopped.value.code == 0
    return capsys.readouterr().out


# Help.


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_starts_with_an_example_that_works(name, capsys):
    text = shown_help(capsys, SCRIPTS[name])
    example = text.split("\n\n")[0]
    python, file, *arguments = shlex.split(example)
    assert (python, file) == ("python", f"{name}.py")
    configuration(SCRIPTS[name], *arguments)


@pytest.mark.parametrize("name", sorted(SCRIPTS.keys() - {"app"}))  # which shows the demo's page
def test_a_call_without_flags_names_what_is_missing(name, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", [f"{name}.py"])
    with pytest.raises(SystemExit) as stopped:
        run_main(SCRIPTS[name].main)
    assert stopped.value.code == 2
    missing = "no prompt given" if name == "sample" else f"Missing from {name}.py"
    assert missing in capsys.readouterr().err


def documented_commands() -> list[str]:
    """Calls of our scripts in indented or fenced lines of the guides."""
    found = []
    for file in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        text = file.read_text(encoding="utf-8").replace("\\\n", " ")
        found += re.findall(r"^\s*python (\w+\.py .*)$", text, flags=re.MULTILINE)
    return [line for line in found if not line.startswith("run.py ")]


@pytest.mark.parametrize(
    ("script", "given", "ours"),
    [
        (train_ldm, "--lr", "--learning-rate"),
        (train_vae, "--resolution=64", "--size"),
        (sample, "--cfg_scale", "--guidance-scale"),
    ],
)
def test_flags_of_other_programs_are_translated(script, given, ours, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", [f"{script.__name__}.py", given, "1"])
    with pytest.raises(SystemExit) as ended:
        script.main()
    assert ended.value.code == 2
    assert f"is called {ours} here" in capsys.readouterr().err


def test_flags_that_are_not_needed_here_are_explained(capsys):
    with pytest.raises(SystemExit):
        train_vae.main(["--data", "d", "--out", "o", "--resume_from_checkpoint", "latest"])
    message = capsys.readouterr().err
    assert "--resume-from-checkpoint is not needed here: the same command again" in message


def test_documented_commands_work():
    commands = documented_commands()
    assert {shlex.split(line)[0] for line in commands} >= {"train_ldm.py", "sample.py"}
    for line in commands:
        file, *arguments = shlex.split(line, comments=True)
        configuration(SCRIPTS[Path(file).stem], *arguments)


# Presets.


def flat(values: dict[str, Any]) -> dict[str, Any]:
    """A preset's values by flag; what is nested is given as flags of its own."""
    flags = {}
    for name, value in values.items():
        nested = dataclasses.is_dataclass(value)
        flags |= flat(vars(value)) if nested else {"--" + name.replace("_", "-"): value}
    return flags


@pytest.mark.parametrize(("script", "preset"), RECIPES)
def test_presets_set_the_defaults_and_help_shows_them(script, preset, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    given = configuration(script, *required(script), "--preset", preset)
    assert given.preset == preset
    assert {name: getattr(given, name) for name in script.PRESETS[preset]} == script.PRESETS[preset]

    text = " ".join(shown_help(capsys, script, f"--preset={preset}").split())
    for flag, value in flat(script.PRESETS[preset]).items():
        if isinstance(value, bool):
            assert (flag if not value else flag.replace("--", "--[no-]")) in text
        elif value != "":
            default = rf"{flag}\b((?! --[a-z]).)*default: {re.escape(str(value))}\)"
            assert re.search(default, text), flag


@pytest.mark.parametrize(("script", "preset"), RECIPES)
def test_other_flags_override_a_preset(script, preset):
    for order in (("--preset", preset, "--steps", "7"), ("--steps", "7", "--preset", preset)):
        assert configuration(script, *required(script), *order).steps == 7


def test_every_recipe_has_an_architecture():
    for script, preset in RECIPES:
        assert preset in ARCHITECTURES[script]
    for script in TRAININGS:
        default = next(f.default for f in dataclasses.fields(CONFIGS[script]) if f.name == "preset")
        assert default in script.PRESETS


@pytest.mark.parametrize(
    "preset",
    [
        *("tiny-32", "fashion-32", "demo", "small-64", "small-128"),
        *("base-128", "base-256", "base-512"),
    ],
)
def test_presets_of_one_name_fit_together(preset):
    stages = [configuration(s, *required(s), "--preset", preset) for s in (train_vae, train_ldm)]
    assert stages[0].size == stages[1].size
    halvings = sum(
        len(architecture.block_out_channels) - 1
        for architecture in (AUTOENCODERS[preset], UNETS[preset])
    )
    assert stages[0].size % 2**halvings == 0
    assert preset in train_clip.PRESETS


# Dry runs.


@pytest.mark.parametrize("script", TRAININGS, ids=lambda s: s.__name__)
def test_a_dry_run_prints_the_plan_and_writes_nothing(world, tmp_path, capsys, script):
    before = tree(world)
    script.main(command(script, world, tmp_path / "run", "--dry-run"))
    text = capsys.readouterr().out
    assert "million parameters" in text and "2 steps of 4" in text
    assert list(tmp_path.iterdir()) == [] and tree(world) == before


# What sample.py writes.


def drawn(world: Path, out: Path, *flags: object) -> list[str]:
    sample.main(command(sample, world, out, *flags))
    return sorted(path.name for path in out.iterdir())


def test_pictures_are_numbered_after_the_highest_and_never_overwritten(world, tmp_path):
    assert drawn(world, tmp_path, "-n", 2) == ["00000.png", "00001.png", "grid-0000.png"]
    (tmp_path / "00000.png").unlink()
    (tmp_path / "00007.png").write_text("mine")
    (tmp_path / "00003.jpg").write_text("mine, too")
    before = tree(tmp_path)
    after = drawn(world, tmp_path, "-n", 2)
    assert {"00008.png", "00009.png", "grid-0001.png"} == set(after) - set(before)
    assert {name: tree(tmp_path)[name] for name in before} == before


def test_a_single_picture_has_no_grid(world, tmp_path):
    assert drawn(world, tmp_path) == ["00000.png"]
    assert drawn(world, tmp_path / "more", "-n", 2, "--no-grid") == ["00000.png", "00001.png"]


def test_a_picture_says_how_to_draw_it_again(world, tmp_path):
    settings = ("--guidance-scale", "0", "--sampler", "ddpm", "--negative-prompt", "café")
    drawn(world, tmp_path / "first", "-n", 2, "--seed", "5", "--steps", "2", *settings)
    picture = Image.open(tmp_path / "first" / "00001.png")
    facts = json.loads(picture.text["latentsmith"])
    assert (facts["prompt"], facts["seed"]) == ("red", 6)  # the second picture: seed + 1
    readable = picture.text["parameters"]
    assert readable.startswith("red\n") and "guidance_scale: 0.0" in readable
    assert "seed: 6" in readable and "negative_prompt: café" in readable

    assert set(facts["hashes"]) == {"unet", "autoencoder", "text_encoder"}


def test_seed_zero_is_told(world, tmp_path):
    drawn(world, tmp_path)
    assert "seed: 0" in Image.open(tmp_path / "00000.png").text["parameters"]


def test_prompts_of_a_file_come_after_those_given(world, tmp_path):
    prompts = written(tmp_path, "\ufeffgreen\n\n  blue \n")
    drawn(world, tmp_path / "out", "--prompts", prompts, "-n", 2)
    files = sorted((tmp_path / "out").glob("0*.png"))
    prompts = [json.loads(Image.open(file).text["latentsmith"])["prompt"] for file in files]
    assert prompts == ["red", "red", "green", "green", "blue", "blue"]


def test_what_is_cut_from_a_prompt_is_told(world, tmp_path, capsys):
    long = "word " * 40
    drawn(world, tmp_path, "--prompts", written(tmp_path, long))
    warning = capsys.readouterr().out
    assert "reads 24 tokens" in warning and "has 42" in warning
    drawn(world, tmp_path, "--negative-prompt", long)
    assert "has 42" in capsys.readouterr().out
    drawn(world, tmp_path, "--prompts", written(tmp_path, "word " * 22))
    assert "warning" not in capsys.readouterr().out


def written(folder: Path, text: str) -> Path:
    (folder / "prompts.txt").write_text(text, encoding="utf-8")
    return folder / "prompts.txt"


def test_guidance_without_caption_dropout_is_warned_of(world, tmp_path, capsys):
    shutil.copytree(world / "ldm", tmp_path / "ldm")
    file = tmp_path / "ldm" / "model" / "latentsmith.json"
    facts = json.loads(file.read_text()) | {"provenance": {"config": {"caption_dropout": 0.0}}}
    file.write_text(json.dumps(facts))
    drawn(world, tmp_path / "out", "--model", tmp_path / "ldm")
    assert "trained with --caption-dropout 0" in capsys.readouterr().out
    drawn(world, tmp_path / "out", "--model", tmp_path / "ldm", "--guidance-scale", 1)
    drawn(world, tmp_path / "out")
    assert "warning" not in capsys.readouterr().out
