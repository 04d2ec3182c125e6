"""What evaluate.py does: how good an autoencoder or a model is, as numbers and as a page."""

from pathlib import Path

from autoencoder import Autoencoder
from commands.flags.evaluate import (
    AutoencoderConfig,
    CompareConfig,
    Config,
    ModelConfig,
    ReconstructConfig,
    TaskConfig,
)
from conditioning.clip import Clip
from dataset.images.pixel_format import recorded_format
from evaluation.attributes import Attribute
from evaluation.feature_spaces.choice import choose_spaces
from foundation import collectives
from foundation.errors import UserError, one_line
from foundation.files import atomic_file, write_json, write_text
from foundation.system import open_result
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
from stages.evaluation.data import choose_images
from stages.evaluation.drawing import Drawing
from stages.evaluation.languages import LanguageRecall
from stages.evaluation.model import ModelMeasurement, refuse_own_clip
from stages.evaluation.model_report import report_model
from stages.evaluation.reconstruction import autoencoder_provenance, inspect_picture
from stages.evaluation.report import (
    COMPARISON_FILE,
    HTML_FILE,
    check_report_folder,
    print_report,
)
from stages.evaluation.sweep_points import Sweep, make_axes
from stages.evaluation.task_quality import TaskMeasurement
from training.device import pick_device
from training.run import make_folder
from training.watchdog import report_finished


def run(config: Config) -> None:
    """Do what the command asks for, which the type of its flags tells.

    Raises:
        UserError: several processes are started for a command that works in one.
    """
    if collectives.world_size() > 1 and not isinstance(config, AutoencoderConfig | ModelConfig):
        raise UserError(
            "only the commands autoencoder and model share their work among processes. Start this "
            "one without torchrun."
        )
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
        clip_range=config.clip_range,
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
    attribute = Attribute(config.attribute_words) if config.attribute_words else None
    out = report_folder(config.out, "model", config.model)
    drawing = Drawing(sampling, config.samples, config.batch_size)
    measured = ModelMeasurement(
        pipeline, judge, config.model, config, drawing, chosen, out, classifier, attribute
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
        UserError: more than the measurement has, whose pictures a sweep uses.
    """
    count = config.sweep_samples
    if count is None:
        return config.samples
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
