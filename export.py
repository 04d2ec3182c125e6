"""python export.py runs/ldm exported/model.safetensors --format single-file --dtype fp16

Writes a model, or one component of it, for other tools: as a diffusers folder, or as a single file
in the layout of Stable Diffusion's own checkpoints. Both can also be read. What is exported, read
again and exported again has the same bytes.
"""

from collections.abc import Sequence

from commands.flags.export import Config
from training.cli import parse, run_main


def main(argv: Sequence[str] | None = None) -> None:
    """Export a model as the command line says; argv: without the program's name."""
    config = parse(Config, argv, __doc__)
    from commands.export import run  # after parsing: it imports torch, which takes seconds

    run(config)


if __name__ == "__main__":
    run_main(main, Config)
