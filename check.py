"""python check.py data/openmoji --size 64 --batch-size 32

Looks at a data folder before anything is trained on it: counts, where the captions come from, files
that cannot be used, image sizes, channels, depth and range, caption lengths, samples. Ends with
status 1 if a training on this folder would go wrong.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import tyro

from dataset.folder import read_folder
from dataset.images.numbers import report_numbers
from dataset.report import problems, report
from training.cli import parse, run_main
from training.flags import Groups, Positive
from training.logging.progress import progress_bar


@dataclass(frozen=True, kw_only=True)
class Options:
    GROUPS: ClassVar[Groups] = {
        "data": ("data", "allow_missing_captions"),
        "planned training": (
            *("size", "batch_size", "context_length", "text_chunks", "value_range"),
        ),
    }
    RENAMED: ClassVar[Mapping[str, str]] = {"tokens": "context_length"}

    data: tyro.conf.Positional[Path]  # the data folder, or shards: 'shards/{000..099}.tar'
    size: Positive[int] | None = None  # side of the training images, in pixels
    context_length: Positive[int] = 77  # tokens that the text encoder takes; CLIP: 77
    text_chunks: Positive[int] = 1  # contexts per caption, as in train_ldm.py
    batch_size: Positive[int] = 32  # images per step
    value_range: tuple[float, float] | None = None  # as in train_vae.py
    allow_missing_captions: bool = False  # do not call them a problem


def main(argv: Sequence[str] | None = None) -> None:
    options = parse(Options, argv, __doc__)
    folder = read_folder(options.data, allow_missing_captions=True, progress=progress_bar)
    tokens = options.text_chunks * (options.context_length - 2) + 2  # without inner start and end
    print(report(folder, options.size, tokens, token_counter()) + "\n")
    lines, found = report_numbers(folder, options.value_range)
    if lines:
        print("\n".join(lines) + "\n")
    found += problems(folder, options.batch_size, options.allow_missing_captions)
    for problem in found:
        print(f"PROBLEM: {problem}")
    if found:
        sys.exit(1)
    print("No problems found: ready to train on.")


def token_counter() -> Callable[[str], int] | None:
    """Counts as CLIP does, with start and end mark; None without open_clip."""
    try:
        from open_clip.tokenizer import SimpleTokenizer
    except ModuleNotFoundError:
        return None
    tokenizer = SimpleTokenizer()
    return lambda text: len(tokenizer.encode(text)) + 2


if __name__ == "__main__":
    run_main(main)
