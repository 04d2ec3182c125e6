"""One app.py with the demo weights for all files of this folder, and somebody who uses its page."""

import base64
import mimetypes
import time
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image

from tests.web.conftest import MOST_SECONDS, App, chromium, find_chromium

WATCH = """text => {
    text.dataset.changes = 0;
    new MutationObserver(() => text.dataset.changes++)
        .observe(text, {childList: true, characterData: true, subtree: true});
}"""
STATUS = "[data-testid=markdown].status"
MAKE_DROP = """([name, type, content]) => {
    const bytes = Uint8Array.from(atob(content), letter => letter.charCodeAt(0));
    const dropped = new DataTransfer();
    dropped.items.add(new File([bytes], name, {type}));
    return dropped;
}"""


class Site(NamedTuple):
    """A server of the page, and the folder that its pictures and runs lie in."""

    address: str
    folder: Path


class Visitor:
    """Somebody who looks at the page and uses mouse and keyboard.

    Args:
        pictures: folder that the page writes to.
    """

    def __init__(self, page: Any, pictures: Path):
        self.page, self.pictures = page, pictures
        self.seen = set(self.files())
        self.panel = page.locator("[role=tabpanel]:visible").first  # of the tab that is open
        self.button("Draw").wait_for()

    def files(self) -> list[Path]:
        """List what the page has drawn, the oldest first."""
        files = (file for file in self.pictures.glob("*") if file.suffix in (".png", ".gif"))
        return sorted(files, key=lambda file: (file.stat().st_mtime_ns, file.name))

    def unseen(self) -> list[Path]:
        """List what was drawn since the last call of `new_files`."""
        return [file for file in self.files() if file not in self.seen]

    def new_files(self) -> list[Path]:
        """List what was drawn since the last call of this."""
        new = self.unseen()
        self.seen.update(new)
        return new

    def open_tab(self, name: str) -> None:
        """Go to a tab; on a narrow page the last ones are in a menu."""
        tab = self.page.get_by_role("tab", name=name, exact=True)
        if not tab.is_visible():
            self.page.locator(".overflow-menu > button:visible").first.click()
            tab = self.page.locator(".overflow-dropdown button", has_text=name)
        tab.click()
        self.page.locator("[role=tab][aria-selected=true]", has_text=name).wait_for(
            state="attached"
        )

    def button(self, name: str) -> Any:
        return self.panel.get_by_role("button", name=name, exact=True).locator("visible=true").first

    def field(self, label: str, place: int = 0) -> Any:
        found = self.panel.get_by_label(label, exact=True).locator("visible=true")
        return found.nth(place)

    def type(self, label: str, text: str, place: int = 0) -> None:
        """Put a text into a field."""
        self.field(label, place).fill(text)

    def set_number(self, label: str, value: float, place: int = 0) -> None:
        """Put a number into the field of a slider."""
        field = self.field(f"number input for {label}", place)
        field.fill(f"{value:g}")
        field.press("Tab")

    def number(self, label: str, place: int = 0) -> float:
        return float(self.field(f"number input for {label}", place).input_value())

    def choose(self, label: str, option: str, place: int = 0) -> None:
        """Choose an option of a list."""
        self.field(label, place).click()
        self.page.get_by_role("option", name=option, exact=True).click()

    def wait_for_value(self, label: str, value: str, place: int = 0) -> None:
        """Wait until a field has such a value."""
        self.wait_until(lambda: self.field(label, place).input_value() == value)

    def wait_until(self, condition: Callable[[], object]) -> None:
        """Wait until a condition holds."""
        end = time.monotonic() + MOST_SECONDS
        while not condition():
            assert time.monotonic() < end, "it did not happen in time"
            self.page.wait_for_timeout(100)

    def set_call(self, prompt: str, seed: int, steps: int, pictures: int = 1) -> None:
        """Fill what most calls need, with a seed that is kept."""
        self.type("Prompt", prompt)
        self.type("Seed", str(seed))
        self.field("Keep seed").check()
        self.set_number("Pictures", pictures)
        self.set_number("Steps", steps)

    def run(self, button: str, ready: str = "Ready: ") -> list[Path]:
        """Press a button that draws, wait until the status says so, and return the new files."""
        self.new_files()
        self.watch()
        self.button(button).click()
        self.wait_for_status(ready)
        return self.new_files()

    @property
    def status(self) -> Any:
        return self.panel.locator(STATUS).locator("visible=true").first

    def watch(self) -> None:
        """From now on, `wait_for_status` believes only a status that was written later."""
        self.status.evaluate(WATCH)

    def wait_for_status(self, words: str) -> str:
        """Wait until the status contains words, and return it."""
        later = self.panel.locator(f"{STATUS}:not([data-changes='0'])", has_text=words)
        later.locator("visible=true").first.wait_for()
        return self.status.inner_text().strip()

    def read_message(self, words: str) -> str:
        """Wait for a message of the page with these words, close it, and return it."""
        toast = self.page.locator(".toast-body", has_text=words).first
        toast.wait_for()
        text = toast.inner_text()
        toast.get_by_label("Close").click()
        return text

    def click_picture(self, number: int) -> None:
        """Click a picture of the gallery, counted from 1."""
        small = self.panel.locator(".thumbnail-small:visible")  # while one is shown large
        pictures = small if small.count() else self.panel.locator(".thumbnail-lg:visible")
        pictures.nth(number - 1).click()

    def drop(self, target: Any, file: Path) -> None:
        """Drop a file on a part of the page."""
        kind, _ = mimetypes.guess_type(file.name)
        content = base64.b64encode(file.read_bytes()).decode()
        dropped = self.page.evaluate_handle(MAKE_DROP, [file.name, kind, content])
        for event in ("dragenter", "dragover", "drop"):
            target.dispatch_event(event, {"dataTransfer": dropped})

    def look(self, part: Any) -> np.ndarray:
        """Return how a part of the page looks: uint8, (height, width, 3)."""
        return np.array(Image.open(BytesIO(part.screenshot())).convert("RGB"))


@pytest.fixture(scope="package")
def site(tmp_path_factory) -> Iterator[Site]:
    """The page with the demo weights. `runs` in its folder is made by who needs it."""
    find_chromium()
    folder = tmp_path_factory.mktemp("site")
    app = App(folder=folder)
    yield Site(app.address, folder)
    app.stop()


@pytest.fixture(scope="package")
def browser():
    """Chromium without a window."""
    with chromium() as started:
        yield started


@pytest.fixture
def visit(site, browser):
    """Return a function that opens the page for somebody; the browser gets what is named."""
    pages = []

    def visit(width: int = 1280, height: int = 900, **given: Any) -> Visitor:
        page = browser.new_page(viewport={"width": width, "height": height}, **given)
        pages.append(page)
        page.set_default_timeout(1000 * MOST_SECONDS)
        page.goto(site.address)
        return Visitor(page, site.folder / "out")

    yield visit
    for page in pages:
        page.close()


@pytest.fixture
def visitor(visit) -> Visitor:
    """Somebody who has just opened the page on a wide screen."""
    return visit()
