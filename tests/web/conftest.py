"""A server of the page with untrained models, app.py as a process, and a browser."""

import gc
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.page.runs import make_page_runs

SECRET = "the secret of another folder"
ROOT = Path(__file__).parents[2]
MOST_SECONDS = 300  # for one thing to happen on the page


@pytest.fixture(scope="module", autouse=True)
def collect_garbage() -> Iterator[None]:
    """Let sockets and loops that gradio and the browser leave open end with the tests of a file.

    Otherwise they end after all tests, where nothing says that their warnings are expected.
    """
    yield
    gc.collect()


@pytest.fixture(scope="module")
def page_folder(tmp_path_factory):
    """A folder in which a server keeps runs and pictures, and where a secret lies."""
    folder = tmp_path_factory.mktemp("page")
    (folder / "secret.txt").write_text(SECRET)
    return folder


@pytest.fixture(scope="module")
def picture_folder(page_folder):
    return page_folder / "pictures"


@pytest.fixture(scope="module")
def page_runs(world, page_folder):
    """The folder of the server's runs, with a LoRA, weak models, and models of every kind."""
    make_page_runs(world, page_folder / "runs", page_folder / "outside")
    return page_folder / "runs"


@pytest.fixture(scope="module")
def address(world, page_folder, page_runs):
    """The address of a server that shows the models of `world`."""
    import uvicorn

    from web.open_models import OpenModels
    from web.page import make_server, open_port
    from web.studio import Studio

    models = OpenModels([world / "ldm"], page_runs, torch.device("cpu"))
    listener = open_port("127.0.0.1", 0)
    port = listener.getsockname()[1]
    app = make_server(Studio(models, page_folder / "pictures"), "127.0.0.1", port, None)
    server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join(10)


class App:
    """app.py as a process of its own, with these flags.

    Args:
        folder: holds `data`, `runs` and `out`, which may be missing. None: the checkout's own.
    """

    def __init__(self, *flags: str, folder: Path | None = None) -> None:
        command = [sys.executable, "app.py", "--port", str(free_port()), "--device", "cpu", *flags]
        for name in ("data", "runs", "out") if folder else ():
            command += [f"--{name}", f"{folder}/{name}"]
        self.process = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, text=True, env=os.environ
        )
        assert self.process.stdout
        self.address = f"http://127.0.0.1:{command[3]}"
        assert self.address in self.process.stdout.readline()

    def stop(self) -> None:
        """End the process; it may have ended already."""
        self.process.terminate()
        self.process.wait(MOST_SECONDS)  # a thread of it may have begun something
        assert self.process.stdout
        self.process.stdout.close()


@lru_cache
def find_chromium() -> str:
    """Return the path of the system's Chromium, or of the one that playwright has installed.

    Skips the test if there is none.
    """
    playwright = pytest.importorskip("playwright.sync_api")
    path = shutil.which("chromium")
    if path is None:
        with playwright.sync_playwright() as started:
            path = started.chromium.executable_path
    if not Path(path).exists():
        pytest.skip("needs Chromium, from the system or by: playwright install chromium")
    return path


@contextmanager
def chromium() -> Iterator[Any]:
    """Context manager: Chromium without a window."""
    path = find_chromium()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


@pytest.fixture(scope="module")
def start_app() -> Iterator[Callable[..., App]]:
    """Return a function that starts app.py (see App); all are stopped at the end of the file."""
    find_chromium()
    started: list[App] = []

    def start(*flags: str, folder: Path | None = None) -> App:
        started.append(App(*flags, folder=folder))
        return started[-1]

    yield start
    for app in started:
        app.stop()


@pytest.fixture
def browser():
    """Chromium without a window."""
    with chromium() as started:
        yield started


@pytest.fixture
def open_page(browser):
    """Return a function that opens an address in a new window of the browser.

    What is given by name goes to `browser.new_page`, such as color_scheme="dark".
    """

    def open_page(address: str, width: int = 1280, height: int = 900, **given):
        page = browser.new_page(viewport={"width": width, "height": height}, **given)
        page.set_default_timeout(1000 * MOST_SECONDS)
        page.goto(address)
        return page

    return open_page


@pytest.fixture
def wait_until():
    """Return a function that waits until a condition holds, which is a function, too."""

    def wait_until(condition: Callable[[], object], seconds: float = MOST_SECONDS) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, "it did not happen in time"
            time.sleep(0.3)

    return wait_until


@pytest.fixture
def drop():
    """Return a function that drops files and folders of the disk on a part of a page.

    The browser gets them as from its system, so it can read folders; scripts cannot make such.
    """

    def drop(page, place, *paths: Path) -> None:
        place.scroll_into_view_if_needed()
        box = place.bounding_box()
        x, y = box["x"] + box["width"] / 2, box["y"] + 12
        data = {"items": [], "files": [str(path) for path in paths], "dragOperationsMask": 1}
        session = page.context.new_cdp_session(page)
        for kind in ("dragEnter", "dragOver", "drop"):
            event = {"type": kind, "x": x, "y": y, "data": data}
            session.send("Input.dispatchDragEvent", event)
        session.detach()

    return drop
