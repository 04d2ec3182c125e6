"""Check what README.md and the pages of docs/ refer to: commands, files, names and links."""

import importlib.util
import pkgutil
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

import app
import check
import evaluate
import export
import sample
import train_clip
import train_ldm
import train_vae
from foundation import __version__
from training.cli import parse

ROOT = Path(__file__).parents[2]
PAGES = [
    *sorted(ROOT.glob("*.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "checkpoints").rglob("*.md")),
]
CURRENT = [page for page in PAGES if page.name != "CHANGELOG.md"]  # which names old files, too
SCRIPTS = {
    f"{script.__name__}.py": script
    for script in (app, check, evaluate, export, sample, train_clip, train_ldm, train_vae)
}
OBJECT = ("autoencoder.factor", "autoencoder.config", "autoencoder.to", "autoencoder.encode")
# latentsmith.json is a file, not a name in the package of the command.
PACKAGES = sorted({file.parent.name for file in ROOT.glob("*/__init__.py")} - {"latentsmith"})


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def commands(page: Path) -> list[list[str]]:
    """List the words of each indented command that starts a Python program."""
    lines = text_of(page).replace("\\\n", " ").splitlines()
    found = []
    for line in lines:
        if not re.match(r"    (python|torchrun) ", line) or "..." in line:
            continue
        words = shlex.split(line.strip(), comments=True)
        program = next((k for k, word in enumerate(words) if word.endswith(".py")), None)
        if words[:2] == ["python", "-m"]:
            found.append(words[1:])
        elif words[:1] in (["python"], ["torchrun"]) and program is not None:
            found.append(words[program:])
    return found


COMMANDS = [pytest.param(words, id=" ".join(words)) for page in PAGES for words in commands(page)]


def test_there_are_commands():
    assert len(COMMANDS) > 60


class Parsed(Exception):
    """Raised in place of running a script whose flags have been read."""


def parse_and_stop(*arguments: Any) -> None:
    parse(*arguments)
    raise Parsed


@pytest.mark.parametrize("words", COMMANDS)
def test_commands_parse(words, monkeypatch):
    """Scripts read the flags; of other programs the file exists and has the flags."""
    name, *arguments = words
    if name in SCRIPTS:
        monkeypatch.setattr(SCRIPTS[name], "parse", parse_and_stop)
        with pytest.raises(Parsed):
            SCRIPTS[name].main(arguments)
        return
    if name == "-m":
        name, *arguments = arguments
        if name == "pytest":
            return
        spec = importlib.util.find_spec(name)
        assert spec is not None and spec.origin is not None
        source = Path(spec.origin).read_text(encoding="utf-8")
    else:
        source = text_of(ROOT / name)
    for word in arguments:
        if word.startswith("--"):
            flag = word.removeprefix("--").removeprefix("no-").partition("=")[0]
            assert flag in source or flag.replace("-", "_") in source, f"{name} has no {word}"


@pytest.mark.parametrize("page", CURRENT, ids=lambda page: page.name)
def test_files_named_in_the_text_exist(page):
    tests = {file.name for file in (ROOT / "tests").rglob("*.py")}
    folders = "|".join([*PACKAGES, "tests", "docs", "recipes", "benchmarks", "examples"])
    text = text_of(page)
    missing = [name for name in re.findall(r"`(test_\w+\.py)`", text) if name not in tests]
    for path in re.findall(rf"(?<![\w/.-])((?:{folders})/[\w./-]*\w)", text):
        if not (ROOT / path).exists() and not (ROOT / f"{path}.py").exists():
            missing.append(path)
    assert not missing


@pytest.mark.parametrize("page", CURRENT, ids=lambda page: page.name)
def test_names_in_the_text_exist(page):
    """A dotted name in backticks that begins with one of our packages can be imported.

    OBJECT are attributes of a variable that the pages call `autoencoder`, as the package.
    """
    for name in re.findall(rf"`((?:{'|'.join(PACKAGES)})(?:\.\w+)+)", text_of(page)):
        if not name.startswith(OBJECT):
            pkgutil.resolve_name(name)


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", text_of(page), re.MULTILINE)
    plain = [re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings]
    return {heading.replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", text_of(page)):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        assert file.exists(), f"{page.name} links to {target}"
        assert not anchor or anchor in anchors(file), f"{page.name} links to {target}"


def test_the_citation_names_the_current_version():
    (version,) = re.findall(r"^version: (.*)$", text_of(ROOT / "CITATION.cff"), re.MULTILINE)
    assert version == __version__
