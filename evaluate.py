"""python evaluate.py autoencoder runs/vae --data data/openmoji

Measures how good a model is, and writes a page and a JSON file.

An evaluation that was stopped goes on with the same command. With torchrun its processes share the
images. What cannot be computed, because weights are missing or images are few, is named with what
to do; nothing is downloaded.
"""

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import tyro

from autoencoder import Autoencoder
from conditioning.clip import Clip
from dataset.images.pixel_format import recorded_format
from evaluation.feature_spaces.choice import choose_spaces
from foundation import collectives
from foundation.errors import UserError, one_line
from foundation.files import atomic_file, write_json, write_text
from interop.model_card import as_mapping
from ldm import TextToImage
from ldm.guidance import Guidance
from ldm.pipeline.compatibility import UNET_KINDS, unet_kind
from ldm.pipeline.conditioning import reads_prompt
from ldm.pipeline.io import read_model_provenance
from ldm.pipeline.sampling import Sampling
from stages.evaluation.autoencoder import AutoencoderMeasurement, Settings
from stages.evaluation.autoencoder_report import report_autoencoder
from stages.evaluation.classifier import load_classifier
from stages.evaluation.comparison import compare_reports
from stages.evaluation.data import MeasuredCaptions, MeasuredImages, choose_images
from stages.evaluation.drawing import Drawing
from stages.evaluation.languages import LanguageRecall
from stages.evaluation.model import ModelMeasurement, refuse_own_clip
from stages.evaluation.model_report import report_model
from stages.evaluation.reconstruction import NOISE, autoencoder_provenance, inspect_picture
from stages.evaluation.report import (
    COMPARISON_FILE,
    HTML_FILE,
    check_report_folder,
    print_report,
)
from stages.evaluation.sweep_points import Sweep, make_axes
from stages.evaluation.task_quality import TaskMeasurement
from training.cli import parse, pick_device, run_main
from training.flags import Bound, Finite, Groups, Positive, Seed
from training.open_result import open_result
from training.run import make_folder
from training.watchdog import report_finished

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
        "sampling": ("samples", "steps", "guidance_scale", "sampler", "seed"),
        "languages": ("language_samples",),
        "sweeps": ("sweep_guidance", "sweep_steps", "sweep_samplers", "sweep_samples"),
        "measurement": ("features", "classifier"),
        "output": ("out", "open"),
        "machine": ("batch_size", "device"),
    }

    model: Model  # run of train_ldm.py, pipeline folder, or single file
    # independent CLIP for scores: a run of train_clip.py --preset judge --size (as the model's)
    judge: Path | None = None
    samples: Positive[int] = 256  # captions chosen at random; one picture is generated for each
    steps: int = 25  # sampler steps per picture
    guidance_scale: Finite = 4.0  # as in sample.py
    sampler: str = "dpmpp_2m"  # as in sample.py
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


def main(argv: Sequence[str] | None = None) -> None:
    argv = list(sys.argv[1:] if argv is None else argv)
    refuse_old_form(argv)
    config: Config = parse(COMMANDS, argv, __doc__)
    if isinstance(config, AutoencoderConfig):
        evaluate_autoencoder(config)
    elif isinstance(config, ReconstructConfig):
        reconstruct(config)
    elif isinstance(config, ModelConfig):
        evaluate_model(config)
    elif isinstance(config, TaskConfig):
        evaluate_task(config)
    else:
        compare(config)


def refuse_old_form(argv: Sequence[str]) -> None:
    """Raise a UserError that has the new command, if the words are those of the old one."""
    if not argv or argv[0] in COMMANDS:
        return
    words, model = [], None
    rest = iter(argv)
    for word in rest:
        if word == "--model":
            model = next(rest, None)
        elif word.startswith("--model="):
            model = word.removeprefix("--model=")
        else:
            words.append(word)
    if model is not None:
        command = shlex.join(["python", "evaluate.py", "model", model, *words])
        raise UserError(f"evaluate.py has commands now. Instead of --model write:\n  {command}")


def evaluate_autoencoder(config: AutoencoderConfig) -> None:
    device = pick_device(config.device)
    autoencoder = Autoencoder.load(config.model, device)
    provenance = autoencoder_provenance(config.model)
    chosen = choose_spaces(config.features, device)
    measured = AutoencoderMeasurement(
        autoencoder,
        choose_images(config, config.images),
        config.size or autoencoder.config.sample_size,
        recorded_format(provenance),
        chosen,
        Settings(config.noise, config.batch_size, config.seed),
        device,
        out := report_folder(config.out, "autoencoder", config.model),
    )
    make_folder(out)
    measured.fill()
    report_finished()
    if not collectives.rank():
        print_report(report_autoencoder(measured, str(config.model), provenance, out), out)
        if config.open:
            open_result(out / HTML_FILE)


def reconstruct(config: ReconstructConfig) -> None:
    device = pick_device(config.device)
    autoencoder = Autoencoder.load(config.model, device)
    inspection = inspect_picture(
        autoencoder,
        config.picture,
        recorded_format(autoencoder_provenance(config.model)),
        device,
        size=config.size,
        noise=config.noise,
        seed=config.seed,
    )
    name = f"reconstruct-{config.picture.stem}"
    make_folder(out := config.out or Path("runs") / "evaluation" / name)
    for file, picture in inspection.pictures(config.amplify).items():
        with atomic_file(out / f"{file}.png") as partial:
            picture.save(partial, "PNG")
    write_json(out / "numbers.json", inspection.numbers())
    print(", ".join(f"{key.upper()} {value:.4g}" for key, value in inspection.metrics.items()))
    print("; ".join(f"noise {x:g}: {y:.4g} dB" for x, y in inspection.robustness))
    print(f"pictures and numbers are in {one_line(out)}")


def evaluate_model(config: ModelConfig) -> None:
    sampling = Sampling(
        sampler=config.sampler,
        steps=config.steps,
        guidance=Guidance(scale=config.guidance_scale),
    )
    axes = make_axes(sampling, config.sweep_guidance, config.sweep_steps, config.sweep_samplers)
    count = check_sweep_samples(config)
    device = pick_device(config.device)
    pipeline = TextToImage.load(config.model, device)
    if (kind := unet_kind(pipeline.unet.config)) != "draw":
        raise UserError(
            f"{config.model}: the U-Net {UNET_KINDS[kind].partition(':')[0]}, so it cannot draw "
            "from captions alone. Measure it with evaluate.py task."
        )
    judge = None if config.judge is None else load_judge(config.judge, pipeline)
    chosen = choose_spaces(config.features, device)
    classifier = None
    if config.classifier is not None:
        classifier = load_classifier(config.classifier, device, pipeline.size)
        chosen = classifier.join(chosen)
    if judge is None and not chosen.spaces:
        raise UserError(
            "there is nothing to measure with. Give --judge, a CLIP that was not used for this "
            "model, or --features, networks that compare samples with images. docs/evaluation.md "
            "says which there are."
        )
    out = report_folder(config.out, "model", config.model)
    drawing = Drawing(sampling, config.samples, config.batch_size)
    measured = ModelMeasurement(
        pipeline, judge, config.model, config, drawing, chosen, out, classifier
    )
    languages = None
    if config.language_samples is not None:
        languages = LanguageRecall(measured, config.language_samples)
    make_folder(out)
    measured.fill()
    if languages is not None:
        languages.fill()
    sweep = Sweep(measured, axes, count)
    sweep.fill()
    report_finished()
    if not collectives.rank():
        print_report(report_model(measured, sweep, languages, out), out)
        if config.open:
            open_result(out / HTML_FILE)


def evaluate_task(config: TaskConfig) -> None:
    guidance = Guidance(scale=config.guidance_scale)
    sampling = Sampling(sampler=config.sampler, steps=config.steps, guidance=guidance)
    device = pick_device(config.device)
    pipeline = TextToImage.load(config.model, device)
    trained = as_mapping(read_model_provenance(config.model).get("config"))
    measured = TaskMeasurement(
        pipeline,
        None if config.plain is None else TextToImage.load(config.plain, device),
        None if config.judge is None else Clip.load(config.judge, device),
        choose_images(config, config.images),
        sampling,
        config.seed,
        trained,
    )
    make_folder(out := report_folder(config.out, "task", config.model))
    result = measured.measure()
    report_finished()
    print(result.table())
    result.write(out, {"model": str(config.model), "images": measured.images.identity()})
    print(f"numbers and pictures are in {out}")


def load_judge(source: Path, pipeline: TextToImage) -> Clip:
    """Load the CLIP that scores whether samples follow their captions.

    Raises:
        UserError: the model reads no captions, or was trained with this CLIP.
    """
    if not reads_prompt(pipeline.unet):
        raise UserError(
            "--judge says how well samples follow their captions, and this model reads none. Leave "
            "it out, and give --features for distances."
        )
    judge = Clip.load(source, pipeline.device)
    refuse_own_clip(pipeline, judge, source)
    return judge


def check_sweep_samples(config: ModelConfig) -> int:
    """Return how many samples each value of a sweep gets.

    Raises:
        UserError: more than the measurement has, whose pictures a sweep uses, or without a sweep.
    """
    count = config.sweep_samples
    if count is None:
        return config.samples
    if not (config.sweep_guidance or config.sweep_steps or config.sweep_samplers):
        raise UserError(
            f"--sweep-samples {count} needs a sweep: --sweep-guidance, --sweep-steps or "
            "--sweep-samplers with values."
        )
    if count > config.samples:
        raise UserError(
            f"--sweep-samples {count} is more than --samples {config.samples}: a sweep uses the "
            "captions and the pictures of the measurement. Give fewer, or more --samples."
        )
    return count


def compare(config: CompareConfig) -> None:
    _, text, html = compare_reports(config.reports)
    print(text)
    if config.out is not None:
        make_folder(check_report_folder(config.out))
        write_text(config.out / COMPARISON_FILE, html)
        print(f"the page is {config.out / COMPARISON_FILE}")


def report_folder(out: Path | None, kind: str, model: Path) -> Path:
    """Return where a report goes; if `out` does not say it, runs/evaluation/model-demo-ldm."""
    dull = {"runs", "checkpoints", "model", "..", ".", model.anchor}
    parts = [part for part in model.with_suffix("").parts if part not in dull][-3:]
    return check_report_folder(out or Path("runs") / "evaluation" / "-".join([kind, *parts]))


if __name__ == "__main__":
    run_main(main, COMMANDS)
