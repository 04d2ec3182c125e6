"""Generating a recorded image again, and comparing the two."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import numpy as np

from dataset.images.decode import read_frames
from foundation.errors import UserError, listed, one_line, shown
from foundation.json_reading import convert_value
from generation.limits import MAX_FPS, MAX_FRAMES, MAX_KEYFRAMES, check_prompt
from generation.metadata import hash_input_file, read_record
from generation.options import DEFAULTS, INPUT_FILES, BatchSize, GenerationOptions, Scale
from generation.prompts import PromptEntry, convert, entry_from, error_location
from training.flags import Bound, check_bounds, flag_name

# Options that are paths. A record names no more than the last part of each, so that opening a
# picture of somebody else reads no file of its choice; they are given again by their flags.
PATHS = (*INPUT_FILES, "weak_model")
LOSSLESS = (".png", ".npy", ".gif")  # equal pixels give equal files
STATION = {"prompt", "seed", "negative_prompt"}
SIDES = "sides"  # entry of the record of a picture that compares two settings
SEARCH_DEPTH, SEARCH_LIMIT = 3, 20_000  # folders below the current one, and entries, for a model


@dataclass(frozen=True, kw_only=True)
class RecordedCall:
    """What a record says besides the options of the image. The names are those of the flags."""

    model: str = ""
    ema: bool = False
    dtype: Literal["fp32", "bf16", "fp16"] = "fp32"
    batch_size: BatchSize | None = None
    compile: bool = False
    lora: str | None = None
    lora_scale: Scale = 1.0
    interpolate: Annotated[int, Bound(lambda x: 0 <= x <= MAX_FRAMES, f"0 to {MAX_FRAMES}")] = 0
    video: Literal["gif", "mp4"] = "gif"
    fps: Annotated[float, Bound(lambda x: 0 < x <= MAX_FPS, f"above 0, to {MAX_FPS}")] = 12.0
    stations: list[dict[str, Any]] | None = None  # keyframes of a video
    grid_x: str = ""  # axes of a grid over options
    grid_y: str = ""
    hashes: dict[str, str] = field(default_factory=dict)  # sha256 of parts of the model, and others
    files: dict[str, str] = field(default_factory=dict)  # sha256 by option; by path in older files


CALL_TYPES = get_type_hints(RecordedCall)


def entries_of_record(
    file: Path, options: GenerationOptions
) -> tuple[list[PromptEntry], RecordedCall]:
    """Read what to generate again from an image's or a video's record.

    Args:
        options: all defaults, except for the paths: they say where the files are that the record
            names. Their hashes are compared; that of `weak_model` when it is opened.

    Returns:
        The image, or the keyframes of a video; and how they were generated.

    Raises:
        UserError: another option is given, there is no record, a value in it is of another type or
            out of bounds, or an input file is missing or has changed.
    """
    given = [name for name in DEFAULTS if options.is_set(name) and name not in PATHS]
    if given:
        raise UserError(
            "--reproduce takes the options of the image from its file; leave out "
            f"{', '.join(map(flag_name, given))}."
        )
    record = read_record(file)
    with error_location(one_line(file)):
        if SIDES in record:
            raise UserError(
                "it compares two settings. Each picture of it is also a file of its own, with its "
                "own record; give one of those."
            )
        call = recorded_call(record)
        values = {name: value for name, value in record.items() if name not in CALL_TYPES}
        if "count" in values:
            raise UserError("it names a count, but a record is that of one image.")
        for name in PATHS:
            check_path(name, getattr(options, name), values, call)
            values.pop(name, None)
        keyframes = [{}] if call.stations is None else call.stations
        return [entry_of(values | keyframe, options) for keyframe in keyframes], call


def recorded_call(record: Mapping[str, Any]) -> RecordedCall:
    """Take from a record what is no option of the image; raise UserError for a wrong value."""
    known = {
        name: convert(name, record[name], kind)
        for name, kind in CALL_TYPES.items()
        if name in record
    }
    call = RecordedCall(**known)
    check_bounds(call, RecordedCall)
    stations = call.stations if call.stations is not None else [{}]
    if not 0 < len(stations) <= MAX_KEYFRAMES:
        raise UserError(f"it has {len(stations):,} stations; a video has 2 to {MAX_KEYFRAMES:,}.")
    if wrong := {name for station in stations for name in station} - STATION:
        raise UserError(f"a station of it has the entry {shown(min(wrong))}, which is unknown.")
    return call


def entry_of(values: Mapping[str, Any], options: GenerationOptions) -> PromptEntry:
    """Make the entry of one image, whose seed must be one number."""
    seed = convert_value(values.get("seed", 0), int, "seed")
    check_prompt(convert_value(values.get("prompt"), str, "prompt"))
    return entry_from({**values, "seed": seed}, options)


def check_path(
    name: str, given: Path | None, values: Mapping[str, Any], call: RecordedCall
) -> None:
    """Compare a file of the record with the one that its flag names.

    Raises:
        UserError: only one of them is there, or they differ.
    """
    recorded = None if values.get(name) is None else convert(name, values[name])
    if recorded is None and given is not None:
        raise UserError(f"it was generated without {flag_name(name)}; leave it out.")
    if recorded is None:
        return
    sha256 = call.hashes if name == "weak_model" else call.files
    expected = sha256.get(name, sha256.get(str(values[name])))
    if given is None:
        raise UserError(
            f"it was generated with {flag_name(name)} {shown(recorded.name)} (sha256 "
            f"{shown(expected)}). A picture chooses no files to be read: say where it is by "
            f"{flag_name(name)} PATH."
        )
    if name != "weak_model" and (actual := hash_input_file(given)) != expected:
        raise UserError(
            f"it was generated from {shown(recorded.name)} with sha256 {shown(expected)}, but "
            f"{one_line(given)} has {actual}. Give the original by {flag_name(name)}."
        )


def find_model(call: RecordedCall, file: Path) -> Path:
    """Return the model that a record names, if it lies in the working folder, and say which.

    Raises:
        UserError: it is not there, or several have its name.
    """
    here = Path.cwd().resolve()
    name = Path(call.model).name
    found = [] if name in ("", ".", "..") else named_below(here, name)
    # Older records have the path as it was typed.
    if call.model != name and (typed := Path(call.model).absolute()) in found:
        found = [typed]
    if len(found) == 1:
        print(f"{one_line(file)} names the model {shown(name)}: {one_line(found[0])}")
        return found[0]
    place = f"there are {listed(found)}" if found else "it is not in the working folder"
    raise UserError(
        f"{one_line(file)} names the model {shown(name)}, and {place}. Say which it is by --model; "
        f"its U-Net has sha256 {shown(call.hashes.get('unet'))}."
    )


def is_model(path: Path) -> bool:
    """Return whether a path looks like a run, a pipeline folder or a file, and is no link."""
    marks = [path / "model_index.json", path / "model" / "model_index.json"]
    is_single = path.is_file() and path.suffix in (".safetensors", ".ckpt")
    return not path.is_symlink() and (is_single or any(mark.is_file() for mark in marks))


def named_below(folder: Path, name: str) -> list[Path]:
    """List models of a name in a folder; hidden folders and links are left out."""
    found, seen = [], 0
    for root, folders, files in os.walk(folder):
        depth = len(Path(root).relative_to(folder).parts)
        if name in (*folders, *files) and is_model(Path(root) / name):
            found.append(Path(root) / name)
        seen += len(folders) + len(files)
        if seen > SEARCH_LIMIT:
            break
        deeper = [each for each in folders if each[0] != "." and each != name]
        folders[:] = deeper if depth < SEARCH_DEPTH - 1 else []
    return found


def check_hashes(call: RecordedCall, hashes: Mapping[str, str], file: Path) -> None:
    """Raise UserError unless the weights are those that the record names.

    Args:
        hashes: sha256 of each part of the model that is open now.
        file: the recorded image, for the error message.
    """
    for part, sha256 in call.hashes.items():
        if hashes.get(part) != sha256:
            name = {"weak_model": "--weak-model", "lora": "--lora"}.get(part, "--model")
            raise UserError(
                f"{one_line(file)} was generated by another model: its {one_line(part, 60)} has "
                f"sha256 {shown(sha256)}, this "
                f"one's {hashes.get(part)}. Give the right one by {name}."
            )


def compare_pixels(reproduced: Path, original: Path) -> None:
    """Print that both files show the same pixels, or that their format does not tell.

    Raises:
        UserError: pixels differ.
    """
    for file in (original, reproduced):
        if file.suffix not in LOSSLESS:
            print(f"{file} is in a lossy format, so its pixels are not compared.")
            return
    pairs = zip_longest(read_frames(original), read_frames(reproduced))
    if all(a is not None and np.array_equal(a, b) for a, b in pairs):
        print(f"the same pixels as {original}")
    else:
        raise UserError(
            f"the pixels differ from those of {original}. Another kind of processor, or another "
            "version of PyTorch, rounds differently."
        )
