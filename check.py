"""python check.py data/openmoji --preset small-64

Checks a data folder before training on it. Accounts for every file, reports where the captions come
from, which files cannot be used, pictures that look the same, image sizes, channels, depth and
range, caption lengths and words, and samples. With a preset it also checks the trainings. Exits
with status 1 if a training on this folder would go wrong.
"""

import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import tyro

from conditioning.clip import PRESETS as TEXT_ENCODERS
from conditioning.io import open_tokenizer
from dataset.checking.accounting import (
    Account,
    account_for,
    describe_account,
    describe_entries,
    entry_account,
)
from dataset.checking.caption_statistics import CaptionStatistics, count_captions
from dataset.checking.contact_sheet import write_contact_sheet
from dataset.checking.near_duplicates import near_duplicates
from dataset.checking.planned_run import (
    PlannedRun,
    judge,
    judge_batch,
    judge_captions,
    judge_images,
    size_loss,
)
from dataset.folder import Folder, check_part, read_folder
from dataset.options import ReadOptions
from dataset.report import find_problems, report, report_numbers
from dataset.table import split
from dataset.webdataset import is_shards
from foundation.errors import (
    MissingFileError,
    UserError,
    one_line,
    printable,
    shown,
    unknown_name,
)
from foundation.run_kind import hub_hint
from stages import autoencoder, clip, diffusion
from stages.plan import NAMED_IN_REMARKS, planned_run
from training.cli import parse, preset_config, run_main
from training.config import TrainingConfig
from training.flags import Groups, Positive, with_flags
from training.logging.progress import progress_bar

PARAMETERS = (  # of the trainings
    *("batch_size", "max_aspect", "value_range", "skip_unusable", "allow_missing_captions"),
    *("context_length", "text_chunks", "trust_hashes", "condition", *NAMED_IN_REMARKS),
)
TRAININGS = {
    "train_clip.py": (clip.ClipTrainingConfig, clip.PRESETS),
    "train_vae.py": (autoencoder.AutoencoderTrainingConfig, autoencoder.PRESETS),
    "train_ldm.py": (diffusion.DiffusionTrainingConfig, diffusion.PRESETS),
}
PART = re.compile(r"([0-9]{1,6})/([0-9]{1,6})")
CLIP_TOKENS = 77  # that OpenAI's text encoders read
SHOWN_PAIRS = 5  # of pictures that look the same; --json has the first 1000
MOST_PAIRS = 1000


@dataclass(frozen=True, kw_only=True)
class Options(ReadOptions):
    ESSENTIAL: ClassVar[Sequence[str]] = ("data", "preset", "sheet")
    GROUPS: ClassVar[Groups] = {
        "data": ("data", *ReadOptions.READ_FLAGS, "allow_missing_captions"),
        "planned training": (
            *("preset", "text_encoder", "size", "batch_size", "context_length", "text_chunks"),
            "value_range",
        ),
        "report": ("near_duplicates", "sheet", "json", "part"),
    }
    RENAMED: ClassVar[Mapping[str, str]] = {"tokens": "context_length"}

    data: tyro.conf.Positional[Path]  # data folder, or tar files: 'shards/{000..099}.tar'
    preset: str | None = None  # also check the settings of the trainings with this preset
    text_encoder: Path | None = None  # folder of the text encoder, whose tokens are counted
    size: Positive[int] | None = None  # side of the training images, in pixels
    context_length: Positive[int] | None = None  # tokens that the text encoder takes
    text_chunks: Positive[int] = 1  # contexts per caption, as in train_ldm.py
    batch_size: Positive[int] | None = None  # images per step; left out: the preset's, or 32
    value_range: tuple[float, float] | None = None  # as in train_vae.py
    allow_missing_captions: bool = False  # accept images without a caption
    near_duplicates: bool = True  # look for pictures that look the same; decodes all of them
    sheet: Path | None = None  # draw pairs to this PNG file
    json: bool = False  # print the report as one JSON object
    part: str | None = None  # K/N: only check part K of N for the index, on one of N machines


@dataclass(frozen=True)
class Report:
    """What a check found."""

    folder: Folder
    account: Account | None  # None for shards and tables
    captions: CaptionStatistics
    size: int | None
    similar: list[tuple[int, int]]
    runs: list[PlannedRun]
    numbers: list[str]
    problems: list[str]
    remarks: list[str]


def main(argv: Sequence[str] | None = None) -> None:
    options = parse(Options, argv, __doc__)
    if options.part is not None:
        return print_part(options, options.part)
    runs = planned_runs(options)
    room, count_tokens = text_room(options)
    folder = read_folder(options.data, True, progress_bar, options)
    found = check(options, folder, runs, count_captions(folder, room, count_tokens))
    if options.sheet is not None:
        drawn = write_contact_sheet(folder.pairs, options.sheet)
        print(f"{drawn} pairs are drawn in {one_line(options.sheet)}.", file=sys.stderr)
    if options.json:
        print(json.dumps(facts(found), indent=2))
    else:
        print_report(found)
    if found.problems:
        sys.exit(1)


def print_part(options: Options, part: str) -> None:
    """Check one part of the images, and print how many parts are done."""
    match = PART.fullmatch(part)
    number, count = map(int, match.groups()) if match else (0, 0)
    if not 1 <= number <= count:
        raise UserError(f"part is {shown(part)}; it is K/N, such as 3/64: part 3 of 64.")
    done, total = check_part(options.data, number, count, progress_bar, options)
    rest = "the index is complete" if done == total else "the others are missing"
    print(f"part {part}: {done:,} of {total:,} pieces of the data are checked; {rest}.")


def check(
    options: Options, folder: Folder, runs: list[PlannedRun], captions: CaptionStatistics
) -> Report:
    """Collect what is to be said about a folder."""
    size = options.size or next((run.size for run in reversed(runs) if run.size), None)
    batch_size = 0 if runs else options.batch_size or 32
    numbers, problems = report_numbers(folder, options.value_range)
    problems += find_problems(folder, batch_size, options.allow_missing_captions)
    problems += [line for run in runs for line in judge_batch(run, len(folder.pairs))]
    problems += judge_captions(captions)
    images = len(split(folder.pairs, TrainingConfig.held_out)[0]) if len(folder.pairs) > 1 else 1
    remarks = [remark for run in runs for remark in judge(run, images)]
    if runs and size is not None:
        remarks += judge_images(folder.pairs, size)
    similar = near_duplicates(folder.pairs.paths, progress_bar) if options.near_duplicates else []
    hashes = folder.pairs.column("sha256")
    similar = [(a, b) for a, b in similar if (hashes[a] != hashes[b]).any()]
    listed = folder.uses or is_shards(options.data)
    account = None if listed else account_for(folder, options.split)
    return Report(folder, account, captions, size, similar, runs, numbers, problems, remarks)


def planned_runs(options: Options) -> list[PlannedRun]:
    """Return the trainings that have the preset."""
    if options.preset is None:
        return []
    runs: list[PlannedRun] = []
    for training, (config, presets) in TRAININGS.items():
        made = training == "train_clip.py" and options.text_encoder is not None
        if options.preset in presets and not made:
            values = preset_config(config, options.preset, presets)
            run = planned_run(training, values)
            batch_size, size = options.batch_size or run.batch_size, options.size or run.size
            runs.append(replace(run, batch_size=batch_size, size=size))
    if not runs:
        known = list(dict.fromkeys(name for _, presets in TRAININGS.values() for name in presets))
        raise unknown_name(options.preset, known, "preset")
    return runs


def text_room(options: Options) -> tuple[int, Callable[[str], int] | None]:
    """Return how many tokens of a caption the text encoder reads, and a function that counts them.

    Marks for start and end are counted, but not those between two contexts.
    """
    count_tokens = token_counter()
    tokens = CLIP_TOKENS
    if options.text_encoder is not None:
        if not options.text_encoder.is_dir():
            raise MissingFileError(
                f"there is no text encoder folder {options.text_encoder}."
                f"{hub_hint(options.text_encoder)}"
            )
        tokenizer = open_tokenizer(options.text_encoder)
        tokens, count_tokens = tokenizer.context_length, tokenizer.count
    elif options.preset in TEXT_ENCODERS:
        tokens = TEXT_ENCODERS[options.preset]["text_cfg"]["context_length"]
    tokens = options.context_length or tokens
    return options.text_chunks * (tokens - 2) + 2, count_tokens


def token_counter() -> Callable[[str], int] | None:
    """Return CLIP's count of tokens with start and end mark; None if open_clip is missing."""
    try:
        from open_clip.tokenizer import SimpleTokenizer
    except ModuleNotFoundError:
        return None
    tokenizer = SimpleTokenizer()
    return lambda text: len(tokenizer.encode(text)) + 2


# Output -------------------------------------------------------------------------------------------


def print_report(found: Report) -> None:
    """Print the report, the problems, and whether a training can begin."""
    sections = [report(found.folder, found.size, captions=found.captions)]
    if found.account is not None:
        sections.append("\n".join(describe_account(found.account)))
    if entries := entry_account(found.folder):
        sections.append("\n".join(describe_entries(entries)))
    sections.append("\n".join(describe_similar(found)))
    sections.append("\n".join(found.numbers))
    for section in filter(None, sections):
        print(for_people(section) + "\n")
    for remark in found.remarks:
        print(f"REMARK: {for_people(remark)}")
    for problem in found.problems:
        print(f"PROBLEM: {for_people(problem)}")
    if found.remarks and not found.problems:
        print("No problems found, but read the remarks above.")
    elif not found.problems:
        print("No problems found: ready for training.")


def for_people(text: str) -> str:
    """Return a text for the terminal, with flags in place of parameters."""
    return with_flags(printable(text), PARAMETERS)


def describe_similar(found: Report) -> Iterator[str]:
    """Yield the lines on pictures that look the same."""
    if not found.similar:
        return
    paths = found.folder.pairs.paths
    yield "Pictures that look the same, though their files differ"
    for a, b in found.similar[:SHOWN_PAIRS]:
        yield f"  {one_line(paths[a])} and {one_line(paths[b])}"
    if len(found.similar) > SHOWN_PAIRS:
        yield f"  and {len(found.similar) - SHOWN_PAIRS} more pairs"


def facts(found: Report) -> dict[str, Any]:
    """Return the whole report as values for JSON."""
    folder, images = found.folder, found.folder.pairs
    paths, loss = images.paths, size_loss(folder, found.size)
    similar = [[one_line(paths[k]) for k in pair] for pair in found.similar[:MOST_PAIRS]]
    captions = asdict(found.captions)
    captions["lengths"] = {str(length): count for length, count in captions["lengths"].items()}
    return {
        "data": one_line(folder.root),
        "ready": not found.problems and not found.remarks,
        "problems": [for_people(problem) for problem in found.problems],
        "remarks": [for_people(remark) for remark in found.remarks],
        "notes": [for_people(note) for note in folder.notes],
        "images": len(images),
        "caption_source": folder.rule,
        "captions": {**captions, "all_cut": found.captions.all_cut},
        "files": None if found.account is None else asdict(found.account),
        "entries": entry_account(found.folder),
        "unusable": [
            {"path": one_line(entry.path), "reason": one_line(entry.reason)}
            for entry in folder.unusable
        ],
        "near_duplicates": {"pairs": len(found.similar), "first": similar},
        "sizes": {
            name: {"least": int(values.min()), "most": int(values.max())}
            for name in ("width", "height")
            for values in [images.column(name)]
        },
        "planned_size": found.size,
        "size_loss": {
            "cropped": {f"{aspect:g}": value for aspect, value in loss.cropped.items()},
            "enlarged": loss.enlarged,
            "reduced": loss.reduced,
        },
        "planned_runs": [asdict(run) for run in found.runs],
        "numbers": [line.strip() for line in found.numbers],
    }


if __name__ == "__main__":
    run_main(main, Options)
