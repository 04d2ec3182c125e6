"""Pieces of an HTML page that needs no other file, no script and no network, in light and dark."""

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape

from PIL import Image

STYLE = """
:root { color-scheme: light dark; --text: #111; --page: #fff; --faint: #555; --line: #ddd;
        --bad: #a01010; --good: #14742c; }
body { font: 15px/1.5 sans-serif; color: var(--text); background: var(--page); max-width: 1180px;
       margin: 2em auto; padding: 0 1em; }
h1 { font-size: 1.5em; }
h2 { font-size: 1.15em; margin-top: 2em; border-bottom: 1px solid var(--line); }
.charts { display: flex; flex-wrap: wrap; gap: 8px; } .charts svg { max-width: 100%; height: auto; }
figure { display: inline-block; margin: 0 12px 12px 0; vertical-align: top; }
figure img { max-width: 540px; width: 100%; image-rendering: pixelated; }
.steps > section { display: none; margin-top: 10px; }
.steps > input { position: absolute; opacity: 0; }
.steps > label { display: inline-block; padding: 2px 9px; margin: 0 3px 4px 0; cursor: pointer;
                 border: 1px solid var(--line); border-radius: 4px; }
.steps > input:checked + label { color: var(--page); background: var(--text); }
.steps > input:focus-visible + label { outline: 2px solid #1f6fb4; outline-offset: 1px; }
.previews { display: flex; flex-wrap: wrap; gap: 14px; }
.steps figure { margin: 0; display: table; max-width: 100%; }
.steps figure img { max-width: 100%; height: auto; margin-right: 3px; }
.steps figcaption { display: table-caption; caption-side: bottom; overflow-wrap: anywhere; }
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(260px, 1fr));
            gap: 12px; }
.pictures figure { margin: 0; overflow-wrap: anywhere; font-size: 13px; }
figcaption, .faint { color: var(--faint); } table { border-collapse: collapse; }
td, th { padding: 2px 14px 2px 0; vertical-align: top; text-align: left; }
td:first-child { color: var(--faint); } td.number, th.number { text-align: right; }
td.number { font-variant-numeric: tabular-nums; white-space: nowrap; }
.wide { overflow-x: auto; }
.grid tr { border-bottom: 1px solid var(--line); } .grid small { color: var(--faint); }
.warning { color: var(--bad); font-weight: bold; } .good { color: var(--good); }
@media (prefers-color-scheme: dark) {
  :root { --text: #e6e6e6; --page: #16181b; --faint: #a3a8ae; --line: #3a3f45; --bad: #ff8a80;
          --good: #7fd694; }
  svg > rect[fill="white"] { fill: #1f2226; } svg text { fill: #e6e6e6; }
  svg line[stroke="#ddd"] { stroke: #3a3f45; } svg line[stroke="#444"] { stroke: #a3a8ae; }
}
"""


def page(title: str, sections: Sequence[str]) -> str:
    """Return an HTML page with a heading."""
    return (
        "<!DOCTYPE html><html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>"
        f"<body><h1>{escape(title)}</h1>{''.join(sections)}</body></html>\n"
    )


def table(rows: Mapping[str, str]) -> str:
    """Return an HTML table with two columns."""
    cells = (f"<tr><td>{escape(k)}</td><td>{escape(v)}</td></tr>" for k, v in rows.items())
    return f"<table>{''.join(cells)}</table>"


def number_table(
    head: Sequence[str], rows: Sequence[Sequence[str]], notes: Sequence[str] = ()
) -> str:
    """Return an HTML table whose first column names the rows; the others hold numbers.

    notes: for each row, small text below its name; "": none.
    """
    titles = "".join(
        f"<th{' class=number' if k else ''}>{escape(text)}</th>" for k, text in enumerate(head)
    )
    lines: list[str] = []
    for k, (name, *cells) in enumerate(rows):
        note = notes[k] if k < len(notes) else ""
        below = f"<br><small>{escape(note)}</small>" if note else ""
        numbers = "".join(f"<td class=number>{escape(cell)}</td>" for cell in cells)
        lines.append(f"<tr><td>{escape(name)}{below}</td>{numbers}</tr>")
    return f"<div class=wide><table class=grid><tr>{titles}</tr>{''.join(lines)}</table></div>"


def picture(image: Image.Image | bytes, name: str, caption: str = "") -> str:
    """Return a figure that holds a PNG itself.

    Args:
        image: the picture, or the bytes of a PNG file.
        name: what a reader without the picture is told.
        caption: text below; "": the name.
    """
    shown = image_element(image, name)
    return f"<figure>{shown}<figcaption>{escape(caption or name)}</figcaption></figure>"


def image_element(image: Image.Image | bytes, name: str, width: int | None = None) -> str:
    """Return an <img> that holds a PNG itself.

    width: pixels that it takes on the page, where there is room; None: as the page has it.
    """
    if isinstance(image, Image.Image):
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        image = buffer.getvalue()
    data = base64.b64encode(image).decode()
    size = f" style='width: {width}px'" if width else ""
    return f"<img alt='{escape(name, quote=True)}'{size} src='data:image/png;base64,{data}'>"
