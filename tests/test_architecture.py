"""Hold the layout: imports go one way, and folders and files are as the documents say."""

import ast
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pytest

from tests.conftest import LINUX_ONLY

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
    "commands": GROUND | LIBRARIES | {"dataset", "training", "evaluation", "stages", "generation"},
    "web": GROUND | LIBRARIES | {"dataset", "training", "evaluation", "stages", "generation"},
}
PROGRAMS = {"recipes", "benchmarks", "examples", "docs", "latentsmith"}  # nothing imports them
OURS = {*MAY_IMPORT, *PROGRAMS}
PIPELINE = ROOT / "ldm" / "pipeline"
SCRIPTS = sorted(ROOT.glob("*.py"))
MOST_FILES = 16  # of a folder, its __init__.py not counted; the rule says about 15
MOST_LINES = 500
LONG_FILES: set[str] = set()  # files that may be longer, each with its reason


def sources(*folders: str) -> list[Path]:
    """List the Python files of these folders of the project, subfolders included."""
    return sorted(file for folder in folders for file in (ROOT / folder).rglob("*.py"))


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def our_imports(file: Path) -> set[str]:
    """Collect which of our packages a file imports, at its top or inside a function."""
    modules = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            modules.add(node.module or "")
    return {module.split(".")[0] for module in modules} & OURS


@pytest.mark.parametrize("package", sorted(MAY_IMPORT))
def test_imports_only_point_downwards(package):
    files = sources(package)
    assert files, f"{package} has no files"
    for file in files:
        extra = our_imports(file) - MAY_IMPORT[package] - {package}
        if PIPELINE in file.parents:
            extra -= LIBRARIES
        assert not extra, f"{relative(file)} must not import {', '.join(sorted(extra))}"


def modules_after(statement: str) -> set[str]:
    """Return the names of the modules in memory after a statement in a fresh interpreter."""
    done = subprocess.run(
        [sys.executable, "-c", f"{statement}; import sys; print(*sorted(sys.modules))"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return set(done.stdout.split())


HEAVY = {"lpips", "open_clip", "torchvision", "transformers", "diffusers", "tyro", "tensorboard"}


@pytest.mark.parametrize(
    "statement", ["from autoencoder import Autoencoder", "import ldm.samplers, ldm.unet"]
)
def test_libraries_load_alone(statement):
    loaded = {module.split(".")[0] for module in modules_after(statement)}
    allowed = GROUND | {"autoencoder" if "autoencoder" in statement else "ldm"}
    assert not loaded & (HEAVY | (OURS - allowed))


SLOW = {"open_clip", "torchvision", "transformers", "diffusers", "tensorboard", "scipy", "sympy"}
IMPORTS_SLOW = {"autoencoder/training/lpips.py"}  # imported where it is needed


def test_what_is_slow_to_import_is_imported_where_it_is_needed():
    """At the top of a module it would make `--help` and every error wait for seconds."""
    for file in sources(*MAY_IMPORT):
        at_top = ast.parse(file.read_text(encoding="utf-8")).body
        names = {
            alias.name for node in at_top if isinstance(node, ast.Import) for alias in node.names
        }
        names |= {node.module or "" for node in at_top if isinstance(node, ast.ImportFrom)}
        slow = {name.split(".")[0] for name in names} & SLOW
        assert not slow or relative(file) in IMPORTS_SLOW, f"{relative(file)} imports {slow}"


def test_the_autoencoder_does_not_load_its_training():
    loaded = modules_after("from autoencoder import Autoencoder")
    assert not {module for module in loaded if module.startswith("autoencoder.training")}


@pytest.mark.parametrize(
    "file", [f for f in sources(*MAY_IMPORT) if f.name == "__init__.py"], ids=relative
)
def test_each_package_says_what_lives_there(file):
    """Two sentences: what lives in the folder, and what it must not import."""
    text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    sentences = re.findall(r"[.:](?:\s|$)", text)
    assert len(sentences) >= 2, f"{relative(file)} begins with {text!r}"
    assert "import" in text, f"{relative(file)} does not say what must not be imported"


def test_tests_that_need_linux_exist():
    missing = [name for name in LINUX_ONLY if not (ROOT / "tests" / name).exists()]
    assert not missing, f"tests/conftest.py names {missing}"


def test_every_folder_with_code_is_a_package():
    for folder in {file.parent for file in sources(*MAY_IMPORT)}:
        assert (folder / "__init__.py").is_file(), f"{relative(folder)} has no __init__.py"


def test_no_folder_is_a_long_flat_list():
    folders = Counter(file.parent for file in sources(*OURS, "tests") if file.name != "__init__.py")
    long = {relative(folder): count for folder, count in folders.items() if count > MOST_FILES}
    assert not long, f"split these folders by subject: {long}"


def test_no_file_has_two_subjects():
    for file in [*SCRIPTS, *sources(*OURS, "tests")]:
        lines = len(file.read_text(encoding="utf-8").splitlines())
        assert lines <= MOST_LINES or relative(file) in LONG_FILES, (
            f"{relative(file)} has {lines} lines; look for a second subject"
        )


def pairs_that_differ_by_an_s(names: Iterable[str]) -> list[str]:
    names = {name.lower() for name in names}
    return sorted(f"{name}, {name}s" for name in names if f"{name}s" in names)


@pytest.mark.parametrize("folders", [MAY_IMPORT, PROGRAMS], ids=["packages", "programs"])
def test_no_two_modules_or_folders_differ_by_an_s(folders):
    """Programs, which nobody imports, are compared with each other alone."""
    files = [*SCRIPTS, *sources(*folders)]
    names = {file.stem for file in files} | {file.parent.name for file in files}
    assert not pairs_that_differ_by_an_s(names)


def test_no_two_public_classes_differ_by_an_s():
    names = set()
    for file in [*SCRIPTS, *sources(*OURS)]:
        tree = ast.parse(file.read_text(encoding="utf-8"))
        names |= {node.name for node in tree.body if isinstance(node, ast.ClassDef)}
    assert not pairs_that_differ_by_an_s(name for name in names if not name.startswith("_"))


def test_nobody_assigns_dunder_class():
    for file in [*SCRIPTS, *sources(*OURS)]:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            assigned = isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
            assert not (assigned and node.attr == "__class__"), (
                f"{relative(file)}, line {node.lineno}: assigns __class__"
            )


DOCUMENTS = ["README.md", "CONTRIBUTING.md", "docs/architecture.md"]


@pytest.mark.parametrize("document", DOCUMENTS[1:])
def test_documents_name_every_package(document):
    text = (ROOT / document).read_text(encoding="utf-8")
    missing = [package for package in sorted(OURS) if f"{package}/" not in text]
    assert not missing, f"{document} does not name {missing}"


@pytest.mark.parametrize("document", DOCUMENTS)
def test_documents_name_files_that_exist(document):
    """A path in backticks that begins with one of our packages is in the tree."""
    text = (ROOT / document).read_text(encoding="utf-8")
    packages = "|".join(sorted([*OURS, "tests", "docs"]))
    for path in re.findall(rf"`((?:{packages})/[\w/.-]*)`", text):
        assert (ROOT / path).exists(), f"{document} names {path}, which does not exist"


def test_the_list_of_packages_is_complete():
    """A new top-level folder with code needs its place in MAY_IMPORT."""
    folders = {file.parent.name for file in ROOT.glob("*/*.py")}
    assert {name for name in folders if not name.startswith(".")} == OURS | {"tests"}


def test_every_script_says_its_flags_to_the_writer_of_messages():
    """Only then do messages of libraries, which name parameters, name flags instead."""
    calls = [
        (relative(file), line)
        for file in [*SCRIPTS, *sources(*OURS)]
        for line in file.read_text(encoding="utf-8").splitlines()
        if line.startswith("    run_main(")
    ]
    assert len(calls) > 15
    assert not [call for call in calls if ", " not in call[1]]
