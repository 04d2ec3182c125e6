"""The report on a whole model: numbers, samples, nearest training images, sweeps."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from interop.model_card import as_mapping
from stages.evaluation.classifier import class_section
from stages.evaluation.drawing import Samples
from stages.evaluation.languages import LanguageRecall, report_languages
from stages.evaluation.model import ModelMeasurement
from stages.evaluation.report import Report, library_versions, write_report
from stages.evaluation.sweep_points import Sweep
from stages.evaluation.sweep_report import report_sweeps
from stages.evaluation.validation_loss import loss_section
from training.logging.image_grid import image_grid
from training.tools.page import picture

SHOWN = 36  # samples on the page


def report_model(
    measured: ModelMeasurement, sweep: Sweep, languages: LanguageRecall | None, out: Path
) -> Report:
    """Make metrics of the numbers on disk, and write JSON and page. Call it on rank 0 alone."""
    metrics, baselines = measured.metrics()
    remarks = []
    if not measured.held_out:
        remarks.append(
            "Nothing is held out, so the reconstructed images, and those of the loss, are training "
            "images."
        )
    if measured.judge is not None and measured.judge.size > measured.pipeline.size:
        remarks.append(
            f"The judge looks at {measured.judge.size} pixels and the model draws "
            f"{measured.pipeline.size}: all that it saw was enlarged, which it did not learn from. "
            f"Train one of that size: train_clip.py --preset judge --size {measured.pipeline.size}."
        )
    losses = measured.loss_table()
    tables = {"validation loss by timestep": losses} if losses else {}
    if measured.classifier is not None:
        tables["class accuracy"] = measured.class_accuracy[1]
    if attribute_rows := measured.attribute_accuracy[1]:
        tables["attribute accuracy"] = attribute_rows
    language_sections: list[str] = []
    if languages is not None:
        tables[languages.TITLE], language_sections = report_languages(languages)
    swept, sweep_sections = report_sweeps(sweep)
    report = Report(
        kind="model",
        name=str(measured.model),
        protocol=measured.protocol,
        model={**measured.hashes, **describe_weights(measured.provenance)},
        versions=library_versions(),
        metrics=metrics,
        baselines=baselines,
        missing=measured.missing,
        remarks=remarks,
        tables={**tables, **swept},
    )
    sections = [sample_section(measured.samples, "Samples")]
    if measured.classifier is not None:
        sections.append(class_section("Class accuracy", tables["class accuracy"]))
    if attribute_rows:
        sections.append(class_section("Attribute accuracy", attribute_rows))
    if len(measured.unseen):
        sections.append(sample_section(measured.unseen, "Samples of held-out captions"))
    if measured.looks_for_copies:
        space = measured.spaces[0]
        shown = picture(
            measured.nearest_grid(space),
            f"samples, each next to the training image that is nearest in {space.name}",
        )
        sections.append("<h2>Nearest training images</h2>" + shown)
    if losses:
        sections.append(loss_section(losses))
    write_report(report, out, [*sections, *language_sections, *sweep_sections])
    return report


def describe_weights(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Return as JSON which weights of the training a model folder holds, as far as it is recorded.

    The trainings write averaged weights; those of others say nothing of it.
    """
    config = as_mapping(provenance.get("config"))
    facts: dict[str, Any] = {"weights": provenance.get("weights", "not recorded")}
    halflife = config.get("ema_halflife")
    if isinstance(halflife, int):  # in old models it is a fraction of the run
        facts["ema_halflife_in_images"] = halflife
    if best := provenance.get("best"):
        facts["best"] = best
    return facts


def sample_section(samples: Samples, title: str) -> str:
    """Return HTML that shows the first samples and their captions."""
    count = min(SHOWN, len(samples))
    grid = image_grid(samples.pictures(range(count)), columns=6)
    return f"<h2>{title}</h2>" + picture(grid, title.lower(), "; ".join(samples.captions[:count]))
