"""python train_ldm.py --data data/openmoji --vae runs/vae --text-encoder runs/clip --out runs/ldm

Stage 2: train a U-Net on latents and captions. Every image and caption is encoded once, into a
cache in the run folder. If the run is stopped or killed, run the same command again to resume it.
With --condition class the captions are the names of classes, with --condition none only the images
are read, and neither needs a text encoder.
With --task inpaint, upscale or restore the U-Net also gets a masked, small or damaged picture.
With --init-from MODEL the training begins with the weights of another U-Net; with --lora RANK as
well it leaves these weights as they are and learns a small change of them, a LoRA.
"""

from collections.abc import Sequence

from stages.flags.diffusion import PRESETS, DiffusionTrainingConfig
from training.cli import parse, run_main


def main(argv: Sequence[str] | None = None) -> None:
    config = parse(DiffusionTrainingConfig, argv, __doc__, PRESETS)
    from commands.train_ldm import run  # after parsing: it imports torch, which takes seconds

    run(config)


if __name__ == "__main__":
    run_main(main, DiffusionTrainingConfig)
