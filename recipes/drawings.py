"""What the recipes of emojis share: SVG to pixels, names to words, and what is held out."""

import hashlib
import io
import re
from collections.abc import Collection, Mapping
from typing import Any

from PIL import Image

from foundation.errors import UserError, listed, shown

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


def load_names(languages: Collection[str]) -> Mapping[str, Mapping[str, str]]:
    """Return character -> language -> name of the package emoji, without variation selectors.

    languages: codes of them; all others but English may be missing.

    Raises:
        UserError: the package has no names in one of the languages.
    """
    import emoji  # imported here: the recipes say what to install if it is missing

    known: list[str] = sorted(emoji.LANGUAGES)
    for language in languages:
        if language not in known:
            raise UserError(
                f"the package emoji {emoji.__version__} has no names in the language "
                f"{shown(language)}. It has: {listed(known, len(known))}."
            )
        emoji.config.load_language(language)
    return {bare(character): names for character, names in emoji.EMOJI_DATA.items()}


def bare(character: str) -> str:
    """Remove the variation selectors, with which a character can be written or without."""
    return character.replace("\ufe0f", "")


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
