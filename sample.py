"""python sample.py "red heart" "woman astronaut" -n 4 --seed 0 --out samples

Generates images from a trained model: OUT/00000.png, 00001.png, ... No file is overwritten.
Image k of a call uses seed + k, so it can be generated again alone. Every file records how it was
made, and --reproduce FILE generates the same image from that record.
"""

from collections.abc import Sequence

from commands.flags.sample import Config
from training.cli import parse, run_main


def main(argv: Sequence[str] | None = None) -> None:
    config = parse(Config, argv, __doc__)
    from commands.sample import run  # after parsing: it imports torch, which takes seconds

    run(config)


if __name__ == "__main__":
    run_main(main, Config)
