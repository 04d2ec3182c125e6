"""The console command `latentsmith`: commands, completion, and a wheel in an empty environment."""

import ast
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from latentsmith.__main__ import COMMANDS, MODULES, main
from latentsmith.completion import SCRIPTS, completion
from tests.helpers.images import captioned

ROOT = Path(__file__).parents[2]


def test_every_script_is_a_command_and_in_the_wheel():
    names = {file.stem for file in ROOT.glob("*.py")} - {"run", "setup"}
    assert names == {name.replace("-", "_") for name in COMMANDS.keys() - MODULES.keys()}
    assert SCRIPTS.keys() == COMMANDS.keys()
    (scripts,) = (
        ast.literal_eval(node.value)
        for node in ast.parse((ROOT / "setup.py").read_text()).body
        if isinstance(node, ast.Assign)
    )
    assert names == set(scripts)
    assert names == {
        word.removesuffix(".py") for word in (ROOT / "MANIFEST.in").read_text().split()
    } - {"include"}


@pytest.mark.parametrize("words", [[], ["--help"]])
def test_help_names_every_command(words, capsys):
    main(words)
    text = capsys.readouterr().out
    assert all(f"  {name} " in text for name in COMMANDS)


def test_an_unknown_command_is_refused_with_the_nearest(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["sampel"])
    assert "Did you mean 'sample'?" in capsys.readouterr().err


@pytest.mark.skipif(not shutil.which("bash"), reason="needs bash")
def test_bash_completes_commands_flags_and_values(tmp_path):
    (tmp_path / "completion").write_text(completion("bash"))
    calls = {
        "latentsmith tra": ["train-clip", "train-ldm", "train-vae"],
        "latentsmith sample --guidance-m": ["--guidance-max-norm", "--guidance-momentum"],
        "latentsmith comp": ["completion"],
        "latentsmith completion --h": ["--help"],
        "latentsmith evaluate model --sweep-st": ["--sweep-steps"],
        "latentsmith train-ldm --condition ": ["class", "none", "text"],
    }
    lines = [f"source {tmp_path}/completion"]
    for call in calls:
        words = " ".join(f"'{word}'" for word in call.split(" "))
        lines.append(f"COMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); COMPREPLY=()")
        lines.append("_tyro_latentsmith; echo ${COMPREPLY[@]}")
    done = subprocess.run(["bash", "-c", "\n".join(lines)], capture_output=True, text=True)
    assert [sorted(line.split()) for line in done.stdout.splitlines()] == list(calls.values())


@pytest.mark.slow
def test_a_wheel_draws_with_the_demo_weights_in_an_empty_environment(tmp_path):
    """The environment has the libraries of this one, but none of our packages."""

    def call(*words: object, cwd: Path) -> str:
        free = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
        done = subprocess.run(
            list(map(str, words)), cwd=cwd, capture_output=True, text=True, env=free
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    source, elsewhere = tmp_path / "source", tmp_path / "elsewhere"
    skipped = shutil.ignore_patterns(".*", "checkpoints", "data", "runs", "tests", "*.egg-info")
    shutil.copytree(ROOT, source, ignore=skipped)
    elsewhere.mkdir()
    call(sys.executable, "-m", "build", "--no-isolation", cwd=source)
    (wheel,) = (source / "dist").glob("*.whl")
    assert list((source / "dist").glob("*.tar.gz"))
    call(sys.executable, "-m", "venv", "env", cwd=tmp_path)
    (site,) = (tmp_path / "env").glob("lib/python*/site-packages")
    (site / "others.pth").write_text(sysconfig.get_path("purelib"))
    programs = tmp_path / "env" / "bin"
    call(programs / "pip", "install", "--no-deps", "--no-index", wheel, cwd=elsewhere)
    where = "import ldm, sys; print(ldm.__file__)"
    assert str(site) in call(programs / "python", "-c", where, cwd=elsewhere)
    assert "train-vae" in call(programs / "latentsmith", "--help", cwd=elsewhere)
    for shell in ("bash", "zsh"):
        script = call(programs / "latentsmith", "completion", shell, cwd=elsewhere)
        assert "train-vae" in script and "--kl-weight" in script
    data = captioned(elsewhere / "data", 40)
    checked = call(programs / "latentsmith", "check", data, "--size", 32, cwd=elsewhere)
    assert "40" in checked and "No problems found" in checked
    words = ("sample", "red heart", "--model", ROOT / "checkpoints" / "demo", "--steps", 2)
    assert "wrote " in call(programs / "latentsmith", *words, cwd=elsewhere)
    assert (elsewhere / "samples" / "00000.png").is_file()
    assert "--kl-weight" in call(programs / "latentsmith", "train-vae", "--help", cwd=elsewhere)
