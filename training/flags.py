"""Flags as fields of a dataclass: the numbers they take, and the page that `--help` prints.

Tyro parses the flags. Its own help is one long section that shows `None`, `True` and both forms of
a switch as if they were types; this page has sections and reads as a manual page does.
"""

import ast
import inspect
import io
import math
import re
import shutil
import textwrap
import tokenize
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from pathlib import Path
from typing import (
    Annotated,
    Any,
    Literal,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

import tyro

from foundation.errors import LONGEST_VALUE, UserError, one_line, shown

Number = TypeVar("Number", int, float)


@dataclass(frozen=True)
class Bound:
    """The values that a flag takes, as part of its type. NaN and infinity are never among them."""

    holds: Callable[[Any], bool]
    words: str  # completes "it must be ..."
    on_help_page: bool = True  # False where the description says as much


Positive = Annotated[Number, Bound(lambda x: x > 0, "above 0", on_help_page=False)]
NonNegative = Annotated[Number, Bound(lambda x: x >= 0, "0 or more", on_help_page=False)]
Fraction = Annotated[float, Bound(lambda x: 0 <= x <= 1, "from 0 to 1")]
FractionBelowOne = Annotated[float, Bound(lambda x: 0 <= x < 1, "0 or more, and below 1")]
Finite = Annotated[float, Bound(lambda x: True, "a finite number", on_help_page=False)]
Seed = Annotated[int, Bound(lambda x: 0 <= x < 2**63, "from 0 to 2^63 - 1", on_help_page=False)]


def is_encodable(text: str) -> bool:
    """Return whether a text has no half of a Unicode character, which no file can hold."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


# What goes into a network as text. Paths may hold such halves: names of files are bytes.
Text = Annotated[str, Bound(is_encodable, "text of whole Unicode characters", on_help_page=False)]


def flag_name(field: str) -> str:
    """Return the flag of a field: `--batch-size` for `batch_size`."""
    return "--" + field.replace("_", "-")


def with_flags(text: str, names: Iterable[str]) -> str:
    """Replace the names of parameters in a text by flags, but not inside paths or quotes.

    Only names of several words are replaced, and `name='value'`, which becomes `--name value`; a
    name such as `size` alone is also a word.
    """
    names = sorted(names, key=len, reverse=True)
    if not names:
        return text
    before = r"(?<![\w./'\"-])"
    text = re.sub(
        rf"{before}({'|'.join(names)})='([\w.-]+)'",
        lambda match: f"{flag_name(match[1])} {match[2]}",
        text,
    )
    several_words = [name for name in names if "_" in name]
    if not several_words:
        return text
    pattern = re.compile(rf"{before}({'|'.join(several_words)})(?![\w/'\"]|\.\w)")
    return pattern.sub(lambda match: flag_name(match[0]), text)


def check_bounds(config: Any, default: Any) -> None:
    """Check every value of a dataclass of flags against the bounds in its type.

    Args:
        config: the dataclass, as the user gave it.
        default: has the values that hold when a flag is left out; the message names them.

    Raises:
        UserError: a value is out of bounds.
    """
    for name, kind in get_type_hints(type(config), include_extras=True).items():
        value = getattr(config, name)
        values = value if isinstance(value, tuple) else (value,)
        for bound in bounds_of(kind):
            if any(not (is_finite(one) and bound.holds(one)) for one in values if one is not None):
                usual = getattr(default, name, None)
                left_out = usual is not None and usual is not tyro.MISSING
                raise UserError(
                    f"{flag_name(name)} is {shown(value)}; it must be {bound.words}."
                    + (f" Left out, it is {usual}." if left_out else "")
                )


def is_finite(value: float | str) -> bool:
    """Return whether a value is text, or a finite number.

    Whole numbers too large for a float count as infinite.
    """
    try:
        return isinstance(value, str) or math.isfinite(value)
    except OverflowError:
        return False


def bounds_of(kind: Any) -> Iterator[Bound]:
    """Yield the bounds of a type, also of one that may be None."""
    yield from (mark for mark in getattr(kind, "__metadata__", ()) if isinstance(mark, Bound))
    for part in get_args(kind):
        yield from bounds_of(part)


# Flags that have a meaning only together with another one.

NOT_GIVEN = (None, False, 0, "", ())


@dataclass(frozen=True)
class Need:
    """Flags that do nothing unless another one has a certain value.

    Args:
        names: of their fields.
        ways: name of another field -> the values with which they have a meaning; True for any that
            switches something on, False for none of these. One way is enough.
    """

    names: tuple[str, ...]
    ways: Mapping[str, tuple[Any, ...] | bool]

    def is_met(self, values: Mapping[str, Any]) -> bool:
        """Return whether the flags have a meaning. values: of all fields."""
        return any(
            values[name] in wanted
            if isinstance(wanted, tuple)
            else (values[name] not in NOT_GIVEN) == wanted
            for name, wanted in self.ways.items()
        )

    def error(self, name: str, values: Mapping[str, Any], usual: Mapping[str, Any]) -> UserError:
        """Return the error for a flag that does nothing. usual: as in `check_needs`."""
        found = [words_of_way(other, wanted, values, usual) for other, wanted in self.ways.items()]
        ways, states, advice = zip(*found, strict=True)
        return UserError(
            f"{as_given(name, values[name])} does nothing here: it has a meaning only "
            f"{' or '.join(ways)}, and {' and '.join(dict.fromkeys(states))}. Leave it out, or "
            f"{' or '.join(advice)}."
        )


Needs = Sequence[Need]


def needs(*names: str, **ways: tuple[Any, ...] | bool) -> Need:
    """Return a line of the table of a dataclass of flags: what has a meaning only together."""
    return Need(names, ways)


def words_of_way(
    name: str, wanted: tuple[Any, ...] | bool, values: Mapping[str, Any], usual: Mapping[str, Any]
) -> tuple[str, str, str]:
    """Return which value of a flag is wanted, which it has, and what to do."""
    flag, value = flag_name(name), values[name]
    if isinstance(wanted, tuple):
        return (
            f"with {flag} {' or '.join(map(str, wanted))}",
            f"{flag} is {value}",
            f"change {flag}",
        )
    if wanted and usual[name] is True:
        off = flag.replace("--", "--no-")
        return f"without {off}", "that is given", f"leave out {off}"
    if not wanted:
        return f"without {flag}", "that is given", f"leave out {flag}"
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f"with {flag} above 0", f"{flag} is {value:g}", f"change {flag}"
    return f"with {flag}", "that is not given", f"add {flag}"


def as_given(name: str, value: Any) -> str:
    """Return a flag with its value as on the command line; a long one is shortened."""
    if isinstance(value, bool):
        return flag_name(name) if value else flag_name(name).replace("--", "--no-")
    text = f"{value:g}" if isinstance(value, float) else default_text(value)
    return f"{flag_name(name)} {one_line(text, LONGEST_VALUE)}"


def check_needs(config: Any, default: Any) -> None:
    """Refuse flags that do nothing because another one is missing, or has another value.

    Which need which is in the class variable NEEDS of the dataclasses. A flag with the value that
    holds when it is left out, such as that of the preset, is not refused.

    Args:
        config: the dataclass, as the user gave it.
        default: has the values that hold when a flag is left out; tyro.MISSING if the class has
            all of them.

    Raises:
        UserError: names the flag, what it needs, and what there is.
    """
    values, usual = flat_values(config), flat_usual_values(type(config), default)
    for need in needs_of(config):
        for name in need.names:
            if values[name] != usual[name] and not need.is_met(values):
                raise need.error(name, values, usual)


def needs_of(config: Any) -> Iterator[Need]:
    """Yield the lines of the tables of a dataclass, of its parents, and of those in it."""
    for parent in type(config).__mro__:
        yield from vars(parent).get("NEEDS", ())
    for field in fields(config):
        if is_dataclass(value := getattr(config, field.name)):
            yield from needs_of(value)


def flat_values(config: Any) -> dict[str, Any]:
    """Return the values of a dataclass by name, with those of the dataclasses in it."""
    found: dict[str, Any] = {}
    for field in fields(config):
        value = getattr(config, field.name)
        found |= flat_values(value) if is_dataclass(value) else {field.name: value}
    return found


def flat_usual_values(config: type[Any], default: Any) -> dict[str, Any]:
    """Return the values that hold when flags are left out, as `flat_values`."""
    found: dict[str, Any] = {}
    for field in fields(config):
        value = default_of(field, default)
        found |= flat_values(value) if is_dataclass(value) else {field.name: value}
    return found


# The help page.

Groups = Mapping[str, Sequence[str]]  # title of a section -> its fields, in order
ONLY_GROUP = "options"  # the title where a config has no GROUPS
ESSENTIAL_GROUP = "essential"
LAST_GROUP = "machine"  # its section ends with --help and --version; without it, the last one does
COMMON = {"-h, --help": "show this page and exit", "--version": "show the version and exit"}
TYPE_NAMES = {int: "INT", float: "FLOAT", str: "TEXT", Path: "PATH"}
POSITIONAL = get_args(tyro.conf.Positional[int])[1]
WIDTH = 100  # columns of the page, unless the terminal has fewer
INDENT = 26  # columns before the descriptions


@dataclass(frozen=True)
class Entry:
    """One flag on the help page."""

    invocation: str  # such as "-n, --count INT"
    text: str  # description, range, default
    is_required: bool = False


@dataclass(frozen=True)
class PlacedEntry:
    """A flag with the section that it belongs to."""

    group: str
    name: str  # of the field
    entry: Entry


def help_page(config: type[Any], default: Any, description: str) -> str:
    """Return what `--help` prints: the description, then the flags in sections.

    Args:
        config: dataclass of the flags. Its class variable GROUPS names the sections and their
            fields. A nested dataclass has GROUPS of its own, or goes where its field is named. Its
            class variable ESSENTIAL names the fields that come first, after those required.
        default: a config that has the default values; tyro.MISSING for a required flag, and for
            all of them if the class has the defaults.
        description: docstring of the script.
    """
    width = min(WIDTH, shutil.get_terminal_size().columns)
    groups = help_sections(config, default)
    return "\n\n".join([*paragraphs(description, width), *sections_of(groups, width)])


def help_sections(config: type[Any], default: Any) -> dict[str, list[Entry]]:
    """Return the sections of a help page: title -> flags; arguments as in `help_page`."""
    essential: Sequence[str] = getattr(config, "ESSENTIAL", ())
    found = list(entries(config, default, ONLY_GROUP))
    first = [each for each in found if each.entry.is_required or each.name in essential]
    first.sort(key=lambda each: (not each.entry.is_required, place(each.name, essential)))
    groups: dict[str, list[Entry]] = {}
    if essential:
        groups[ESSENTIAL_GROUP] = [each.entry for each in first]
    for each in found:
        if not (essential and each in first):
            groups.setdefault(each.group, []).append(each.entry)
    last = LAST_GROUP if LAST_GROUP in groups else list(groups)[-1]
    groups[last] += [Entry(*words) for words in COMMON.items()]
    return groups


def commands_page(commands: Mapping[str, type[Any]], description: str) -> str:
    """Return what `--help` of a script with commands prints.

    commands: name -> dataclass of its flags; of its docstring, the paragraph after the example says
        what the command is for.
    """
    width = min(WIDTH, shutil.get_terminal_size().columns)
    about = [Entry(name, summary_of(config)) for name, config in commands.items()]
    groups = {
        "commands, each with a --help of its own": about,
        "options": [Entry(*words) for words in COMMON.items()],
    }
    return "\n\n".join([*paragraphs(description, width), *sections_of(groups, width)])


def summary_of(config: type[Any]) -> str:
    """Return the paragraph after the example in the docstring of a dataclass of flags."""
    paragraphs_of_it = inspect.cleandoc(config.__doc__ or "").split("\n\n")
    return " ".join(paragraphs_of_it[min(1, len(paragraphs_of_it) - 1)].split())


def sections_of(groups: Mapping[str, Sequence[Entry]], width: int) -> list[str]:
    """Return the sections of a help page: the title, then an entry below the other."""
    return [
        "\n".join([f"{title}:", *(line for entry in group for line in laid_out(entry, width))])
        for title, group in groups.items()
    ]


def paragraphs(text: str, width: int) -> Iterator[str]:
    """Yield the paragraphs of a docstring, wrapped; commands and indented ones stay as they are."""
    for part in re.split(r"\n\s*\n", text.strip("\n")):
        literal = part.startswith((" ", "python "))
        yield part if literal else textwrap.fill(" ".join(part.split()), width)


def laid_out(entry: Entry, width: int) -> list[str]:
    """Return the lines of an entry: description next to the flag, or below it if that is wide."""
    columns = max(width - INDENT, 30)
    text = textwrap.wrap(entry.text, columns, break_on_hyphens=False, break_long_words=False)
    head, indented = f"  {entry.invocation}", [" " * INDENT + line for line in text]
    if len(head) > INDENT - 2 or not text:
        return [head, *indented]
    return [f"{head:{INDENT}}{text[0]}", *indented[1:]]


def place(name: str, names: Sequence[str]) -> int:
    """Return the place of a name among others; one that is not there comes first."""
    return names.index(name) if name in names else -1


def entries(config: type[Any], default: Any, title: str) -> Iterator[PlacedEntry]:
    """Yield every flag with the title of its section, in the order of the page."""
    descriptions, hints = field_comments(config), get_type_hints(config, include_extras=True)
    by_name = {field.name: field for field in fields(config)}
    groups: Groups = getattr(config, "GROUPS", {title: tuple(by_name)})
    for heading, names in groups.items():
        for name in names:
            value = default_of(by_name[name], default)
            if is_dataclass(hints[name]):
                yield from entries(hints[name], value, heading)
            else:
                entry = make_entry(name, hints[name], value, descriptions.get(name, ""))
                yield PlacedEntry(heading, name, entry)


def default_of(field: Field[Any], config: Any) -> Any:
    """Return the value that holds when the flag is left out; tyro.MISSING if it is required."""
    if config is not tyro.MISSING:
        return getattr(config, field.name)
    if field.default is not MISSING:
        return field.default
    return tyro.MISSING if field.default_factory is MISSING else field.default_factory()


def make_entry(name: str, kind: Any, default: Any, description: str) -> Entry:
    marks = getattr(kind, "__metadata__", ())
    aliases = [alias for mark in marks for alias in getattr(mark, "aliases", None) or ()]
    metavars = [mark.metavar for mark in marks if getattr(mark, "metavar", None)]
    value = metavars[0] if metavars else value_name(kind)
    flag = flag_name(name).replace("--", "--[no-]") if default is True else flag_name(name)
    invocation = value if POSITIONAL in marks else f"{', '.join([*aliases, flag])} {value}".strip()
    notes = [bound.words for bound in bounds_of(kind) if bound.on_help_page]
    if default is tyro.MISSING:
        notes.append("required")
    elif default is True:
        notes.append("default: on")
    elif default is not None and default is not False and default not in ("", ()):
        notes.append(f"default: {default_text(default)}")
    text = f"{description} ({'; '.join(notes)})" if notes else description
    return Entry(invocation, text.strip(), default is tyro.MISSING)


def default_text(value: Any) -> str:
    """Write a default as the command line takes it."""
    return " ".join(map(str, value)) if isinstance(value, tuple | list) else str(value)


def value_name(kind: Any) -> str:
    """Return what a flag of this type takes: INT, PATH, {a,b}, TEXT ...; "" for a switch."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return value_name(arguments[0])
    if origin is Literal:
        return "{" + ",".join(map(str, arguments)) + "}"
    if origin in (Union, types.UnionType):
        return "|".join(value_name(x) for x in arguments if x is not type(None))
    if origin is tuple and arguments[-1] is ...:
        return f"{value_name(arguments[0])} ..."
    if origin is tuple:
        return " ".join(map(value_name, arguments))
    return "" if kind is bool else TYPE_NAMES[kind]


def field_comments(config: type[Any]) -> dict[str, str]:
    """Return what the source of a dataclass says about its fields; tyro reads the same comments.

    A field is described by the comment after it, by comment lines right above it, or by a string
    right below it.
    """
    found: dict[str, str] = {}
    for parent in reversed(config.__mro__):
        if is_dataclass(parent):
            found |= comments_in(textwrap.dedent(inspect.getsource(parent)))
    return found


def comments_in(source: str) -> dict[str, str]:
    """Return the description of each field of the one class in `source`."""
    after, above = {}, {}  # line -> comment at its end, comment that is all of it
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            alone = token.line.lstrip().startswith("#")
            (above if alone else after)[token.start[0]] = token.string.lstrip("# ")
    (class_node,) = (node for node in ast.parse(source).body if isinstance(node, ast.ClassDef))
    found = {}
    for node, following in zip(class_node.body, [*class_node.body[1:], None], strict=True):
        if not (isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)):
            continue
        span = range(node.lineno, (node.end_lineno or node.lineno) + 1)
        words = [after[line] for line in span if line in after]
        line = node.lineno - 1
        while line in above and not any(after.get(k) for k in span):
            words.insert(0, above[line])
            line -= 1
        if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
            words.append(" ".join(str(following.value.value).split()))
        found[node.target.id] = " ".join(words)
    return found
