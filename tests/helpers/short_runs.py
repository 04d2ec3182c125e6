"""Trainings of all three stages, as short as possible."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from safetensors.torch import load_file

from training.checkpoint import saved_states

COMMON = ("--preset", "tiny-32", "--steps", "3", "--batch-size", "8", "--warmup", "1")
COMMON += ("--held-out", "0.2", "--log-every", "1", "--precision", "fp32", "--device", "cpu")
ADVERSARY = ("--reconstruction", "l2", "--perceptual", "none", "--adversarial-weight", "0.5")
ADVERSARY += ("--discriminator-start", "1", "--adversarial-start", "1", "--adversarial-ramp", "1")
ADVERSARY += ("--learned-logvar", "--discriminator-width", "16", "--discriminator-layers", "2")


@contextmanager
def killed_in_step(stage: type, number: int) -> Iterator[None]:
    """Let a training of this stage die when it begins a step. The block must reach that step."""
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
    """Train stage 0 into `out/clip`."""
    import train_clip

    train_clip.main([*common_flags(root), "--out", str(out / "clip"), *flags])


def vae(root: Path, out: Path, *flags: str) -> None:
    """Train stage 1 into `out/vae`."""
    import train_vae

    train_vae.main([*common_flags(root), *ADVERSARY, "--out", str(out / "vae"), *flags])


def ldm(root: Path, out: Path, models: Path, *flags: str) -> None:
    """Train stage 2 into `out/ldm`, on the runs `vae` and `clip` in `models`."""
    import train_ldm

    inputs = ("--vae", str(models / "vae"), "--text-encoder", str(models / "clip"))
    train_ldm.main([*common_flags(root), *inputs, "--out", str(out / "ldm"), *flags])


def common_flags(root: Path) -> tuple[str, ...]:
    return ("--data", str(root / "data"), *COMMON)


def demo(root: Path, out: Path) -> None:
    """Train all three stages on the data in `root`."""
    clip(root, out)
    vae(root, out)
    ldm(root, out, out)


def state(run: Path) -> dict[str, bytes]:
    """Return the files of tensors in the newest saved state of a run."""
    newest = saved_states(run / "state")[-1]
    return {path.name: path.read_bytes() for path in sorted(newest.rglob("*.safetensors"))}


def numbers(run: Path) -> list[dict]:
    """Return the metrics of a run line by line, without its speed and without texts."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    left_out = {"images_per_second"}
    left_out |= {k for line in lines for k, v in line.items() if isinstance(v, str)}
    return [{k: v for k, v in line.items() if k not in left_out} for line in lines]


def same_weights(file: Path, other: Path) -> None:
    """Compare two files of weights by the norm of their difference.

    Adam's first steps follow the sign of a gradient, also where that is mere rounding, so a few
    weights differ by a whole step.
    """
    ours, theirs = load_file(file), load_file(other)
    assert ours.keys() == theirs.keys()
    difference = sum((ours[name] - theirs[name]).square().sum() for name in ours).sqrt()
    size = sum(weight.square().sum() for weight in theirs.values()).sqrt()
    assert difference < 2e-3 * size, difference / size


if __name__ == "__main__":
    from training.cli import run_main

    run_main(lambda: demo(Path(sys.argv[1]), Path(sys.argv[2])))
