"""What models record about how they were made: latentsmith.json, and headers of weights files.

It is free JSON, to which everybody may add. Here stands what programs read of it, with types, so
that an entry of another type is refused when a file is opened and not somewhere later. What is
written holds no paths: a model that is shared must not tell whose folders it was made in, and equal
runs in different folders must give equal bytes. Hashes bind a model to others; names only inform.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from foundation.errors import UserError
from foundation.files import read_json
from foundation.json_reading import check_type, from_json, load_object

OWN_FOLDER = "."  # in place of the run folder, which contains the file that records it
# Entries of a recorded config that hold paths, or patterns of paths, of those who trained.
PATHS = ("out", "data", "vae", "text_encoder", "init_from", "model", "lora", "weak_model")


@dataclass(frozen=True, kw_only=True)
class _Flags:
    """Flags of a training that are read again."""

    caption_dropout: float | None = None
    caption_languages: str | None = None
    caption_prefix: str | None = None
    caption_suffix: str | None = None
    text_chunks: int | None = None


@dataclass(frozen=True, kw_only=True)
class _Pixels:
    dtype: str
    value_range: tuple[float, float]
    layout: str


@dataclass(frozen=True, kw_only=True)
class _Statistics:
    mean: tuple[float, ...]
    std: tuple[float, ...]
    images: int


@dataclass(frozen=True, kw_only=True)
class _Recorded:
    """Entries that are read again, by any program."""

    config: _Flags | None = None
    pixels: _Pixels | None = None
    text_chunks: int | None = None
    autoencoder_sha256: str | None = None
    text_encoder_sha256: str | None = None
    latent_statistics_folded_in: _Statistics | None = None
    largest_activation: float | None = None
    fits_float16: bool | None = None
    same_latents_as_sha256: tuple[str, ...] = ()


def checked_provenance(content: object, source: object) -> dict[str, Any]:
    """Return provenance as it is, if all entries that programs read have the right types.

    source: the file, for the message.

    Raises:
        UserError: it is no object, or an entry has another type.
    """
    provenance: dict[str, Any] = check_type(content, dict, source, "provenance")
    try:
        from_json(_Recorded, provenance, source)
        for part in ("autoencoder", "text_encoder"):
            if isinstance(inner := provenance.get(part), dict):
                checked_provenance(inner, f"{source} ({part})")
    except UserError as error:
        raise UserError(f"{error} Copy the model again.") from None
    return provenance


def parse_provenance(text: str, source: object) -> dict[str, Any]:
    """Return the provenance in an entry of a weights file's header."""
    return checked_provenance(load_object(text, source, raw_bytes=True), source)


def read_facts(file: Path) -> dict[str, Any]:
    """Read a latentsmith.json that has an entry "provenance"; empty if there is no such file."""
    facts = read_json(file, default={})
    if "provenance" in facts:
        checked_provenance(facts["provenance"], file)
    return facts


def without_paths(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Return provenance in which every path is only its last part; nested parts too."""
    return {
        name: _config_without_paths(cast(Mapping[str, Any], value))
        if name == "config" and isinstance(value, Mapping)
        else without_paths(cast(Mapping[str, Any], value))
        if name in ("autoencoder", "text_encoder", "provenance") and isinstance(value, Mapping)
        else value
        for name, value in provenance.items()
    }


def _config_without_paths(config: Mapping[str, Any]) -> dict[str, Any]:
    shortened = {
        name: last_part(value) if name in PATHS and isinstance(value, str) else value
        for name, value in config.items()
    }
    if "out" in shortened:
        shortened["out"] = OWN_FOLDER
    if isinstance(overrides := shortened.get("overrides"), list):
        shortened["overrides"] = [_override_without_paths(each) for each in overrides]
    return shortened


def _override_without_paths(override: Any) -> Any:
    """Shorten the paths in an entry such as {"step": 5, "flags": ["data: /a/b -> /c/d"]}."""
    if not isinstance(override, dict) or not isinstance(override.get("flags"), list):
        return override
    flags: list[Any] = []
    for line in override["flags"]:
        name, colon, change = str(line).partition(": ")
        if colon and name in PATHS:
            change = " -> ".join(last_part(path) for path in change.split(" -> "))
        flags.append(f"{name}{colon}{change}")
    return {**override, "flags": flags}


def last_part(path: str) -> str:
    """Return the last part of a path of any system; NAME:PATH of open_clip keeps the name."""
    name, colon, rest = path.partition(":")
    if colon and "/" in rest and "/" not in name and len(name) > 1:
        return f"{name}:{last_part(rest)}"
    return path.replace("\\", "/").rstrip("/").rpartition("/")[2] or OWN_FOLDER
