"""What becomes of a caption before it is trained on: shuffled tags, left-out tags, added words."""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from random import Random
from typing import Any

from dataset.captions.rows import normal_language
from foundation.errors import UserError, shown


@dataclass(frozen=True, kw_only=True)
class TagVariants:
    """Variants of captions that are lists of tags, such as "cat, sitting, blue sky".

    A variant follows from the seed, its number and the text alone, so equal captions have equal
    variants, and every process makes the same ones.

    Args:
        count: variants of each caption.
        shuffle: bring the tags into a random order.
        dropout: chance of each tag to be left out.
        keep: so many tags at the beginning stay where they are.
        separator: between the tags.
    """

    count: int
    seed: int
    shuffle: bool = False
    dropout: float = 0.0
    keep: int = 0
    separator: str = ","

    def make(self, text: str, number: int) -> str:
        """Return a variant of a caption; it is empty if all tags are left out."""
        tags = split_tags(text, self.separator)
        kept, others = tags[: self.keep], tags[self.keep :]
        key = f"{self.seed}\0{number}\0{text}".encode()
        random = Random(int.from_bytes(hashlib.blake2b(key, digest_size=16).digest()))
        draws = [(random.random(), random.random()) for _ in others]
        order = range(len(others))
        if self.shuffle:
            order = sorted(order, key=lambda k: draws[k][0])
        kept += [others[k] for k in order if draws[k][1] >= self.dropout]
        joint = self.separator if self.separator[-1].isspace() else f"{self.separator} "
        return joint.join(kept)

    def describe(self) -> dict[str, Any]:
        """Return what the variants depend on, as JSON."""
        return asdict(self)


def split_tags(text: str, separator: str) -> list[str]:
    """Return the tags of a caption without spaces around them, and without empty ones."""
    return [tag.strip() for tag in text.split(separator) if tag.strip()]


@dataclass(frozen=True, kw_only=True)
class CaptionChoice:
    """Which captions are trained on, and the words around them.

    Args:
        languages: the languages whose captions are used, each with its chance relative to the
            others, or all with None: then every caption is as likely as without a choice. Empty:
            all captions.
        prefix, suffix: words before and after every caption but the empty one, with a space.
    """

    languages: Mapping[str, float | None]
    prefix: str = ""
    suffix: str = ""

    @property
    def is_any(self) -> bool:
        """Whether anything is chosen or added."""
        return bool(self.languages or self.prefix.strip() or self.suffix.strip())

    def add_words(self, text: str) -> str:
        """Return a caption with the prefix and the suffix; the empty one stays empty."""
        if not text:
            return text
        return " ".join(part for part in (self.prefix.strip(), text, self.suffix.strip()) if part)


def parse_languages(text: str) -> dict[str, float | None]:
    """Return the languages in "en,de" with None, and those in "en=3,de=1" with their numbers.

    Raises:
        UserError: it is neither. The message continues "<parameter> ...".
    """
    result: dict[str, float | None] = {}
    for entry in text.split(",") if text else ():
        name, equals, number = entry.partition("=")
        language = normal_language(name)
        if language is None or language in result:
            reason = "twice" if language else "which is no code such as en or pt-BR"
            raise UserError(f"is {shown(text)}; it names {shown(name.strip())} {reason}.")
        result[language] = check_chance(number, text) if equals else None
    if len({chance is None for chance in result.values()}) > 1:
        raise UserError(
            f"is {shown(text)}; give a number to all languages or to none: en,de or en=3,de=1."
        )
    return result


def check_chance(number: str, text: str) -> float:
    """Return the number of a language, which must be above 0."""
    try:
        chance = float(number)
    except ValueError:
        chance = 0.0
    if not 0 < chance <= 1e6:
        raise UserError(
            f"is {shown(text)}; {shown(number)} must be a number above 0 and at most 1,000,000."
        )
    return chance
