"""python check.py data/openmoji --size 64 --batch-size 32

Checks a data folder before training on it. Reports how many images and captions there are, where
the captions come from, which files cannot be used, image sizes, channels, depth and range, caption
lengths, and samples. Exits with status 1 if a training on this folder would go wrong.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import tyro

from dataset.folder import read_folder
from dataset.options import ReadOptions
from dataset.report import find_problems, report, report_numbers
from training.cli import parse, run_main
from training.flags import Groups, Positive, with_flags
from training.logging.progress import progress_bar

PARAMETERS = ("batch_size", "max_aspect", "value_range", "skip_unusable")  # of the trainings


@dataclass(frozen=True, kw_only=True)
class Options(ReadOptions):
    GROUPS: ClassVar[Groups] = {
        "data": ("data", *ReadOptions.READ_FLAGS, "allow_missing_captions"),
        "planned training": (
            *("size", "batch_size", "context_length", "text_chunks", "value_range"),
        ),
    }
    RENAMED: ClassVar[Mapping[str, str]] = {"tokens": "context_length"}

    data: tyro.conf.Positional[Path]  # data folder, or tar files: 'shards/{000..099}.tar'
    size: Positive[int] | None = None  # side of the training images, in pixels
    context_length: Positive[int] = 77  # tokens that the text encoder takes; CLIP: 77
    text_chunks: Positive[int] = 1  # contexts per caption, as in train_ldm.py
    batch_size: Positive[int] = 32  # images per step
    value_range: tuple[float, float] | None = None  # as in train_vae.py
    allow_missing_captions: bool = False  # accept images without a caption


def main(argv: Sequence[str] | None = None) -> None:
    options = parse(Options, argv, __doc__)
    folder = read_folder(options.data, True, progress_bar, options)
    tokens = options.text_chunks * (options.context_length - 2) + 2  # without inner start and end
    print(with_flags(report(folder, options.size, tokens, token_counter()), PARAMETERS) + "\n")
    lines, problems = report_numbers(folder, options.value_range)
    if lines:
        print(with_flags("\n".join(lines), PARAMETERS) + "\n")
    problems += find_problems(folder, options.batch_size, options.allow_missing_captions)
    for problem in problems:
        print(f"PROBLEM: {with_flags(problem, PARAMETERS)}")
    if problems:
        sys.exit(1)
    print("No problems found: ready for training.")


def token_counter() -> Callable[[str], int] | None:
    """Return CLIP's count of tokens with start and end mark; None if open_clip is missing."""
    try:
        from open_clip.tokenizer import SimpleTokenizer
    except ModuleNotFoundError:
        return None
    tokenizer = SimpleTokenizer()
    return lambda text: len(tokenizer.encode(text)) + 2


if __name__ == "__main__":
    run_main(main)
