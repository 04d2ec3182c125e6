"""The layout as a test: imports go one way."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LIBRARIES = {"autoencoder", "conditioning", "ldm"}
WORKSHOP = {"training", "imagetext", "evaluation"}
OURS = LIBRARIES | WORKSHOP | {"drawing", "interop", "stages", "recipes", "benchmarks"}
# The two files that see all three libraries.
PIPELINE = {Path("ldm/pipeline.py"), Path("ldm/opening.py")}
DRAWING = {
    "ldm",
    "conditioning",
    "interop",
    "training",
    "imagetext",
}  # what a part of a script sees; no package sees it


def our_imports(file: Path) -> set[str]:
    """Our packages that a file imports, anywhere in it."""
    modules = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            modules.add(node.module or "")
    return {module.split(".")[0] for module in modules} & OURS


@pytest.mark.parametrize("package", sorted(LIBRARIES | WORKSHOP | {"drawing", "interop"}))
def test_imports_only_point_downwards(package):
    files = sorted((ROOT / package).rglob("*.py"))
    assert files, f"{package} has no files"
    for file in files:
        path = file.relative_to(ROOT)
        extra = our_imports(file) - {package}
        if package in LIBRARIES:
            extra -= {"interop"}  # which itself imports none of ours
        if path in PIPELINE:
            extra -= LIBRARIES
        if package == "drawing":
            extra -= DRAWING
        assert not extra, f"{path} must not import {', '.join(sorted(extra))}"


def loaded_by(statement: str) -> set[str]:
    """Top-level modules in memory after a statement in a fresh interpreter."""
    code = f"{statement}; import sys; print(*sorted({{m.split('.')[0] for m in sys.modules}}))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


HEAVY = {"lpips", "open_clip", "torchvision", "transformers", "diffusers", "tyro", "tensorboard"}


@pytest.mark.parametrize("statement", ["import autoencoder", "import ldm.samplers, ldm.unet"])
def test_libraries_load_alone(statement):
    loaded = loaded_by(statement)
    allowed = {"interop", "autoencoder" if "autoencoder" in statement else "ldm"}
    assert not loaded & (HEAVY | (OURS - allowed))


def test_losses_are_not_part_of_importing_the_autoencoder():
    code = "import autoencoder, sys; print(*[m for m in sys.modules if m.startswith('autoenc')])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    modules = set(done.stdout.split())
    assert "autoencoder.losses" not in modules and "autoencoder.discriminator" not in modules
