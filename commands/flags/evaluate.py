"""The flags of evaluate.py: a dataclass for each of its commands."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import tyro

from stages.flags.evaluation import NOISE, MeasuredCaptions, MeasuredImages
from training.flags import Bound, Finite, Groups, Needs, Positive, Seed, needs

Strength = Annotated[float, Bound(lambda x: 0 <= x <= 100, "from 0 to 100")]
Model = Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="MODEL")]


@dataclass(frozen=True, kw_only=True)
class AutoencoderConfig(MeasuredImages):
    """python evaluate.py autoencoder runs/vae --data data/openmoji

    How well an autoencoder reconstructs images, compared with bicubic resampling and JPEG of the
    same size; statistics of its latents; robustness to noise; the worst reconstructions.

    MODEL is anything with an autoencoder in it: a run of train_vae.py, a whole model, a folder of
    diffusers' AutoencoderKL, a single file.
    """

    ESSENTIAL: ClassVar[Sequence[str]] = ("model", "data", "images", "out")
    GROUPS: ClassVar[Groups] = {
        "model": ("model",),
        "data": (*MeasuredImages.IMAGE_FLAGS, "images", "seed"),
        "measurement": ("size", "features", "noise"),
        "output": ("out", "open"),
        "machine": ("batch_size", "device"),
    }

    NEEDS: ClassVar[Needs] = (needs("held_out", split=False),)

    model: Model  # run folder, pipeline folder, folder of an AutoencoderKL, or single file
    images: Positive[int] = 1000  # at most so many, chosen at random
    size: Positive[int] | None = None  # side of the images in pixels; left out: as trained
    # feature spaces of distances: inception, dinov2, clip; a run of train_clip.py;
    # ARCHITECTURE:FILE of open_clip; a TorchScript file. Left out: the first three, where there
    features: tuple[str, ...] = ()
    # strengths of the noise on latents for the robustness curve, in their standard deviations
    noise: tuple[Strength, ...] = NOISE
    out: Path | None = None  # folder of the report; left out: runs/evaluation/autoencoder-MODEL
    open: bool = False  # show the page when it is ready
    batch_size: Positive[int] = 16  # images that a network sees at once
    device: str = "auto"  # cpu, cuda, mps; auto: the first GPU there is, else the CPU


@dataclass(frozen=True, kw_only=True)
class ReconstructConfig:
    """python evaluate.py reconstruct runs/vae photo.png

    What an autoencoder makes of one picture: its reconstruction, the difference, the channels of
    the latents, and reconstructions from latents with noise.

    Writes pictures and numbers.json. Of the picture, the centered square is used. The page of
    app.py shows the same.
    """

    GROUPS: ClassVar[Groups] = {
        "model": ("model",),
        "picture": ("picture", "size"),
        "measurement": ("noise", "seed", "amplify"),
        "output": ("out",),
        "machine": ("device",),
    }

    model: Model  # run folder, pipeline folder, folder of an AutoencoderKL, or single file
    picture: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="PICTURE")]  # image file
    size: Positive[int] | None = None  # side of the square in pixels; left out: as trained
    # strengths of the noise on latents, in their standard deviations
    noise: tuple[Strength, ...] = NOISE
    seed: Seed = 0  # of the noise
    amplify: Positive[float] = 4.0  # factor of the difference, which is shown on gray
    out: Path | None = None  # folder of the pictures; left out: runs/evaluation/reconstruct-PICTURE
    device: str = "auto"  # cpu, cuda, mps; auto: the first GPU there is, else the CPU


@dataclass(frozen=True, kw_only=True)
class ModelConfig(MeasuredCaptions):
    """python evaluate.py model runs/ldm --data data/openmoji --judge runs/judge

    How good the pictures of a whole model are and how well they follow their captions, compared
    with the most that can be reached: real images, and reconstructions of them.

    The judge is a CLIP that had no part in the training of the model, and that was trained on clean
    images of its size; its recall for real images is the most that samples can reach.
    """

    ESSENTIAL: ClassVar[Sequence[str]] = ("model", "data", "judge", "samples", "out")
    GROUPS: ClassVar[Groups] = {
        "model": ("model", "judge"),
        "data": MeasuredCaptions.IMAGE_FLAGS,
        "sampling": ("samples", "steps", "guidance_scale", "sampler", "clip_range", "seed"),
        "languages": ("language_samples",),
        "sweeps": ("sweep_guidance", "sweep_steps", "sweep_samplers", "sweep_samples"),
        "measurement": ("features", "classifier", "attribute_words"),
        "output": ("out", "open"),
        "machine": ("batch_size", "device"),
    }

    NEEDS: ClassVar[Needs] = (
        needs("held_out", split=False, held_out_split=True),
        needs("held_out_split", split=True),
        needs("language_samples", judge=True),
        needs("attribute_words", judge=True),
        needs("sweep_samples", sweep_guidance=True, sweep_steps=True, sweep_samplers=True),
    )

    model: Model  # run of train_ldm.py, pipeline folder, or single file
    # independent CLIP for scores: a run of train_clip.py --preset judge --size (as the model's)
    judge: Path | None = None
    samples: Positive[int] = 256  # captions chosen at random; one picture is generated for each
    steps: int = 25  # sampler steps per picture
    guidance_scale: Finite = 4.0  # as in sample.py
    sampler: str = "dpmpp_2m"  # as in sample.py
    clip_range: Positive[float] | None = None  # as in sample.py
    # recall in each language of the captions, too, with at most so many captions of each; the
    # judge must know the languages
    language_samples: Positive[int] | None = None
    # draw with these guidance scales, too, as in 1 2 6; all else stays as above
    sweep_guidance: tuple[Finite, ...] = ()
    sweep_steps: tuple[Positive[int], ...] = ()  # draw with these numbers of steps, too
    sweep_samplers: tuple[str, ...] = ()  # draw with these samplers, too
    sweep_samples: Positive[int] | None = None  # of each value of a sweep; left out: all of them
    features: tuple[str, ...] = ()  # feature spaces of distances, as for an autoencoder
    # TorchScript network that tells which caption an image has, and a JSON file that names them,
    # both as benchmarks/caption_classifier.py writes them
    classifier: Path | None = None
    # words of which captions name one, such as styles or colors; the judge says how often the
    # picture shows the right one
    attribute_words: tuple[str, ...] = ()
    out: Path | None = None  # folder of the report; left out: runs/evaluation/model-MODEL
    open: bool = False  # show the page when it is ready
    batch_size: Positive[int] = 16  # images that a network sees at once
    device: str = "auto"  # cpu, cuda, mps; auto: the first GPU there is, else the CPU


@dataclass(frozen=True, kw_only=True)
class TaskConfig(MeasuredImages):
    """python evaluate.py task runs/inpaint --data data/openmoji --plain runs/ldm

    How well a model that was trained for a task does it on held-out pictures, compared with
    ordinary models and filters: inpainting, upscaling, restoring.

    Writes task.json and task.png, whose rows are the originals and then the ways of the table.
    """

    GROUPS: ClassVar[Groups] = {
        "model": ("model", "plain", "judge"),
        "data": (*MeasuredImages.IMAGE_FLAGS, "images", "seed"),
        "sampling": ("steps", "guidance_scale", "sampler"),
        "output": ("out",),
        "machine": ("device",),
    }

    NEEDS: ClassVar[Needs] = (needs("held_out", split=False),)

    model: Model  # run of train_ldm.py --task, or pipeline folder
    plain: Path | None = None  # ordinary model of the same kind of pictures, to compare with
    judge: Path | None = None  # run of train_clip.py: the distance that it sees between pictures
    images: Positive[int] = 64  # at most so many, chosen at random
    steps: int = 25  # sampler steps per picture
    guidance_scale: Finite = 1.0  # as in sample.py; 1 is no guidance
    sampler: str = "dpmpp_2m"  # as in sample.py
    out: Path | None = None  # folder of the result; left out: runs/evaluation/task-MODEL
    device: str = "auto"  # cpu, cuda, mps; auto: the first GPU there is, else the CPU


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """python evaluate.py compare runs/evaluation/autoencoder-vae runs/evaluation/autoencoder-other

    Reports compared with the first: each number with better, worse, or no difference seen.

    Reports that were not measured in the same way are refused.
    """

    GROUPS: ClassVar[Groups] = {"reports": ("reports",), "output": ("out",)}

    # folders of reports, or their JSON files
    reports: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="REPORT ...")]
    out: Path | None = None  # folder for a page of the table; left out: none is written


COMMANDS = {
    "autoencoder": AutoencoderConfig,
    "reconstruct": ReconstructConfig,
    "model": ModelConfig,
    "task": TaskConfig,
    "compare": CompareConfig,
}
Config = AutoencoderConfig | ReconstructConfig | ModelConfig | TaskConfig | CompareConfig
