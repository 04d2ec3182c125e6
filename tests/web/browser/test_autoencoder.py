"""The tab "Autoencoder" as a person uses it."""

import re

import numpy as np
import pytest
from PIL import Image, ImageDraw

from tests.helpers.page.marks import STARTS_PAGE

pytest.importorskip("gradio")
pytestmark = STARTS_PAGE
NOISE = "Strengths of the noise"  # label of the field, which goes on


@pytest.fixture
def tester(visitor):
    """Somebody who has opened the tab."""
    visitor.open_tab("Autoencoder")
    return visitor


@pytest.fixture
def disk(tmp_path):
    """An orange disk on white, larger than the demo's pictures."""
    picture = Image.new("RGB", (96, 80), "white")
    ImageDraw.Draw(picture).ellipse((30, 20, 66, 56), fill=(240, 150, 20))
    picture.save(tmp_path / "disk.png")
    return tmp_path / "disk.png"


def wait_for_picture(tester):
    """Wait until the picture that was given has arrived."""
    panel = tester.panel
    panel.get_by_label("Remove Image").or_(panel.get_by_label("Clear")).first.wait_for()


def shown(tester, label):
    """Return the pixels of the picture in the block with such a label: 0 to 255."""
    block = tester.panel.locator(".block:visible").filter(
        has=tester.page.locator(f"label:has-text('{label}')")
    )
    image = block.last.locator("img:visible").first
    image.wait_for()
    image.evaluate("image => image.decode()")
    url = image.evaluate(
        """image => {
            const canvas = document.createElement("canvas");
            [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
            const context = canvas.getContext("2d");
            context.drawImage(image, 0, 0);
            return [canvas.width, ...context.getImageData(0, 0, canvas.width, canvas.height).data];
        }"""
    )
    width, *values = url
    return np.array(values, float).reshape(-1, width, 4)[..., :3]


def test_a_dropped_picture_is_reconstructed(tester, disk):
    target = tester.panel.locator("button:visible", has_text="Drop Image Here").first
    tester.drop(target, disk)
    wait_for_picture(tester)
    tester.set_number("Amplify the difference", 8)
    tester.panel.get_by_label(NOISE).fill("0.2, 0.8")
    tester.button("Reconstruct").click()
    numbers = tester.panel.get_by_text("PSNR").first
    numbers.wait_for()
    psnr = float(re.search(r"PSNR ([\d.]+) dB", numbers.inner_text())[1])
    assert 20 < psnr < 60
    original, copy = shown(tester, "Original"), shown(tester, "Reconstruction")
    assert original.shape == copy.shape
    error = np.square(original - copy).mean()
    assert abs(10 * np.log10(255**2 / error) - psnr) < 0.5
    difference = shown(tester, "Difference x 8")
    expected = np.clip(127.5 + 8 * (copy - original), 0, 255)
    assert np.abs(difference - expected).mean() < 6
    assert tester.panel.locator("svg[role=img] circle").count() == 3  # without noise, and twice


def test_latents_and_noise_are_shown(tester, disk):
    tester.panel.locator("input[type=file]").first.set_input_files(disk)
    wait_for_picture(tester)
    tester.type("Size", "64")
    tester.panel.get_by_label(NOISE).fill("0.1, 3")
    tester.button("Reconstruct").click()
    tester.panel.get_by_text("noise 3: ").first.wait_for()
    captions = tester.panel.locator(".caption-label:visible").all_inner_texts()
    channels = [text for text in captions if re.match(r"\s*\d: ", text)]
    assert len(channels) == 4  # of the demo's autoencoder
    values = [float(text.split(": ")[1].split()[0]) for text in captions if "noise" in text]
    assert len(values) == 2 and values[0] > values[1] + 3  # dB
    command = tester.panel.locator(".cm-content:visible").last.inner_text()
    assert "evaluate.py reconstruct" in command and "--size 64" in command and "0.1 3" in command


def test_bad_input_is_a_message(tester, disk):
    tester.button("Reconstruct").click()
    tester.read_message("there is no picture")
    tester.panel.locator("input[type=file]").first.set_input_files(disk)
    wait_for_picture(tester)
    for label, text, words in (
        (NOISE, "much", "numbers with commas"),
        ("Size", "0", "must be from 1"),
    ):
        field = tester.panel.get_by_label(label).first
        before = field.input_value()
        field.fill(text)
        tester.button("Reconstruct").click()
        tester.read_message(words)
        field.fill(before)
    tester.button("Reconstruct").click()
    tester.panel.get_by_text("PSNR").first.wait_for()
