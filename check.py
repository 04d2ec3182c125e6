"""python check.py data/openmoji --preset small-64

Checks a data folder before training on it. Accounts for every file, reports where the captions come
from, which files cannot be used, pictures that look the same, image sizes, channels, depth and
range, caption lengths and words, and samples. With a preset it also checks the trainings. Exits
with status 1 if a training on this folder would go wrong.
"""

from collections.abc import Sequence

from commands.flags.check import Options
from training.cli import parse, run_main


def main(argv: Sequence[str] | None = None) -> None:
    options = parse(Options, argv, __doc__)
    from commands.check import run  # after parsing: it imports torch, which takes seconds

    run(options)


if __name__ == "__main__":
    run_main(main, Options)
