"""python train_clip.py --data data/openmoji --out runs/clip

Stage 0, optional: train a CLIP, whose text encoder then conditions stage 2. Use it for words that
public models never saw, or without a network connection. If the run is stopped or killed, run the
same command again to resume it. A second CLIP that scores samples, for evaluate.py; its size is
that of the images that the model draws:

  python train_clip.py --data data/openmoji --preset judge --size 64 --out runs/judge
"""

from collections.abc import Sequence

from stages.flags.clip import PRESETS, ClipTrainingConfig
from training.cli import parse, run_main


def main(argv: Sequence[str] | None = None) -> None:
    config = parse(ClipTrainingConfig, argv, __doc__, PRESETS)
    from commands.train_clip import run  # after parsing: it imports torch, which takes seconds

    run(config)


if __name__ == "__main__":
    run_main(main, ClipTrainingConfig)
