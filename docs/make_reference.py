"""python docs/make_reference.py

Writes docs/reference: the flags of every script, the presets, and the libraries, from the programs
and docstrings themselves. Run it after a change of either; a test compares the pages.
"""

import dataclasses
import inspect
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import griffe
import tyro

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # runs from the checkout, uninstalled

import app
import check
import evaluate
import export
import sample
import train_clip
import train_ldm
import train_vae
from latentsmith import completion
from stages.flags.autoencoder import AutoencoderTrainingConfig
from stages.flags.clip import ClipTrainingConfig
from stages.flags.diffusion import DiffusionTrainingConfig
from training.cli import field_names, parse, preset_config, run_main
from training.flags import Groups, flag_name, help_sections, summary_of
from training.foreign_flags import NOT_NEEDED, OTHER_NAMES
from training.tools import posthoc, report, sequence

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS: dict[ModuleType, Any] = {  # of a script with commands: command -> dataclass of flags
    check: check.Options,
    train_clip: ClipTrainingConfig,
    train_vae: AutoencoderTrainingConfig,
    train_ldm: DiffusionTrainingConfig,
    sample: sample.Config,
    evaluate: evaluate.COMMANDS,
    export: export.Config,
    app: app.Config,
}
TOOLS: dict[str, tuple[ModuleType, type[Any]]] = {  # how it is called -> module, its flags
    "latentsmith report": (report, report.Config),
    "latentsmith completion": (completion, completion.Config),
    "python -m training.tools.sequence": (sequence, sequence.Config),
    "python -m training.tools.posthoc": (posthoc, posthoc.Config),
}
LIBRARIES = {  # page -> its modules; of a package what its __all__ names, of a module all public
    "autoencoder": ("autoencoder",),
    "conditioning": ("conditioning", "conditioning.clip", "conditioning.prompt_syntax"),
    "ldm": (
        *("ldm", "ldm.pipeline.sampling", "ldm.tasks", "ldm.samplers", "ldm.guidance"),
        *("ldm.unet", "ldm.config", "ldm.denoiser", "ldm.schedule", "ldm.timesteps", "ldm.loss"),
    ),
    "errors": ("foundation.errors",),
}
NAMED = (griffe.DocstringSectionParameters, griffe.DocstringSectionAttributes)
GENERATED = "Written by `python docs/make_reference.py`; do not edit it here."


@dataclass(frozen=True, kw_only=True)
class Config:
    GROUPS: ClassVar[Groups] = {"output": ("out",)}

    out: Path = ROOT / "docs" / "reference"  # folder to write


def main(argv: Sequence[str] | None = None) -> None:
    config = parse(Config, argv, __doc__)
    config.out.mkdir(parents=True, exist_ok=True)
    for name, text in pages().items():
        (config.out / name).write_text(text, encoding="utf-8")
        print(f"wrote {config.out / name}")


def pages() -> dict[str, str]:
    """Return the pages: name of the file -> text."""
    scripts = {script.__name__: script_page(script, kind) for script, kind in SCRIPTS.items()}
    tools = {
        module.__name__.rpartition(".")[2]: tool_page(title, module, kind)
        for title, (module, kind) in TOOLS.items()
    }
    others = {"presets": presets_page(), "other-names": other_names_page()}
    libraries = {name: library_page(name, modules) for name, modules in LIBRARIES.items()}
    texts = scripts | tools | others | {f"library-{name}": text for name, text in libraries.items()}
    return {f"{name.replace('_', '-')}.md": text.rstrip() + "\n" for name, text in texts.items()}


# Scripts ------------------------------------------------------------------------------------------


def script_page(script: ModuleType, kind: Any) -> str:
    """Return the page of a script: its docstring, and a table for each section of its flags."""
    parts = [f"# {script.__name__}.py", GENERATED, *description(script.__doc__)]
    presets = getattr(script, "PRESETS", None)
    if isinstance(kind, type):
        default = tyro.MISSING if presets is None else preset_config(kind, None, presets)
        if presets is not None:
            parts.append(
                f"`--preset` sets defaults; those below are of `{default.preset}`. "
                "[presets.md](presets.md) has those of the others."
            )
        return "\n\n".join([*parts, *flag_tables(kind, default, "##")])
    for command, config in kind.items():
        example = inspect.cleandoc(config.__doc__ or "").split("\n\n")[0]
        parts += [f"## {command}", indented(example), summary_of(config)]
        parts += flag_tables(config, tyro.MISSING, "###")
    return "\n\n".join(parts)


def tool_page(title: str, module: ModuleType, flags: type[Any]) -> str:
    """Return the page of a program that is no script: as `script_page`."""
    parts = [f"# {title}", GENERATED, *description(module.__doc__)]
    return "\n\n".join([*parts, *flag_tables(flags, tyro.MISSING, "##")])


def description(docstring: str | None) -> Iterator[str]:
    """Yield the paragraphs of a script's docstring; the first is a command to copy."""
    example, *paragraphs = inspect.cleandoc(docstring or "").split("\n\n")
    yield indented(example)
    for paragraph in paragraphs:
        is_literal = paragraph.startswith(" ")
        yield indented(inspect.cleandoc(paragraph)) if is_literal else paragraph


def flag_tables(config: type[Any], default: Any, heading: str) -> Iterator[str]:
    for title, entries in help_sections(config, default).items():
        rows = [[f"`{entry.invocation}`", entry.text] for entry in entries]
        yield f"{heading} {title.capitalize()}\n\n{table(['flag', ''], rows)}"


def presets_page() -> str:
    """Return the page with what each preset sets, one table per training."""
    parts = [
        "# Presets",
        GENERATED,
        "A preset is an architecture and a recipe that fit together ([choosing.md](../choosing.md) "
        "says which to take). The tables have the flags in which presets differ.",
    ]
    for script in (train_clip, train_vae, train_ldm):
        values = {
            name: flat(vars(preset_config(SCRIPTS[script], name, script.PRESETS)))
            for name in script.PRESETS
        }
        rows = [
            [f"`{flag_name(flag)}`", *map(str, row)]
            for flag in next(iter(values.values()))
            if len(set(row := [each[flag] for each in values.values()])) > 1 and flag != "preset"
        ]
        parts += [f"## {script.__name__}.py", table(["", *(f"`{x}`" for x in values)], rows)]
    return "\n\n".join(parts)


def flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a preset by flag; what is nested is given as flags of its own."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= flat(vars(value)) if dataclasses.is_dataclass(value) else {name: value}
    return found


def other_names_page() -> str:
    """Return the page with the names that flags have in other programs."""
    rows = []
    for theirs, ours in OTHER_NAMES.items():
        users = [
            f"`{script.__name__}.py`"
            for script, kind in SCRIPTS.items()
            if ours in set(field_names(kind))
        ]
        rows.append([f"`--{theirs}`", f"`{flag_name(ours)}`", ", ".join(users)])
    return "\n\n".join(
        [
            "# Flags of other programs",
            GENERATED,
            "If a script is given a flag in the first column, it names the one in the second. More "
            "on coming from other programs: [coming-from.md](../coming-from.md).",
            table(["there", "here", "of"], rows),
            "These have no counterpart:",
            table(["there", "here"], [[f"`--{flag}`", why] for flag, why in NOT_NEEDED.items()]),
        ]
    )


# Libraries ----------------------------------------------------------------------------------------


def library_page(name: str, modules: Sequence[str]) -> str:
    """Return the page of a library, from its source alone."""
    title = "foundation.errors" if name == "errors" else name
    parts = [f"# Library: {title}", GENERATED]
    loader = griffe.GriffeLoader(search_paths=[str(ROOT)])
    loader.load(modules[0].partition(".")[0])
    for module in modules:
        loaded = loader.modules_collection[module]
        assert isinstance(loaded, griffe.Module)
        parts += [f"## `{module}`", *docstring(loaded)]
        for each in public_members(loaded):
            parts += [f"### `{each.name}`", *member(each)]
    return "\n\n".join(parts)


def public_members(module: griffe.Module) -> Iterator[griffe.Object]:
    """Yield what a package exports, or what a module defines, in the order of the source."""
    names = module.exports or [
        name
        for name, each in module.members.items()
        if each.is_public and not each.is_alias and (each.is_class or each.is_function)
    ]
    for name in map(str, names):
        if name in module.members and not name.startswith("__"):
            each = module[name]
            yield each.final_target if each.is_alias else each


def member(each: griffe.Object) -> Iterator[str]:
    """Yield the paragraphs on a class, a function or a value."""
    path = Path(str(each.filepath)).relative_to(ROOT).as_posix()
    yield f"In [`{path}`](../../{path})."
    if isinstance(each, griffe.Function):
        yield code(signature(each))
    if isinstance(each, griffe.Attribute) and len(value := f"{each.name} = {each.value}") < 1000:
        yield code(value)
    yield from docstring(each)
    if not isinstance(each, griffe.Class):
        return
    yield from fields(each)
    for name, method in each.members.items():
        if isinstance(method, griffe.Function) and method.docstring and is_listed(name):
            yield f"#### `{each.name}.{name}`"
            yield code(signature(method))
            yield from docstring(method)


def is_listed(method: str) -> bool:
    return not method.startswith("_") or method in ("__call__", "__init__")


def fields(each: griffe.Class) -> Iterator[str]:
    """Yield a table of the attributes of a dataclass, with their defaults."""
    if not any("dataclass" in str(decorator.value) for decorator in each.decorators):
        return
    rows = [
        [f"`{name}`", f"`{value.annotation}`", f"`{value.value}`" if value.value else ""]
        for name, value in each.members.items()
        if isinstance(value, griffe.Attribute)
        and value.annotation is not None
        and "ClassVar" not in str(value.annotation)
    ]
    if rows:
        yield table(["field", "type", "default"], rows)


def signature(function: griffe.Function) -> str:
    """Return a signature as in the source; long ones have a line for each parameter."""
    parts, before = [], None
    for parameter in function.parameters:
        if parameter.name in ("self", "cls"):
            continue
        kind = parameter.kind
        if kind is griffe.ParameterKind.keyword_only and before is not kind:
            parts.append("*")
        stars = {"variadic positional": "*", "variadic keyword": "**"}
        text = stars.get(str(kind.value if kind else ""), "") + parameter.name
        text += f": {parameter.annotation}" if parameter.annotation else ""
        text += (
            f" = {parameter.default}" if parameter.default is not None and "*" not in text else ""
        )
        parts.append(text)
        before = kind
    returns = f" -> {function.returns}" if function.returns else ""
    line = f"{function.name}({', '.join(parts)}){returns}"
    if len(line) <= 90:
        return line
    return f"{function.name}(\n" + "".join(f"    {part},\n" for part in parts) + f"){returns}"


def docstring(each: griffe.Object) -> Iterator[str]:
    """Yield the paragraphs and lists of a docstring."""
    if each.docstring is None:
        return
    for section in each.docstring.parse("google", warnings=False):
        if isinstance(section, griffe.DocstringSectionText):
            yield section.value
        elif isinstance(section, NAMED):
            yield bullets((one.name, one.description) for one in section.value)
        elif isinstance(section, griffe.DocstringSectionRaises):
            yield "Raises:"
            yield bullets((str(one.annotation), one.description) for one in section.value)


# Markdown -----------------------------------------------------------------------------------------


def bullets(items: Any) -> str:
    return "\n".join(f"- `{name}`: {' '.join(text.split())}" for name, text in items)


def table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heading, ["---"] * len(heading), *([cell(text) for text in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def code(text: str) -> str:
    return f"```python\n{text}\n```"


def indented(text: str) -> str:
    return "\n".join(f"    {line}" if line else "" for line in text.splitlines())


if __name__ == "__main__":
    run_main(main, Config)
