"""What the recipes of emojis share: drawings in SVG to pixels, and names of Unicode to words."""

import io
from typing import Any

from PIL import Image


def render_svg(size: int, **source: Any) -> Image.Image:
    """Render a drawing on white, with antialiasing; its longer side gets `size` pixels.

    source: `svg_path` or `svg_string`.

    Raises:
        ValueError: it is not a drawing that resvg can render.
    """
    import resvg_py  # imported here: the recipes say what to install if it is missing

    options = {"width": size, "height": size, "background": "white", "skip_system_fonts": True}
    png = resvg_py.svg_to_bytes(**source, **options)
    return Image.open(io.BytesIO(png)).convert("RGB")


def plain_name(name: str) -> str:
    """Turn a name of the package emoji into words: ':woman_astronaut:' -> 'woman astronaut'.

    Typographic apostrophes become those that people type, because tokenizers distinguish them.
    """
    return name.strip(":").replace("_", " ").replace("\u2019", "'")
