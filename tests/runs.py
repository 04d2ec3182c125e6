"""Trainings as short as they can be, of all three stages."""

from pathlib import Path

import train_clip
import train_ldm
import train_vae

COMMON = ("--preset", "tiny-32", "--steps", "3", "--batch-size", "8", "--warmup", "1")
COMMON += ("--held-out", "0.2", "--log-every", "1", "--precision", "fp32", "--device", "cpu")
ADVERSARY = ("--reconstruction", "l2", "--perceptual", "none", "--adversarial-weight", "0.5")
ADVERSARY += ("--discriminator-start", "1", "--adversarial-start", "1", "--adversarial-ramp", "1")
ADVERSARY += ("--learned-logvar", "--discriminator-width", "16", "--discriminator-layers", "2")


def train_all(root: Path, out: Path, *flags: str) -> None:
    """The three stages, from the images in root/data to out/clip, out/vae and out/ldm."""
    shared = ("--data", str(root / "data"), *COMMON, *flags)
    train_clip.main([*shared, "--out", str(out / "clip")])
    train_vae.main([*shared, *ADVERSARY, "--out", str(out / "vae")])
    train_ldm.main([*shared, *parts(out), "--out", str(out / "ldm")])


def parts(out: Path) -> tuple[str, ...]:
    return ("--vae", str(out / "vae"), "--text-encoder", str(out / "clip"))
