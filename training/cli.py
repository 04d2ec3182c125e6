"""Command lines from dataclasses: `--preset` sets the defaults, other flags override them.

Nothing here imports torch, which takes seconds: a script reads its flags, and only then imports
what it does with them. So help and wrong flags are answered at once.
"""

import dataclasses
import errno
import inspect
import io
import os
import platform
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, redirect_stderr
from importlib.metadata import version
from itertools import zip_longest
from pathlib import Path
from typing import Any, ClassVar, TypeVar, get_origin, get_type_hints

import tyro
from safetensors import SafetensorError

from foundation import __version__
from foundation.errors import LONGEST_MESSAGE, UserError, printable, shortened, shown, unknown_name
from foundation.ranks import rank, world_size
from foundation.system import print_any_character
from training.config_json import REMOVED
from training.flags import (
    check_bounds,
    check_needs,
    commands_page,
    default_of,
    flag_name,
    help_page,
    with_flags,
)
from training.foreign_flags import names_of_others
from training.memory import describe_failure, keep_freed_memory
from training.signals import interruptible
from training.watchdog import STOPPED, Watchdog, is_connection_error

Config = TypeVar("Config")


def parse(
    config: type[Config] | Mapping[str, type[Config]],
    argv: Sequence[str] | None,
    description: str | None,
    presets: Mapping[str, Mapping[str, Any]] | None = None,
) -> Config:
    """Read the command line into `config`, a dataclass whose fields are the flags.

    `--help` and `--version` print and end the program.

    Args:
        config: its class variable GROUPS orders the help page, NEEDS says which flags need others
            (both in training/flags.py); RENAMED maps old names of fields to those of today, which
            stay valid as flags. Of a script with commands (`evaluate.py model ...`): command ->
            dataclass, whose docstring is the description of that command; its type tells which
            one was given.
        argv: arguments without the program's name; None reads those of the process.
        description: docstring of the script; the first line is an example to copy.
        presets: name -> values of the fields it sets; the default of `config.preset` names the
            one that is used if none is asked for.

    Raises:
        UserError: a number is out of bounds, a flag does nothing without another one, or there is
            no such preset.
        SystemExit: status 2 for a flag that is missing, unknown or of another type.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if "--version" in argv:
        print(f"Latentsmith {__version__}")
        sys.exit(0)
    program = Path(sys.argv[0]).name
    if not isinstance(config, type):
        name, *argv = [choose_command(config, argv, description), *argv[1:]]
        config, program = config[name], f"{program} {name}"
        description = inspect.cleandoc(config.__doc__ or "")
    argv = with_overrides(with_current_flags(argv, getattr(config, "RENAMED", {})))
    default: Any = tyro.MISSING
    text = (description or "").rstrip()
    if presets is not None:
        default = preset_config(config, given_preset(argv), presets)
        text += f"\n\nPresets: {', '.join(presets)}. The defaults below are those of "
        text += f"{default.preset}."
    if {"-h", "--help"} & set(argv):
        print(help_page(config, default, text))
        sys.exit(0)
    options: dict[str, Any] = {} if presets is None else {"default": default}
    messages = io.StringIO()
    try:
        with redirect_stderr(messages):  # they repeat what was given, of any length
            given = tyro.cli(
                config, prog=program, args=argv, config=(tyro.conf.OmitArgPrefixes,), **options
            )
    except SystemExit:
        if rank():
            raise
        print(printable(shortened(messages.getvalue(), LONGEST_MESSAGE)), end="", file=sys.stderr)
        for line in names_of_others(argv, set(field_names(config))):
            print(line, file=sys.stderr)
        raise
    check_bounds(given, config if presets is None else default)
    check_needs(given, default)
    return given


def choose_command(
    commands: Mapping[str, type[Any]], argv: Sequence[str], description: str | None
) -> str:
    """Return the first word of a command line, which is one of the commands.

    `--help` in its place prints the description and what each command is for.

    Raises:
        UserError: there is no word, or it is no command.
    """
    program, (word, *_) = Path(sys.argv[0]).name, [*argv, ""]
    if word in ("-h", "--help"):
        print(commands_page(commands, (description or "").rstrip()))
        sys.exit(0)
    if word and not word.startswith("-"):
        if word not in commands:
            raise unknown_name(word, list(commands), "command")
        return word
    found = f" before {shown(word)}" if word else ""
    raise UserError(
        f"Missing from {program}: a command{found}. It is one of {', '.join(commands)}; "
        f"{program} --help says what each is for."
    )


def preset_config(
    config: type[Any], name: str | None, presets: Mapping[str, Mapping[str, Any]]
) -> Any:
    """Return a config with the values of a preset; what is required is tyro.MISSING in it.

    name: None for the preset that is used if none is asked for.
    """
    values = {field.name: default_of(field, tyro.MISSING) for field in dataclasses.fields(config)}
    name = str(values["preset"]) if name is None else name
    if name not in presets:
        raise unknown_name(name, list(presets), "preset")
    default = object.__new__(config)  # without __init__, which would refuse what is missing
    vars(default).update(values, preset=name, **presets[name])
    return default


def with_current_flags(argv: Sequence[str], renamed: Mapping[str, str]) -> list[str]:
    """Return the arguments with renamed flags under their names of today; say so on stderr.

    Also those that `--override` names, without dashes.

    Raises:
        UserError: a flag is no longer there.
    """
    words: list[str] = []
    notes: dict[str, None] = {}
    after_override = False
    for word in argv:
        after_override = word == "--override" or (after_override and not word.startswith("--"))
        dashes = next(start for start in ("--no-", "--", "") if word.startswith(start))
        name, equals, value = word.removeprefix(dashes).partition("=")
        if dashes and renamed and (why := REMOVED.get(name)):
            raise UserError(f"{dashes}{name} is no longer there: {why}")
        new = renamed.get(name.replace("-", "_")) if dashes or after_override else None
        if new is None:
            words.append(word)
            continue
        words.append(f"{dashes}{new.replace('_', '-')}{equals}{value}")
        notes[f"note: --{name} is now {flag_name(new)}."] = None
    if not rank():
        for note in notes:
            print(note, file=sys.stderr)
    return words


def with_overrides(argv: Sequence[str]) -> list[str]:
    """Return the arguments with what `--override` names as flags at their end.

    `--override steps=900 shard=false` becomes that and `--steps 900 --no-shard`.
    """
    flags, after_override = [], False
    for word in argv:
        after_override = word == "--override" or (after_override and not word.startswith("--"))
        if not after_override or word == "--override":
            continue
        name, equals, value = word.partition("=")
        if not equals:
            raise UserError(f"--override takes NAME=VALUE, such as steps=900; got {word!r}.")
        name = name.replace("_", "-").rpartition(".")[2]
        if value.lower() in ("true", "false"):
            flags.append(("--" if value.lower() == "true" else "--no-") + name)
        else:
            flags += [f"--{name}", value]
    return [*argv, *flags]


def given_preset(argv: Sequence[str]) -> str | None:
    """Return the value of the last `--preset NAME` or `--preset=NAME`; None without one."""
    name = None
    for flag, following in zip_longest(argv, argv[1:]):
        if flag == "--preset":
            name = following
        elif flag.startswith("--preset="):
            name = flag.removeprefix("--preset=")
    return name


def run_main(
    main: Callable[[], None], config: type[Any] | Mapping[str, type[Any]] | None = None
) -> None:
    """Call the main function of a script, and end the process if it fails.

    An error that the user can mend, such as UserError or a full disk, ends it with one line and
    status 2; LATENTSMITH_TRACEBACK=1 shows where it came from instead. Any other exception is a
    bug: it keeps its traceback, with a note that says what to report.

    Of several ranks, one prints the line, the others end with it (training/watchdog.py).

    config: the dataclass of the script's flags, or those of its commands. Libraries name
        parameters, such as `batch_size`; in the line these become flags.
    """
    keep_freed_memory()
    print_any_character()
    with joined_processes() as watchdog:
        try:
            with interruptible():
                return main()
        except KeyboardInterrupt as stop:
            message, status = "\n" + (str(stop) or "stopped."), STOPPED  # after the terminal's ^C
        except (UserError, OSError, SafetensorError, MemoryError) as error:
            if os.environ.get("LATENTSMITH_TRACEBACK"):
                raise
            names = field_names(config) if config else ()
            message = (
                f"error: {with_flags(printable(shortened(explain(error), LONGEST_MESSAGE)), names)}"
            )
            status = 2
        except Exception as error:
            reason = describe_failure(error)
            if reason and os.environ.get("LATENTSMITH_TRACEBACK"):
                raise
            if not reason:
                # A connection breaks where another rank has failed, and that one says why.
                if world_size() == 1 or not is_connection_error(error):
                    error.add_note(bug_note())
                raise
            message, status = f"error: {reason}", 2
        # Not before here: with the error its stack is gone, and the progress bars in it have ended.
        watchdog.exit(message, status)


def answer_early(config: type[Any], description: str | None) -> None:
    """Answer `--help` and wrong flags of a program that is one file, before its slow imports.

    Call it between the dataclass of the flags and these imports, where the program is started. Its
    main function reads the flags again.

    Args:
        config, description: as in `parse`.
    """

    def read() -> None:
        parse(config, None, description)

    run_main(read, config)


def joined_processes() -> AbstractContextManager[Watchdog]:
    """Join the processes that torchrun started; without torchrun there is this one alone."""
    if "WORLD_SIZE" not in os.environ:
        return nullcontext(Watchdog(0, 1))
    from training.distributed import process_group

    return process_group()


def bug_note() -> str:
    """Return what stands below the traceback of a bug."""
    torch = getattr(sys.modules.get("torch"), "__version__", None) or version("torch")
    return (
        "\nThis is a bug in Latentsmith, not a mistake of yours. Please report it: send the lines "
        f"above, the command, and this: Latentsmith {__version__}, PyTorch {torch}, "
        f"Python {platform.python_version()}, {platform.platform()}."
    )


def field_names(config: type[Any] | Mapping[str, type[Any]]) -> Iterator[str]:
    """Yield the names of all flags: the fields of a dataclass and of the dataclasses in it."""
    if not isinstance(config, type):
        yield from {name for one in config.values() for name in field_names(one)}
        return
    for name, kind in get_type_hints(config).items():
        if get_origin(kind) is ClassVar:
            continue
        if dataclasses.is_dataclass(kind) and isinstance(kind, type):
            yield from field_names(kind)
        else:
            yield name


def explain(error: Exception) -> str:
    """Return the message of an error that the user can mend.

    An error of the operating system gets the name of the file and advice, unless it has been
    explained where it was raised.
    """
    if reason := describe_failure(error):
        return reason
    inner = re.search(r"\(os error (\d+)\)", str(error))  # how safetensors passes one on
    if inner and isinstance(error, SafetensorError):
        error = OSError(int(inner[1]), os.strerror(int(inner[1])))
    if not isinstance(error, OSError) or not error.strerror:
        return str(error)
    if error.errno is None or error.strerror != os.strerror(error.errno):
        return error.strerror  # explained where it was raised
    text = f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    if error.errno in (errno.EROFS, errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.ENODEV):
        return (
            f"the disk cannot be used, or not any more ({text}). What was complete before is "
            "untouched. When it is back, run the same command again."
        )
    if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return text
    return (
        f"the disk is full, or a limit is reached ({text}). What was complete before is untouched, "
        "and nothing half-written stays. Free some space, and run the same command again."
    )
