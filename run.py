"""Do what the Makefile names, also where there is no make: python run.py test

demo        from a fresh machine to a picture, by the weights in checkpoints/demo; then train-demo
train-demo  from a fresh machine to a model of your own: data, three trainings, sixteen prompts
test        from a fresh machine to a green test run: lint, then the tests
lint        style and types: ruff check, ruff format, pyright
format      rewrite the code in the project's format
coverage    the tests, and the lines and branches that none of them runs
install     only make the environment
clean       remove the environment and what tools left

Needs Python 3.11 or newer with its venv module; everything else goes into .venv.
"""

# Older Pythons must be able to read this file, so that they can say that they are too old.
import argparse
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
PYTHON = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
READY = VENV / "ready"  # newer than what it was installed from
REQUIREMENTS = ROOT / "setup.cfg"
OLDEST = (3, 11)
DATA = "data/openmoji"
RUNS = "runs/demo"
PROMPTS = "docs/demo-prompts.txt"
SECONDS_TO_STOP = 10  # after the pictures of the demo
LEFTOVERS = (
    *(".venv", "build", "*.egg-info", ".pytest_cache", ".ruff_cache", ".hypothesis"),
    *(".coverage", ".coverage.*"),
)


# Targets ------------------------------------------------------------------------------------------


def demo(workers: int) -> None:
    """Draw sixteen prompts by the weights in checkpoints/demo, then train a model."""
    install(workers)
    draw("checkpoints/demo", "samples/shipped")
    print(
        "The model in checkpoints/demo made these pictures. Now a model of your own is trained.\n"
        "The three trainings take about 15 minutes on two cores that compute in bf16, and 40 on "
        f"older ones. They start in {SECONDS_TO_STOP} seconds.\n"
        "Press Ctrl-C to stop here. 'train-demo' in place of 'demo' starts them later, or "
        "continues them.",
        flush=True,
    )
    time.sleep(SECONDS_TO_STOP)
    train_demo(workers)


def train_demo(workers: int) -> None:
    """Make the data, train the three stages, and draw sixteen prompts."""
    install(workers)
    if not (ROOT / DATA / "metadata.jsonl").exists():
        script("recipes/openmoji.py", DATA)
    clip, vae, ldm = (RUNS + "/" + name for name in ("clip", "vae", "ldm"))
    common = ("--preset", "demo", "--data", DATA)
    script("check.py", DATA, "--preset", "demo")
    script("train_clip.py", *common, "--out", clip)
    script("train_vae.py", *common, "--out", vae)
    script("train_ldm.py", *common, "--out", ldm, "--vae", vae, "--text-encoder", clip)
    draw(ldm, "samples/demo")


def draw(model: str, out: str) -> None:
    """Draw sixteen prompts, and a sheet of them that is large enough to be looked at."""
    script("sample.py", "--prompts", PROMPTS, "--model", model, "--out", out, "--grid-cell", "256")


def test(workers: int) -> None:
    """Run lint, then the tests."""
    lint(workers)
    run_tests(workers)


def lint(workers: int) -> None:
    """Check style and types."""
    install(workers)
    tool("ruff", "check", ".")
    tool("ruff", "format", "--check", ".")
    tool("pyright")


def format_code(workers: int) -> None:
    """Rewrite the code in the project's format."""
    install(workers)
    tool("ruff", "check", "--fix", ".")
    tool("ruff", "format", ".")


def coverage(workers: int) -> None:
    """Run the tests, and list the lines and branches that none of them runs."""
    install(workers)
    run_tests(workers, "--cov", "--cov-report=term-missing:skip-covered")


def install(workers: int) -> None:
    """Make the environment, unless it is there and newer than the list of requirements."""
    if READY.exists() and READY.stat().st_mtime >= REQUIREMENTS.stat().st_mtime:
        return
    if not is_running_inside():
        call(sys.executable, "-m", "venv", str(VENV))
    # Python compiles what it imports; compiling all modules takes pip two minutes.
    pip = ("pip", "install", "--disable-pip-version-check", "--no-compile", "-q")
    print(
        f"Installing PyTorch and the rest into {VENV.name}. On Linux PyTorch comes with CUDA, "
        "several GB, unless that for CPUs is there already: see Installing in README.md.",
        flush=True,
    )
    tool(*pip, "-e", ".[train,recipes,test]")
    READY.touch()


def clean(workers: int) -> None:
    """Remove the environment and what tools left."""
    if is_running_inside():
        sys.exit("This Python is the one in .venv. Use the one that .venv was made with.")
    for pattern in LEFTOVERS:
        for path in ROOT.glob(pattern):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(str(path))
            else:
                path.unlink()


TARGETS = {
    "demo": demo,
    "train-demo": train_demo,
    "test": test,
    "lint": lint,
    "format": format_code,
    "coverage": coverage,
    "install": install,
    "clean": clean,
}


# Commands -----------------------------------------------------------------------------------------


def run_tests(workers: int, *options: str) -> None:
    """Run the tests in several processes, with one thread each so that none waits for another."""
    os.environ["OMP_NUM_THREADS"] = "1"
    share = ("-n", str(workers), "--dist", "loadfile", "--no-loadscope-reorder")
    tool("pytest", *share, *options)


def script(file: str, *options: str) -> None:
    """Run a program of this project in the environment."""
    call(str(PYTHON), file, *options)


def tool(module: str, *options: str) -> None:
    """Run a program that is installed in the environment."""
    call(str(PYTHON), "-m", module, *options)


def call(*command: str) -> None:
    """Show and run a command; if it fails, end with its status.

    Ctrl-C reaches it, too: a training saves its state first, so it is waited for.
    """
    print(shown(command), flush=True)
    process = subprocess.Popen(command, cwd=str(ROOT))
    before = signal.signal(signal.SIGTERM, lambda number, frame: process.terminate())
    status = None
    while status is None:
        try:
            status = process.wait()
        except KeyboardInterrupt:
            continue
    signal.signal(signal.SIGTERM, before)
    if status:
        sys.exit(status if status > 0 else 128 - status)  # as shells say which signal ended it


def shown(command: "tuple[str, ...]") -> str:
    """Return a command as one would type it in the project's folder."""
    words = [word.replace(str(ROOT) + os.sep, "") for word in command]
    return subprocess.list2cmdline(words) if os.name == "nt" else " ".join(map(shlex.quote, words))


def is_running_inside() -> bool:
    """Return whether this Python is the one in the environment."""
    return VENV.is_dir() and os.path.samefile(sys.prefix, str(VENV))


def main() -> None:
    """Run the target that the command line names."""
    if sys.version_info < OLDEST:
        sys.exit(
            f"Python {OLDEST[0]}.{OLDEST[1]} or newer is needed, and this is {sys.version_info[0]}."
            f"{sys.version_info[1]}. Name one, as in: python3.12 run.py test, make test "
            "PYTHON=python3.12, or on Windows: py -3.12 run.py test."
        )
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("target", choices=TARGETS, metavar="TARGET", help="one of the above")
    parser.add_argument("--workers", type=int, default=2, help="processes that run tests (2)")
    given = parser.parse_args()
    try:
        TARGETS[given.target](given.workers)
    except KeyboardInterrupt:
        sys.exit("\nstopped.")


if __name__ == "__main__":
    main()
