"""Help, versions, completions and wrong flags are answered before slow libraries are loaded."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from latentsmith.__main__ import COMMANDS

ROOT = Path(__file__).parents[2]
PROGRAMS = [  # of one file, and tools that are modules
    *(
        file.relative_to(ROOT).as_posix()
        for folder in ("recipes", "benchmarks")
        for file in sorted((ROOT / folder).rglob("*.py"))
        if "parse(Config" in file.read_text() or "parse(Options" in file.read_text()
    ),
    *("training.tools.report", "training.tools.sequence", "training.tools.posthoc"),
]
SLOW = {  # libraries that take from a tenth of a second to several seconds to import
    *("torch", "torchvision", "open_clip", "diffusers", "transformers", "tokenizers", "lpips"),
    *("numpy", "scipy", "pandas", "sklearn", "skimage", "PIL", "pyarrow", "gradio", "tensorboard"),
}
ANSWERS = {  # words -> exit status
    ("--help",): 0,
    ("--version",): 0,
    ("--tyro-print-completion", "bash"): 0,
    ("--no-such-flag", "1"): 2,
    (): 2,  # something is missing
}
WITHOUT_FLAGS = {"sample", "app"}  # these commands need none
CALL = """
import json, sys
from latentsmith.__main__ import main

name, *calls = json.loads(sys.argv[1])
answers = []
for words in calls:
    try:
        main([name, *words])
    except SystemExit as end:
        answers.append([end.code or 0, sorted({name.split(".")[0] for name in sys.modules})])
print("\\n" + json.dumps(answers))
"""


@pytest.mark.parametrize("name", COMMANDS)
def test_no_slow_library_is_loaded(name):
    """Each command as the console command runs it, which is how Python runs the script."""
    answers = {k: status for k, status in ANSWERS.items() if k or name not in WITHOUT_FLAGS}
    calls = [list(words) for words in answers]
    if name == "evaluate":
        calls = [["model", *words] if words[:1] != ["--version"] else words for words in calls]
    done = subprocess.run(
        [sys.executable, "-c", CALL, json.dumps([name, *calls])],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(done.stdout.splitlines()[-1])
    assert [status for status, _ in found] == list(answers.values()), done.stdout + done.stderr
    for words, (_, loaded) in zip(calls, found, strict=True):
        assert not SLOW & set(loaded), f"{name} {' '.join(words)} loads {SLOW & set(loaded)}"


HELP = """
import os, runpy, sys

sys.path.insert(0, os.getcwd())
for name in sys.argv[1:]:
    sys.argv = [name, "--help"]
    try:
        if name.endswith(".py"):
            runpy.run_path(name, run_name="__main__")
        else:
            runpy.run_module(name, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        assert not end.code, name
    else:
        raise AssertionError(f"{name} did not end after its help")
    for slow in ("torch", "diffusers", "transformers", "open_clip"):
        assert slow not in sys.modules, f"{name} --help loads {slow}"
"""


def test_help_of_recipes_benchmarks_and_tools_does_not_load_torch():
    """All in one process: what one of them loads is there for the rest."""
    assert len(PROGRAMS) > 20
    done = subprocess.run(
        [sys.executable, "-c", HELP, *PROGRAMS], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_wrong_flags_of_a_benchmark_are_one_line():
    words = ["benchmarks/data_speed.py", "--images", "0"]
    done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: --images is 0") and done.stderr.count("\n") == 1
