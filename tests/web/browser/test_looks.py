"""Every tab, light and dark, on a wide screen and on a phone."""

import pytest

from tests.helpers.page.marks import STARTS_PAGE

pytest.importorskip("gradio")
pytestmark = STARTS_PAGE
PHONE, SCREEN = (390, 844), (1280, 900)
BUTTONS = {
    "Draw": "Draw",
    "Change": "Change",
    "Compare": "Compare",
    "Autoencoder": "Reconstruct",
    "Train": "Start",
    "Runs": "Look again",
}


@pytest.mark.parametrize("size", [PHONE, SCREEN], ids=["phone", "screen"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_tab_fits_and_its_button_can_be_reached(visit, scheme, size):
    visitor = visit(*size, color_scheme=scheme, has_touch=size == PHONE)
    background = visitor.page.evaluate("getComputedStyle(document.body).backgroundColor")
    levels = [int(level) for level in background.removeprefix("rgb(").rstrip(")").split(",")]
    assert (sum(levels) < 3 * 60) == (scheme == "dark")
    for tab, name in BUTTONS.items():
        visitor.open_tab(tab)
        button = visitor.button(name)
        button.scroll_into_view_if_needed()
        width = visitor.page.evaluate("document.documentElement.scrollWidth")
        assert width <= size[0], f"{tab} is {width} pixels wide"
        box = button.bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= size[0]
        button.click(trial=True)  # nothing lies over it
        for other in visitor.panel.get_by_role("button").locator("visible=true").all():
            box = other.bounding_box()
            inside = box["x"] >= -1 and box["x"] + box["width"] <= size[0] + 1
            assert inside, f"{tab}: {other.inner_text()} lies outside"
