"""Where CLIPs of open_clip lie, and which architectures it knows."""

from pathlib import Path
from typing import Any, cast

from foundation.errors import UserError, did_you_mean, one_line

CONFIG_FILE = "open_clip_config.json"  # the name that open_clip's "local-dir:" schema looks for


def clip_places(source: Path) -> tuple[Path, ...]:
    """Return where a CLIP may lie: in a run of train_clip.py, in its model/, or in `source`."""
    return source / "model" / "clip", source / "clip", source


def find_clip_folder(source: Path) -> Path | None:
    """Return the first of the `clip_places` that holds a CLIP in open_clip's layout."""
    return next((place for place in clip_places(source) if (place / CONFIG_FILE).is_file()), None)


def built_in_config(name: str) -> dict[str, Any]:
    """Return open_clip's config of one of its architectures.

    Raises:
        UserError: it has none of this name.
    """
    import open_clip  # pyright: ignore[reportMissingTypeStubs] # slow: with torchvision

    names = cast(list[str], open_clip.list_models())
    if name not in names:
        hint = did_you_mean(name, names, count=3)
        raise UserError(f"open_clip has no architecture {one_line(name, 100)!r}.{hint}")
    return cast(
        dict[str, Any],
        open_clip.get_model_config(name),  # pyright: ignore[reportUnknownMemberType]
    )
