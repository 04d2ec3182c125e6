"""What the recipes of emojis share: SVG to pixels, names to words, and what is held out."""

import hashlib
import io
import re
from typing import Any

from PIL import Image

HELD_OUT = "held-out.json"  # lists the combinations that are only in test/
SKIN_TONES = re.compile(r"( (medium[ -])?(light|dark)| medium) skin tone")


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


def without_skin_tone(name: str) -> str:
    """Remove all skin tones from a name: 'cook medium-light skin tone' -> 'cook'."""
    return SKIN_TONES.sub("", name)


def caption_place(caption: str) -> float:
    """Hash a caption to a number in [0, 1), the same on every machine."""
    return int.from_bytes(hashlib.sha256(caption.encode()).digest()[:8]) / 2**64
