"""The check of a data folder: what check.py and the page report before a training."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from conditioning.clip import PRESETS as TEXT_ENCODERS
from conditioning.io import open_tokenizer
from dataset.checking.accounting import (
    Account,
    account_for,
    describe_account,
    describe_entries,
    entry_account,
)
from dataset.checking.caption_statistics import CaptionStatistics
from dataset.checking.near_duplicates import near_duplicates
from dataset.checking.planned_run import (
    PlannedRun,
    judge,
    judge_batch,
    judge_captions,
    judge_images,
)
from dataset.folder import Folder
from dataset.parallel import Progress, no_progress
from dataset.report import find_problems, report, report_numbers
from dataset.table import split
from dataset.webdataset import is_shards
from foundation.errors import MissingFileError, one_line, printable, unknown_name
from foundation.run_kind import hub_hint
from stages.flags import autoencoder, clip, diffusion
from stages.flags.check import CheckOptions
from stages.plan import NAMED_IN_REMARKS, judge_held_out, planned_run
from training.cli import preset_config
from training.config import TrainingConfig
from training.flags import with_flags

PARAMETERS = (  # of the trainings
    *("batch_size", "max_aspect", "value_range", "skip_unusable", "allow_missing_captions"),
    *("context_length", "text_chunks", "trust_hashes", "condition", *NAMED_IN_REMARKS),
)
TRAININGS: dict[str, tuple[type[TrainingConfig], dict[str, dict[str, Any]]]] = {
    "train_clip.py": (clip.ClipTrainingConfig, clip.PRESETS),
    "train_vae.py": (autoencoder.AutoencoderTrainingConfig, autoencoder.PRESETS),
    "train_ldm.py": (diffusion.DiffusionTrainingConfig, diffusion.PRESETS),
}
CLIP_TOKENS = 77  # that OpenAI's text encoders read
USUAL_BATCH = 32  # where no training is planned
SHOWN_PAIRS = 5  # of pictures that look the same


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


def check_folder(
    options: CheckOptions,
    folder: Folder,
    runs: Sequence[PlannedRun],
    captions: CaptionStatistics,
    progress: Progress = no_progress,
) -> Report:
    """Collect what is to be said about a folder that was read.

    runs: the trainings that are planned on it.
    """
    size = options.size or next((run.size for run in reversed(runs) if run.size), None)
    numbers, problems = report_numbers(folder, options.value_range)
    problems += find_problems(folder, options.allow_missing_captions)
    images = len(split(folder.pairs, TrainingConfig.held_out)[0]) if len(folder.pairs) > 1 else 1
    batches = {run.training: run.batch_size for run in runs} or {"a training": options.batch_size}
    held_out = len(folder.pairs) - images
    for training, batch_size in batches.items():
        problems += judge_batch(training, batch_size or USUAL_BATCH, images, held_out)
    problems += judge_captions(captions)
    remarks = [remark for run in runs for remark in judge(run, images)]
    if runs:
        remarks += judge_held_out(held_out, len(folder.pairs))
    if runs and size is not None:
        remarks += judge_images(folder.pairs, size)
    similar = near_duplicates(folder.pairs.paths, progress) if options.near_duplicates else []
    hashes = folder.pairs.column("sha256")
    similar = [(a, b) for a, b in similar if (hashes[a] != hashes[b]).any()]
    root = folder.root
    listed = folder.uses or not isinstance(root, Path) or is_shards(root)
    account = None if listed else account_for(folder, options.split)
    return Report(folder, account, captions, size, similar, [*runs], numbers, problems, remarks)


def planned_runs(options: CheckOptions) -> list[PlannedRun]:
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


def text_room(options: CheckOptions) -> tuple[int, Callable[[str], int] | None]:
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
    """Return CLIP's count of tokens with start and end mark; None if open_clip is missing.

    Its first call imports open_clip, which takes seconds.
    """
    if find_spec("open_clip") is None:
        return None

    @cache
    def tokenizer() -> Any:
        from open_clip.tokenizer import SimpleTokenizer

        return SimpleTokenizer()

    return lambda text: len(tokenizer().encode(text)) + 2


def report_lines(found: Report) -> Iterator[str]:
    """Yield the report in sections, the remarks, the problems, and whether a training can begin."""
    sections = [report(found.folder, found.size, captions=found.captions)]
    if found.account is not None:
        sections.append("\n".join(describe_account(found.account)))
    if entries := entry_account(found.folder):
        sections.append("\n".join(describe_entries(entries)))
    sections.append("\n".join(describe_similar(found)))
    sections.append("\n".join(found.numbers))
    for section in filter(None, sections):
        yield for_people(section) + "\n"
    for remark in found.remarks:
        yield f"REMARK: {for_people(remark)}"
    for problem in found.problems:
        yield f"PROBLEM: {for_people(problem)}"
    if found.remarks and not found.problems:
        yield "No problems found, but read the remarks above."
    elif not found.problems and found.runs:
        yield "No problems found: ready for training."
    elif not found.problems:
        preset = TrainingConfig.preset
        yield (
            "No problems found in the data. To check the trainings as well, such as their batch "
            f"size, give --preset, such as --preset {preset}, their default."
        )


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
