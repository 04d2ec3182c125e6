"""python train_vae.py --data data/openmoji --out runs/vae

Stage 1: train an autoencoder on images; captions are not needed. If the run is stopped or killed,
run the same command again to resume it. The small presets need no download; from base-256 on the
loss contains LPIPS, whose weights are downloaded.
"""

from collections.abc import Sequence

from stages.flags.autoencoder import PRESETS, AutoencoderTrainingConfig
from training.cli import parse, run_main


def main(argv: Sequence[str] | None = None) -> None:
    config = parse(AutoencoderTrainingConfig, argv, __doc__, PRESETS)
    from commands.train_vae import run  # after parsing: it imports torch, which takes seconds

    run(config)


if __name__ == "__main__":
    run_main(main, AutoencoderTrainingConfig)
