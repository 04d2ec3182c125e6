"""The panel of a data folder: its images with captions to correct, and the report on it."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from dataset.checking.caption_statistics import count_captions
from dataset.editing.captions import write_captions
from dataset.editing.new_folder import copy_folder, gather_files, without_common_folder
from foundation.errors import UserError, one_line, shown
from stages.flags.check import CheckOptions
from stages.preparation.data_check import check_folder, planned_runs, report_lines, text_room
from web.data_access import (
    ALL,
    UNUSABLE,
    WITHOUT,
    AllowedFolders,
    DataView,
    Item,
    read_view,
    thumbnail,
    usual_limits,
)
from web.studio import FILLS, PRIVATE, with_messages
from web.training.drop_zone import MOST_BYTES, make_drop_zone, read_dropped

CELLS, COLUMNS = 12, 4  # images of a page
MOST_PIXELS = 64 * 2**20  # of an image that is dropped
TAKEN_FILES = (
    "Images; captions in `.txt` files of the same names, a `metadata.jsonl`, `metadata.csv` or "
    "`captions.json`; names of folders as classes. Folders keep their names and places. Empty "
    "folders, hidden files and files of other kinds are left out."
)


@dataclass
class DataPanel:
    """The fields of the panel, and what happens when they are used."""

    folders: AllowedFolders

    def build(self) -> None:
        """Make the fields where the page is being made."""
        with gr.Row():
            self.folder = gr.Dropdown(
                self.folders.names(),
                value=None,
                allow_custom_value=True,
                label="Data folder",
                info=f"Below {', '.join(root.as_posix() for root in self.folders.roots)}",
                scale=4,
                min_width=200,
            )
            self.open = gr.Button("Open", min_width=90)
        with gr.Accordion("Drop files or a folder", open=False):
            self.dropped = make_drop_zone()
            gr.Markdown(TAKEN_FILES, elem_classes="small")
            with gr.Row():
                self.name = gr.Textbox(label="Name of the new data folder", scale=3, min_width=160)
                self.make = gr.Button("Make a data folder", min_width=120)
        self.summary = gr.HTML("Choose a data folder, or drop one.")
        with gr.Row(visible=False) as self.copying:
            self.copy_name = gr.Textbox(label="Name of the copy", scale=3, min_width=160)
            self.copy = gr.Button("Copy into a new data folder", min_width=120)
        self.which = gr.Radio([ALL, WITHOUT, UNUSABLE], value=ALL, show_label=False, visible=False)
        self.cells: list[tuple[gr.Column, gr.HTML, gr.Textbox]] = []
        for _ in range(CELLS // COLUMNS):
            with gr.Row():
                for _ in range(COLUMNS):
                    with gr.Column(min_width=120, visible=False) as cell:
                        picture = gr.HTML()
                        text = gr.Textbox(
                            lines=2, max_lines=5, container=False, show_label=False, max_length=4000
                        )
                    self.cells.append((cell, picture, text))
        with gr.Row(visible=False) as self.turning:
            self.back = gr.Button("◀", size="sm", min_width=50)
            self.save = gr.Button("Save captions", size="sm", variant="primary", min_width=110)
            self.forth = gr.Button("▶", size="sm", min_width=50)
        with gr.Accordion("Report, as check.py prints it", open=False, visible=False) as self.rest:
            self.report = gr.HTML()
        self.page = gr.State(0)
        self.before = gr.State([])  # (name, captions) of the images that are shown

    @property
    def texts(self) -> list[gr.Textbox]:
        return [text for _, _, text in self.cells]

    @property
    def outputs(self) -> list[Any]:
        """The fields that `show` fills."""
        fields = [self.folder, self.summary, self.copying, self.which, self.turning, self.rest]
        return [*fields, self.page, self.before, *[one for cell in self.cells for one in cell]]

    def connect(self, preset: gr.Dropdown) -> None:
        """Connect the fields. preset: for which the report is made."""
        open_folder, outputs = with_messages(self.open_folder), self.outputs
        # Folders are read one after the other: the first reading decodes all images.
        reads: dict[str, Any] = {
            "show_progress_on": self.summary,
            "concurrency_id": "data",
            "concurrency_limit": 1,
            **PRIVATE,
        }
        reported = [self.folder, preset]
        report = with_messages(self.make_report)
        made = [
            self.open.click(open_folder, [self.folder, self.which], outputs, **reads),
            self.folder.input(open_folder, [self.folder, self.which], outputs, **reads),
            self.make.click(
                with_messages(self.make_folder),
                [self.dropped, self.name],
                [*outputs, self.dropped],
                **reads,
            ),
            self.copy.click(
                with_messages(self.copy_data), [self.folder, self.copy_name], outputs, **reads
            ),
        ]
        for event in made:
            event.success(report, reported, self.report, **PRIVATE)
        edited = [self.folder, self.which, self.page, self.before, *self.texts]
        for button, turn in ((self.back, -1), (self.save, 0), (self.forth, 1)):
            save = with_messages(partial(self.save_captions, turn))
            event = button.click(save, edited, outputs, **reads)
            if not turn:
                event.success(report, reported, self.report, **PRIVATE)
        self.which.input(open_folder, [self.folder, self.which], outputs, **reads)
        suggest, named = with_messages(suggest_name), [self.dropped, self.name]
        self.dropped.upload(suggest, named, self.name, **FILLS)

    def open_folder(self, folder: str | None, which: str) -> tuple[Any, ...]:
        """Read a data folder and show its first images."""
        return self.show(self.folders.find(folder), which, 0)

    def make_folder(self, dropped: object, name: str) -> tuple[Any, ...]:
        """Make a data folder of what was dropped, and empty the zone."""
        files = read_dropped(dropped)
        target = self.folders.new(name)
        for given, path in files:
            check_pixels(path, given)
        _, names = without_common_folder([given for given, _ in files])
        paths = [path for _, path in files]
        gather_files(list(zip(names, paths, strict=True)), target, MOST_BYTES)
        for path in paths:
            path.unlink(missing_ok=True)  # the server's own copies
        return *self.show(target, ALL, 0), None

    def copy_data(self, folder: str | None, name: str) -> tuple[Any, ...]:
        """Copy a data folder into a new one, whose captions can be corrected."""
        source, target = self.folders.find(folder), self.folders.new(name)
        copy_folder(read_view(source).folder, target)
        return self.show(target, ALL, 0)

    def save_captions(
        self,
        turn: int,
        folder: str | None,
        which: str,
        page: int,
        before: Sequence[tuple[str, tuple[str, ...]]],
        *texts: str,
    ) -> tuple[Any, ...]:
        """Write the captions that were changed, and show this page or the next one."""
        path = self.folders.find(folder)
        after = {
            name: tuple(line.strip() for line in (text or "").splitlines() if line.strip())
            for (name, _), text in zip(before, texts, strict=False)
        }
        old = {name: tuple(captions) for name, captions in before}
        changed = {name for name in old if name and old[name] != after[name]}
        if changed:
            write_captions(path, {n: old[n] for n in changed}, {n: after[n] for n in changed})
            count = len(changed)
            gr.Info(f"The captions of {count} {'image are' if count == 1 else 'images are'} saved.")
        elif not turn:
            gr.Info("No caption was changed.")
        return self.show(path, which, page + turn)

    def make_report(self, folder: str | None, preset: str) -> str:
        """Return the report that check.py prints, as HTML."""
        view = read_view(self.folders.find(folder))
        options = CheckOptions(preset=preset)
        captions = count_captions(view.folder, *text_room(options))
        found = check_folder(options, view.folder, planned_runs(options), captions)
        return f"<div class='report'><pre>{escape(chr(10).join(report_lines(found)))}</pre></div>"

    def show(self, path: Path, which: str, page: int) -> tuple[Any, ...]:
        """Return what the panel shows of a data folder.

        page: of the images of this kind, counted from 0; one that is not there becomes the nearest.
        """
        view = read_view(path)
        pages = max(-(-view.count(which) // CELLS), 1)
        page = min(max(page, 0), pages - 1)
        items = view.items(which, page * CELLS, CELLS)
        cells: list[Any] = []
        for k in range(CELLS):
            cells += cell_of(items[k], view) if k < len(items) else no_cell()
        # An image whose text cannot be edited has no name here, so nothing is written for it.
        before = [(item.name if can_edit(item, view) else "", item.captions) for item in items]
        name = path.as_posix()
        return (
            gr.Dropdown(list(dict.fromkeys([*self.folders.names(), name])), value=name),
            summary_of(view, which, page, pages),
            gr.Row(visible=not view.source),
            gr.Radio(visible=True),
            gr.Row(visible=True),
            gr.Accordion(visible=True),
            page,
            before,
            *cells,
        )


def suggest_name(dropped: object, name: str) -> str:
    """Return the name of the new data folder: that of the folder that was dropped, unless given."""
    folder, _ = without_common_folder([given for given, _ in read_dropped(dropped)])
    return (name or "").strip() or folder


def check_pixels(path: Path, name: str) -> None:
    """Refuse an image of more pixels than are taken; what is no image is for others to refuse.

    name: that it had where it comes from.
    """
    size = "too many"
    with usual_limits():
        try:
            with Image.open(path) as picture:
                if picture.width * picture.height <= MOST_PIXELS:
                    return
                size = f"{picture.width}x{picture.height}"
        except Image.DecompressionBombError:
            pass
        except (OSError, ValueError, SyntaxError):
            return
    raise UserError(
        f"{shown(name)} has {size} pixels, and at most {MOST_PIXELS:,} are taken. Scale it "
        "down, or put it into a folder of the server."
    )


def can_edit(item: Item, view: DataView) -> bool:
    return bool(view.source) and item.can_be_edited


def cell_of(item: Item, view: DataView) -> list[Any]:
    """Return the fields of an image: whether there is one, the picture, the text."""
    name = escape(one_line(item.name, 80))
    if item.problem:
        html = f"<div class='empty'>{escape(one_line(item.problem, 200))}</div>"
        mark = "<div class='mark bad'>cannot be used</div>"
        text = gr.Textbox(value="", visible=False)
    else:
        address = thumbnail(item.path)
        html = (
            f"<img src='{address}' alt='{name}'>"
            if address
            else "<div class='empty'>no 8-bit picture</div>"
        )
        mark = "" if item.captions else "<div class='mark'>no caption</div>"
        text = gr.Textbox(
            value="\n".join(item.captions), visible=True, interactive=can_edit(item, view)
        )
    return [gr.Column(visible=True), f"<div class='cell'>{html}{name}{mark}</div>", text]


def no_cell() -> list[Any]:
    return [gr.Column(visible=False), "", gr.Textbox(value="")]


def summary_of(view: DataView, which: str, page: int, pages: int) -> str:
    """Return HTML that says what is in a folder, and where its captions stand."""
    folder = view.folder
    words = [f"<b>{len(folder.pairs):,}</b> images"]
    if missing := len(folder.without_caption):
        words.append(f"<b>{missing:,}</b> without caption")
    if unusable := len(folder.unusable):
        words.append(f"<b>{unusable:,}</b> files cannot be used")
    words.append(f"captions from {escape(one_line(folder.rule))}")
    if pages > 1:
        words.append(f"page {page + 1} of {pages}")
    how = (
        "One caption in each line."
        if view.source
        else ("They cannot be corrected there: copy the folder, and correct the copy.")
    )
    notes = "".join(f"<div>{escape(one_line(note, 300))}</div>" for note in folder.notes)
    return f"<div class='run-facts'>{''.join(f'<span>{w}</span>' for w in words)}</div>{how}{notes}"
