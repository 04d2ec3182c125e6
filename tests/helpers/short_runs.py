"""Trainings of all three stages, as short as they can be."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from safetensors.torch import load_file

COMMON = ("--preset", "tiny-32", "--steps", "3", "--batch-size", "8", "--warmup", "1")
COMMON += ("--held-out", "0.2", "--log-every", "1", "--precision", "fp32", "--device", "cpu")
ADVERSARY = ("--reconstruction", "l2", "--perceptual", "none", "--adversarial-weight", "0.5")
ADVERSARY += ("--discriminator-start", "1", "--adversarial-start", "1", "--adversarial-ramp", "1")
ADVERSARY += ("--learned-logvar", "--discriminator-width", "16", "--discriminator-layers", "2")


@contextmanager
def killed_in_step(stage: type, number: int) -> Iterator[None]:
    """Inside, a training of this stage dies when it begins that step, which must come."""
    step = stage.step

    def killed(self, now):
        if now == number:
            raise MemoryError
        return step(self, now)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(stage, "step", killed)
        with pytest.raises(MemoryError):
            yield


def clip(root: Path, out: Path, *flags: str) -> None:
    import train_clip

    train_clip.main([*shared(root), "--out", str(out / "clip"), *flags])


def vae(root: Path, out: Path, *flags: str) -> None:
    import train_vae

    train_vae.main([*shared(root), *ADVERSARY, "--out", str(out / "vae"), *flags])


def ldm(root: Path, out: Path, models: Path, *flags: str) -> None:
    import train_ldm

    parts = ("--vae", str(models / "vae"), "--text-encoder", str(models / "clip"))
    train_ldm.main([*shared(root), *parts, "--out", str(out / "ldm"), *flags])


def shared(root: Path) -> tuple[str, ...]:
    return ("--data", str(root / "data"), *COMMON)


def demo(root: Path, out: Path) -> None:
    clip(root, out)
    vae(root, out)
    ldm(root, out, out)


def numbers(run: Path) -> list[dict]:
    """What a run has measured, line by line, but for its speed and the words on it."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    left_out = {"images_per_second"}
    left_out |= {k for line in lines for k, v in line.items() if isinstance(v, str)}
    return [{k: v for k, v in line.items() if k not in left_out} for line in lines]


def same_weights(file: Path, other: Path) -> None:
    """Adam's first steps go by the sign of a gradient, also of one that is mere rounding. So a few
    weights differ by a whole step, and the comparison is by the length of all differences."""
    ours, theirs = load_file(file), load_file(other)
    assert ours.keys() == theirs.keys()
    difference = sum((ours[name] - theirs[name]).square().sum() for name in ours).sqrt()
    moved = sum(weight.square().sum() for weight in theirs.values()).sqrt()
    assert difference < 2e-3 * moved, difference / moved


if __name__ == "__main__":
    from training.cli import run_main

    run_main(lambda: demo(Path(sys.argv[1]), Path(sys.argv[2])))
