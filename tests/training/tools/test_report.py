"""The report page of a run, and the curves on it."""

import json
import math
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from PIL import Image, PngImagePlugin

from training.cli import run_main
from training.logging.image_grid import Cell, read_cells, save_grid
from training.tools.curves import format_number, line_chart
from training.tools.previews import step_section
from training.tools.report import main
from training.tools.report_page import group_metrics, report_page

SVG = "{http://www.w3.org/2000/svg}"


def make_run(folder: Path) -> Path:
    """Make a run folder after 40 of 100 steps; its last line of metrics is being written."""
    (folder / "previews").mkdir(parents=True)
    (folder / "state" / "step-0000040").mkdir(parents=True)
    config = {"steps": 100, "batch_size": 8, "data": "<b>mine</b>", "loss": {"kl_weight": 1e-6}}
    (folder / "config.json").write_text(json.dumps(config))
    lines = []
    for step in range(1, 41):
        line = {"step": step, "loss": 1 / step, "images_per_second": 50.0}
        if step % 20 == 0:
            results = {"val": 0.5, "val/t0-249": 0.2, "val/t250-499": None}
            line |= results | {"verdict": "NOT LEARNING: x < y" if step == 20 else "learning"}
            line["verdict/channels"] = "1 of 4 latent channels carry no information (2)"
            Image.new("RGB", (10, 10), "red").save(folder / f"previews/step-{step:07d}.png")
        lines.append(json.dumps(line))
    (folder / "metrics.jsonl").write_text("\n".join(lines) + '\n{"step": 41, "lo')
    return folder


def charts(text: str) -> list[ElementTree.Element]:
    return [ElementTree.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", text, re.DOTALL)]


def test_the_page_needs_no_other_file(tmp_path, capsys):
    run = make_run(tmp_path / "run")
    main([str(run)])
    text = (run / "report.html").read_text()
    sources = re.findall(r"(?:src|href)=['\"](.*?)['\"]", text)
    assert sources and all(source.startswith("data:image/png;base64,") for source in sources)
    assert "<script" not in text and "<link" not in text
    assert "report.html" in capsys.readouterr().out


def test_the_page_shows_curves_pictures_verdicts_and_settings(tmp_path):
    text = report_page(make_run(tmp_path / "run"))
    titles = [chart.find(f"{SVG}title").text for chart in charts(text)]
    assert titles == ["loss", "images_per_second", "val", "val by part"]
    assert text.count("<img") == 2 and "id=step-0000040 checked>" in text
    assert text.count("<input type=radio") == 2 and "id=step-0000020>" in text
    assert "&lt;b&gt;mine" in text and "<b>" not in text
    assert "loss.kl_weight" in text and "40 of 100" in text and "320" in text
    assert "not finished" in text


def test_previews_have_their_prompts_and_say_which_weights_drew_them(tmp_path):
    run = make_run(tmp_path / "run")
    images = torch.arange(4, dtype=torch.uint8)[:, None, None, None].expand(4, 3, 5, 7) * 60
    cells = [Cell(prompt, name) for name in ("averaged", "live") for prompt in ("a <b", "c")]
    save_grid(images, 2, run / "previews" / "step-0000040.png", cells)
    found = read_cells(run / "previews" / "step-0000040.png")
    assert [cell for cell, _ in found] == cells
    assert [picture.getextrema()[0] for _, picture in found] == [(60 * k, 60 * k) for k in range(4)]
    text = report_page(run)
    assert "From left to right: averaged, live." in text and text.count("width: 14px") == 4
    for caption in ("a &lt;b", "c"):
        assert re.search(rf"<figure>(<img [^>]*>){{2}}<figcaption>{caption}</figcaption>", text)


@pytest.mark.parametrize(
    "text", ["", "{", '{"width": 900, "height": 5, "columns": 1, "cells": []}']
)
def test_a_preview_that_does_not_say_what_it_is_is_shown_whole(tmp_path, text):
    texts = PngImagePlugin.PngInfo()
    texts.add_itxt("latentsmith-grid", text)
    Image.new("RGB", (9, 9)).save(tmp_path / "step-1.png", pnginfo=texts)
    assert read_cells(tmp_path / "step-1.png") == []
    assert step_section(tmp_path / "step-1.png").count("<img") == 1


@pytest.mark.parametrize(("skipped", "charts_of_it"), [(0, 0), (3, 1)])
def test_skipped_steps_have_a_chart_only_if_there_are_some(tmp_path, skipped, charts_of_it):
    (tmp_path / "config.json").write_text("{}")
    line = json.dumps({"step": 1, "loss": 1.0, "skipped_steps": skipped})
    (tmp_path / "metrics.jsonl").write_text(line + "\n")
    text = report_page(tmp_path)
    assert len(charts(text)) == 1 + charts_of_it
    assert f"<td>skipped steps</td><td>{skipped}</td>" in text


def test_the_last_verdict_of_each_kind_is_marked_if_it_is_bad(tmp_path):
    text = report_page(make_run(tmp_path / "run"))
    assert "<p>step 40: learning</p>" in text
    assert "<p class='warning'>step 40: 1 of 4 latent channels carry no information (2)</p>" in text
    assert "step 20: NOT LEARNING: x &lt; y" in text[text.index("<details>") :]


def test_a_run_without_metrics_has_a_page(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    assert "Settings" in report_page(tmp_path)


def test_old_and_new_names_of_a_metric_share_a_curve(tmp_path):
    """A run that was begun before `share_of_nothing` became `val_loss_relative`."""
    (tmp_path / "config.json").write_text("{}")
    lines = [{"step": 1, "share_of_nothing": 0.9}, {"step": 2, "val_loss_relative": 0.8}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (chart,) = charts(report_page(tmp_path))
    assert chart.find(f"{SVG}title").text == "val_loss_relative"
    (line,) = chart.findall(f".//{SVG}polyline")
    assert len(line.get("points").split()) == 2


def test_a_folder_that_is_no_run_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        run_main(lambda: main([str(tmp_path)]))
    assert f"{tmp_path} is no run folder" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_related_metrics_share_a_chart_of_at_most_six_lines():
    names = ("psnr", "lpips", "held_out_lpips", "train_recall@1", "held_out_recall@1")
    metrics = {name: [(0.0, 1.0)] for name in (*names, *(f"kl/channel{k}" for k in range(8)))}
    sizes = {title: len(lines) for title, lines in group_metrics(metrics)}
    expected = {"psnr": 1, "lpips": 2, "recall@1": 2, "kl by part": 6, "kl by part, more": 2}
    assert sizes == expected


# Curves


def polyline(svg: str, which: int = 0) -> list[tuple[float, float]]:
    lines = ElementTree.fromstring(svg).findall(f".//{SVG}polyline")
    return [tuple(map(float, point.split(","))) for point in lines[which].get("points").split()]


def test_points_lie_in_proportion_to_their_values():
    (x0, y0), (x1, y1), (x2, y2) = polyline(
        line_chart("t", {"a": [(0, 1), (50, 2), (100, 3)]}, x_label="step")
    )
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.11)
    assert y0 - y1 == pytest.approx(y1 - y2, abs=0.11) and y0 > y2  # up is less in an SVG


def test_values_over_orders_of_magnitude_get_a_logarithmic_axis():
    (_, y0), (_, y1), (_, y2) = polyline(
        line_chart("t", {"a": [(0, 0.01), (1, 0.1), (2, 1.0)]}, x_label="step")
    )
    assert y0 - y1 == pytest.approx(y1 - y2, abs=0.11)


def test_values_that_are_not_finite_are_left_out():
    svg = line_chart("t", {"a": [(0, 1), (1, math.nan), (2, 3)], "b": []}, x_label="step")
    assert len(polyline(svg)) == 2
    assert "no finite values" in line_chart("t", {"a": [(0, math.inf)]}, x_label="step")


def test_long_lines_are_thinned_out_and_keep_their_end():
    points = [(float(k), float(k)) for k in range(100_000)]
    drawn = polyline(line_chart("t", {"a": points}, x_label="step"))
    full = polyline(line_chart("t", {"a": [points[0], points[-1]]}, x_label="step"))
    assert len(drawn) <= 601 and drawn[-1] == full[-1] and drawn[0] == full[0]


def test_several_lines_have_a_legend_and_references_a_name():
    svg = line_chart("t", {"a<b": [(0, 1)], "c": [(0, 2)]}, x_label="x", references={"own": 1.5})
    texts = [element.text for element in ElementTree.fromstring(svg).iter(f"{SVG}text")]
    assert {"a<b", "c", "own", "x", "t"} <= set(texts)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.05, "0.05"), (2e-5, "2e-05"), (1234, "1234"), (20_000, "20k"), (1.5e6, "1.5M")],
)
def test_numbers_are_short(value, text):
    assert format_number(value) == text
