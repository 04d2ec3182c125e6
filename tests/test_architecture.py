"""The layout as a test: imports go one way, and the folders are as the documents say."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
GROUND = {"foundation", "interop"}  # what the three libraries build on
LIBRARIES = {"autoencoder", "conditioning", "ldm"}
MAY_IMPORT = {  # our packages only; third-party imports are not this test's business
    "foundation": set(),
    "interop": {"foundation"},
    "autoencoder": GROUND,
    "conditioning": GROUND,
    "ldm": GROUND,  # and ldm/pipeline the other two libraries
    "dataset": GROUND,
    "training": GROUND,
    "evaluation": GROUND,
    "stages": GROUND | LIBRARIES | {"dataset", "training", "evaluation"},
    "generation": GROUND | LIBRARIES | {"dataset", "training"},
}
OURS = {*MAY_IMPORT, "recipes", "benchmarks", "examples"}
PIPELINE = ROOT / "ldm" / "pipeline"


def our_imports(file: Path) -> set[str]:
    """Our packages that a file imports, anywhere in it."""
    modules = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            modules.add(node.module or "")
    return {module.split(".")[0] for module in modules} & OURS


@pytest.mark.parametrize("package", sorted(MAY_IMPORT))
def test_imports_only_point_downwards(package):
    files = sorted((ROOT / package).rglob("*.py"))
    assert files, f"{package} has no files"
    for file in files:
        extra = our_imports(file) - MAY_IMPORT[package] - {package}
        if PIPELINE in file.parents:
            extra -= LIBRARIES
        assert not extra, f"{file.relative_to(ROOT)} must not import {', '.join(sorted(extra))}"


def loaded_by(statement: str) -> set[str]:
    """Modules in memory after a statement in a fresh interpreter."""
    done = subprocess.run(
        [sys.executable, "-c", f"{statement}; import sys; print(*sorted(sys.modules))"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return set(done.stdout.split())


HEAVY = {"lpips", "open_clip", "torchvision", "transformers", "diffusers", "tyro", "tensorboard"}


@pytest.mark.parametrize("statement", ["import autoencoder", "import ldm.samplers, ldm.unet"])
def test_libraries_load_alone(statement):
    loaded = {module.split(".")[0] for module in loaded_by(statement)}
    allowed = GROUND | {"autoencoder" if "autoencoder" in statement else "ldm"}
    assert not loaded & (HEAVY | (OURS - allowed))


def test_the_autoencoder_does_not_load_its_training():
    loaded = loaded_by("import autoencoder")
    assert not {module for module in loaded if module.startswith("autoencoder.training")}
