"""The help page: complete, in sections, described, and within the width of a terminal."""

import dataclasses
import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import pytest
import tyro

import app
import evaluate
import train_vae
from foundation import __version__
from foundation.errors import UserError
from tests.helpers.bad_calls import CONFIGS
from training.cli import parse
from training.flags import Fraction, Groups, help_page

PAGES = {  # what is called -> the words before --help, and the dataclass of the flags
    f"{script.__name__} {command}".strip(): (script, command, config)
    for script, configs in CONFIGS.items()
    for command, config in (configs if isinstance(configs, dict) else {"": configs}).items()
} | {"app": (app, "", app.Config)}


@dataclass(frozen=True, kw_only=True)
class Inner:
    rate: Fraction = 0.5  # speed of the inner thing


@dataclass(frozen=True, kw_only=True)
class Outer:
    GROUPS: ClassVar[Groups] = {"first": ("where", "count"), "second": ("inner", "kind", "wide")}

    where: Path  # a folder
    # how many; this description stands above its field, and is long enough to be wrapped at eighty
    # columns
    count: Annotated[int | None, tyro.conf.arg(aliases=["-n"])] = None
    kind: Literal["a", "b"] = "b"
    """described below"""
    wide: tuple[int, ...] = (1, 2)
    inner: Inner = field(default_factory=Inner)


def test_a_page(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert help_page(Outer, tyro.MISSING, "python x.py   a\n\nSome\ntext.").splitlines() == [
        "python x.py   a",
        "",
        "Some text.",
        "",
        "first:",
        "  --where PATH            a folder (required)",
        "  -n, --count INT         how many; this description stands above its field, and",
        "                          is long enough to be wrapped at eighty columns",
        "",
        "second:",
        "  --rate FLOAT            speed of the inner thing (from 0 to 1; default: 0.5)",
        "  --kind {a,b}            described below (default: b)",
        "  --wide INT ...          (default: 1 2)",
        "  -h, --help              show this page and exit",
        "  --version               show the version and exit",
    ]


def test_what_is_required_and_essential_comes_first(monkeypatch):
    @dataclass(frozen=True, kw_only=True)
    class Page(Outer):
        ESSENTIAL: ClassVar[tuple[str, ...]] = ("kind", "rate")
        out: Path

        GROUPS: ClassVar[Groups] = {**Outer.GROUPS, "third": ("out",)}

    sections = help_page(Page, tyro.MISSING, "python x.py").split("\n\n")[1:]
    names = [re.findall(r"--(\w+)", section) for section in sections]
    assert names[0] == ["where", "out", "kind", "rate"]
    assert names[1:] == [["count"], ["wide", "help", "version"]]


def page(script, capsys, *words: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        script.main([*words, "--help"])
    assert stopped.value.code == 0
    return capsys.readouterr().out


def flags(config: type) -> set[str]:
    """Every flag of a dataclass, nested ones included; positional arguments are left out."""
    found = set()
    for f in dataclasses.fields(config):
        if dataclasses.is_dataclass(f.type):
            found |= flags(f.type)
        elif "Positional" not in str(f.type):
            found.add("--" + f.name.replace("_", "-"))
    return found


@pytest.mark.parametrize("name", PAGES)
def test_every_flag_is_on_the_page_once_with_a_description(name, capsys, monkeypatch):
    script, command, config = PAGES[name]
    monkeypatch.setenv("COLUMNS", "80")
    text = page(script, capsys, *command.split())
    assert all(len(line) <= 80 for line in text.splitlines() if "python " not in line)
    shown = re.findall(r"^  (?:-\w, )?--(?:\[no-\])?([\w-]+)(.*(?:\n {26}.*)*)", text, re.MULTILINE)
    names = ["--" + name for name, _ in shown]
    assert sorted(names) == sorted({*flags(config), "--help", "--version"})
    for name, rest in shown:
        description = re.sub(r"^( (\{.*?\}|[A-Z|=]+))*( \.\.\.)?", "", rest)
        assert re.search(r"^\s+(?!\((default|required|from))\S", description), (
            f"--{name} has no description: {rest}"
        )
    assert len(re.findall(r"^[a-z ]+:$", text, re.MULTILINE)) >= 2, "not in sections"


@pytest.mark.parametrize("command", evaluate.COMMANDS)
def test_a_page_of_commands_says_what_each_is_for(command, capsys):
    shown = re.search(rf"^  {command} +\S.*", page(evaluate, capsys), re.MULTILINE)
    assert shown is not None
    example = page(evaluate, capsys, command).split("\n\n")[0]
    _, file, *words = shlex.split(example)
    assert file == "evaluate.py" and words[0] == command
    assert type(parse(evaluate.COMMANDS, words, "")) is evaluate.COMMANDS[command]


@pytest.mark.parametrize(
    ("words", "pattern"),
    [
        ([], "Missing from .*: a command"),
        (["autoencodr", "m"], "'autoencodr'.*'autoencoder'"),
        (["--data", "d"], "a command before '--data'"),
    ],
)
def test_commands_that_are_none(words, pattern):
    with pytest.raises(UserError, match=pattern):
        parse(evaluate.COMMANDS, words, "")


@pytest.mark.parametrize("script", CONFIGS, ids=lambda s: s.__name__)
def test_version(script, capsys):
    with pytest.raises(SystemExit) as stopped:
        script.main(["--version"])
    assert stopped.value.code == 0
    assert capsys.readouterr().out == f"Latentsmith {__version__}\n"


def test_renamed_flags_keep_working_with_a_note(capsys):
    words, kind = ["--data", "d", "--out", "o"], CONFIGS[train_vae]
    config = parse(kind, [*words, "--look-every", "7"], "", train_vae.PRESETS)
    assert config.evaluate_every == 7
    assert capsys.readouterr().err == "note: --look-every is now --evaluate-every.\n"
    config = parse(
        CONFIGS[train_vae], [*words, "--override", "look_every=9"], "", train_vae.PRESETS
    )
    assert config.evaluate_every == 9 and config.override == ("evaluate-every=9",)
