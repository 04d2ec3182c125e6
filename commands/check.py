"""What check.py does: report on a data folder before a training."""

import json
import re
import sys
from dataclasses import asdict
from typing import Any

from commands.flags.check import Options
from dataset.checking.accounting import entry_account
from dataset.checking.caption_statistics import count_captions
from dataset.checking.contact_sheet import write_contact_sheet
from dataset.checking.planned_run import size_loss
from dataset.folder import check_part, read_folder
from dataset.report import SHOWN_CAPTION, pixel_kinds, sample_pairs
from foundation.errors import UserError, one_line, shown
from stages.preparation.data_check import (
    Report,
    check_folder,
    for_people,
    planned_runs,
    report_lines,
    text_room,
)
from training.logging.progress import progress_bar

PART = re.compile(r"([0-9]{1,6})/([0-9]{1,6})")
MOST_PAIRS = 1000  # of pictures that look the same, in --json


def run(options: Options) -> None:
    """Check a data folder and print what was found; exit with status 1 if it is unfit."""
    if options.part is not None:
        return print_part(options, options.part)
    runs = planned_runs(options)
    room, count_tokens = text_room(options)
    folder = read_folder(options.data, True, progress_bar, options)
    captions = count_captions(folder, room, count_tokens)
    found = check_folder(options, folder, runs, captions, progress_bar)
    if options.sheet is not None:
        drawn = write_contact_sheet(folder.pairs, options.sheet)
        print(f"{drawn} pairs are drawn in {one_line(options.sheet)}.", file=sys.stderr)
    if options.json:
        print(json.dumps(facts(found), indent=2))
    else:
        print(*report_lines(found), sep="\n")
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
        "kinds": pixel_kinds(folder),
        "samples": [
            {
                "path": one_line(pair.path),
                "captions": [one_line(caption, SHOWN_CAPTION) for caption in pair.captions],
            }
            for pair in sample_pairs(folder)
        ],
        "planned_size": found.size,
        "size_loss": {
            "cropped": {f"{aspect:g}": value for aspect, value in loss.cropped.items()},
            "enlarged": loss.enlarged,
            "reduced": loss.reduced,
        },
        "planned_runs": [asdict(run) for run in found.runs],
        "numbers": [line.strip() for line in found.numbers],
    }
