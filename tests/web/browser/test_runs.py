"""The tab "Runs" as a person uses it, with trainings of a few steps."""

import json

import pytest

from tests.helpers import short_runs
from tests.helpers.images import captioned
from tests.helpers.page.marks import STARTS_PAGE

pytest.importorskip("gradio")
pytestmark = STARTS_PAGE
BAD = "the KL term is dead: the latents carry no information"


@pytest.fixture(scope="module")
def runs(site, tmp_path_factory):
    """Two finished trainings, and one that was stopped and has a bad verdict."""
    folder = site.folder / "runs"
    root = tmp_path_factory.mktemp("trained")
    captioned(root / "data", 12)
    short_runs.clip(root, folder / "first")
    short_runs.clip(root, folder / "second", "--learning-rate", "1e-5")
    short_runs.vae(root, folder / "first")
    with (folder / "second" / "clip" / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 3, "kl": BAD}) + "\n")
    return folder


@pytest.fixture
def reader(visitor, runs):
    """Somebody who has opened the tab."""
    visitor.open_tab("Runs")
    visitor.panel.locator("#run-list").get_by_text("first/clip").wait_for()
    return visitor


def look_at(reader, *names):
    """Choose runs, and no others."""
    reader.panel.get_by_label("Look at a run").click()
    for option in reader.page.get_by_role("option").all():
        wanted = any(name in option.inner_text() for name in names)
        if (option.get_attribute("aria-selected") == "true") != wanted:
            option.click()
    reader.page.keyboard.press("Escape")


def test_runs_are_listed_with_state_and_verdict(reader):
    rows = reader.panel.locator("#run-list tbody tr")
    texts = {row.split()[0]: row for row in rows.all_inner_texts()}
    assert set(texts) == {"first/clip", "second/clip", "first/vae"}
    assert "text encoder" in texts["first/clip"] and "autoencoder" in texts["first/vae"]
    assert all("finished" in text and "3 / 3" in text for text in texts.values())
    assert BAD in texts["second/clip"] and BAD not in texts["first/clip"]
    assert rows.filter(has_text=BAD).locator(".bad").count() == 1


def test_a_run_shows_its_curves_and_previews(reader):
    look_at(reader, "first/vae")
    charts = reader.panel.locator(".run-charts svg")
    charts.first.wait_for()
    titles = " ".join(charts.all_text_contents())
    assert "psnr" in titles and "images per second" in titles
    assert reader.panel.locator(".run-charts polyline").count() >= 2
    reader.panel.get_by_text("step 3 of 3").first.wait_for()
    assert reader.panel.locator("img:visible").count() >= 1  # the preview


def test_two_runs_are_compared_in_the_same_charts(reader):
    look_at(reader, "first/clip", "second/clip")
    chart = reader.panel.locator(".run-charts svg", has_text="second/clip").first
    chart.wait_for()
    assert "first/clip" in chart.text_content()
    assert chart.locator("polyline").count() == 2
    colors = {line.get_attribute("stroke") for line in chart.locator("polyline").all()}
    assert len(colors) == 2


def test_a_run_that_does_not_draw_is_a_message(reader):
    look_at(reader, "first/vae")
    reader.button("Draw with it").click()
    assert "holds no model that draws" in reader.read_message("no model that draws")
    look_at(reader)
    reader.button("Draw with it").click()
    reader.read_message("choose one run first")
