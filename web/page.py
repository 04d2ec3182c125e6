"""The page: its tabs, its looks, and the server that shows it."""

import os
import secrets
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # nothing is sent anywhere
os.environ["GRADIO_RUN_HISTORY"] = "False"  # which could be kept on a server of others

import gradio as gr
import uvicorn
from fastapi import FastAPI
from gradio.themes import Default
from PIL import Image

from foundation.errors import UserError
from web.call_queue import CallQueue
from web.endpoints import Endpoints
from web.option_form import weight_lists
from web.pictures.autoencoder_tab import AutoencoderTab
from web.pictures.change_tab import PICTURE, ChangeTab, as_start
from web.pictures.compare_tab import SAME, CompareTab
from web.pictures.draw_tab import DrawTab
from web.pictures.results import prompt_of
from web.protection import LOCAL_HOSTS, Protection
from web.run_panel import STYLE
from web.runs_tab import RunsTab
from web.studio import AT_ONCE, FILLS, PRIVATE, Studio, with_messages
from web.train_tab import TrainTab

MAX_UPLOAD = 32 * 2**20  # bytes of a file
MAX_UPLOADS = 1024 * 2**20  # of the files that are dropped at once
MAX_PIXELS = 32 * 2**20  # of a picture; Pillow refuses twice as many
SECONDS_TO_STOP = 5  # that open answers, such as live curves, have when the page is ended
THEME = Default(
    font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
)  # whose fonts are on every machine: none are fetched
CSS = """
.pixels img, .moving img { image-rendering: pixelated; }
.moving img { width: 100%; height: 100%; object-fit: contain; }
.pixels .grid-wrap, .pixels .gallery-container { min-height: 0; height: auto; }
.drawn .grid-wrap, .drawn .gallery-container { min-height: 320px; height: auto; }
.drawn .grid-wrap { max-height: 800px; }
.preview { background: var(--block-background-fill) !important; }
.cm-scroller { min-height: 3em !important; }
.command .empty { min-height: 6em !important; }
.dice { align-self: center; }
.charts svg { max-width: 100%; height: auto; }
.wide { overflow-x: auto; }
.dark svg[role="img"] > rect[fill="white"] { fill: #1f2226; }
.dark svg[role="img"] text { fill: #e6e6e6; }
.dark svg[role="img"] line[stroke="#ddd"] { stroke: #3a3f45; }
"""


def make_page(studio: Studio) -> gr.Blocks:
    """Build the page."""
    names = studio.models.names()
    with gr.Blocks(title="Latentsmith") as page:
        with gr.Row():
            gr.Markdown("# Latentsmith")
            model = gr.Dropdown(names, value=names[0], label="Model", scale=2)
        note = gr.Markdown(studio.models.facts(names[0]).note)
        with gr.Tabs() as tabs:
            with gr.Tab("Draw", id="draw") as draw_tab:
                draw = DrawTab(studio, model)
                draw.build()
            with gr.Tab("Change", id="change"):
                change = ChangeTab(studio, model)
                change.build()
            with gr.Tab("Compare", id="compare") as compare_tab:
                compare = CompareTab(studio, model)
                compare.build()
            with gr.Tab("Autoencoder", id="autoencoder") as autoencoder_tab:
                autoencoder = AutoencoderTab(studio)
                autoencoder.build()
            with gr.Tab("Train", id="train") as train:
                TrainTab(studio, model).build(train, tabs)
            with gr.Tab("Runs", id="runs") as runs:
                RunsTab(studio, model).build(runs, tabs)
        panels = (draw.results, change.results, compare.results)
        histories = [field for results in panels for field in results.history_outputs]
        # Read once, and shown in all.
        page.load(lambda: draw.results.show_history() * len(panels), None, histories, **PRIVATE)
        for results in panels:
            opened = [tabs, change.kinds, change.picture, change.prompt]
            results.use.click(start_from, results.chosen, opened, **FILLS)
        lists = [model, compare.right_model, autoencoder.model]
        forms = (draw.fields, change.fields, change.video.fields, compare.left, compare.right)
        weights = [form[name] for name in ("lora", "weak_model") for form in forms]

        def show_names() -> list[gr.Dropdown]:
            """List the models that are there now: a training may have ended."""
            names = studio.models.names()
            found: list[Any] = [names, [SAME, *names], autoencoder.opened.names()]
            found += [each for each in weight_lists(studio.models) for _ in forms]
            return [gr.Dropdown(choices=each) for each in found]

        for event in (page.load, draw_tab.select, compare_tab.select, autoencoder_tab.select):
            event(show_names, None, [*lists, *weights], **AT_ONCE)

        def show_note(name: str) -> str:
            return studio.models.facts(name).note

        for event in (page.load, model.change):
            event(show_note, model, note, **AT_ONCE)
        page.load(change.show_model, [change.way, model], change.shown, **AT_ONCE)
        Endpoints(studio, autoencoder.opened).build()
    return page


@with_messages
def start_from(chosen: str) -> tuple[gr.Tabs, gr.Tabs, Any, str]:
    """Go to the tab "Change" with the picture that was clicked, and its prompt."""
    opened = gr.Tabs(selected="change"), gr.Tabs(selected=PICTURE)
    return *opened, as_start(Path(chosen)), prompt_of(chosen)


def make_server(studio: Studio, host: str, port: int, password: str | None) -> Protection:
    """Return the page as an ASGI application that refuses requests of other sites.

    password: asked for, with any user name; None for none.
    """
    Image.MAX_IMAGE_PIXELS = MAX_PIXELS
    page = make_page(studio).queue()
    # Gradio checks which files a caller names only where it believes that it started the server.
    page.has_launched = True
    app = gr.mount_gradio_app(
        FastAPI(docs_url=None, redoc_url=None, openapi_url=None),
        page,
        path="",
        server_name=host,
        server_port=port,
        auth=None if password is None else password_check(password),
        auth_message="The password of this server; any user name.",
        max_file_size=MAX_UPLOAD,
        allowed_paths=[str(studio.folder)],
        ssr_mode=False,
        enable_monitoring=False,
        footer_links=["api"],
        theme=THEME,
        css=CSS + STYLE,
    )
    return Protection(app, LOCAL_HOSTS if host in LOCAL_HOSTS else None, uploads=MAX_UPLOADS)


def password_check(password: str) -> Callable[[str, str], bool]:
    """Return a function that compares a given password with this one, whoever gives it."""
    expected = password.encode()
    return lambda user, given: secrets.compare_digest(given.encode(), expected)


def open_port(host: str, port: int) -> socket.socket:
    """Return a socket that listens.

    Raises:
        UserError: the port is taken, or the host is not an address of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise UserError(
            f"the page cannot be shown at {host}, port {port}: {error.strerror or error}. Choose "
            "another --port or --host."
        ) from error
    return listener


class PageServer(uvicorn.Server):
    """A server whose calls end with it; else the process would wait until all have drawn."""

    def __init__(self, config: uvicorn.Config, queue: CallQueue):
        super().__init__(config)
        self.queue = queue

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.queue.close()
        await super().shutdown(sockets)


def serve(server: Protection, listener: socket.socket, queue: CallQueue) -> None:
    """Serve until the process is interrupted.

    queue: of the calls that draw.
    """
    config = uvicorn.Config(
        server,  # type: ignore[arg-type]
        log_level="warning",
        ws_max_size=MAX_UPLOAD,
        timeout_graceful_shutdown=SECONDS_TO_STOP,
    )
    PageServer(config, queue).run(sockets=[listener])
