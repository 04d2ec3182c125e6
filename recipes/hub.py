"""Fetches a data set of the Hugging Face Hub as it lies there, to train on it from the disk.

    python recipes/hub.py lambda/naruto-blip-captions data/naruto
    python recipes/hub.py name/of-the-set data/set --files 'data/train-*' --yes

License, size and number of files are printed first. The revision is pinned and recorded in OUT: if
the recipe is stopped, the same command continues with the same revision. parquet, Arrow, folders of
images and tar files are read as they lie; check.py says what is there.
"""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.utils import filter_repo_objects

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from the checkout, uninstalled

from foundation.errors import UserError, one_line, printable
from foundation.files import check_replaceable, explain_full_disk, read_json, write_json, write_text
from training.cli import parse, run_main
from training.memory import format_bytes

MARK = ".hub.json"  # what OUT holds; the name is hidden, so that it is no part of the data
LARGE = 10 * 2**30  # bytes; more are fetched only with --yes
ATTRIBUTION = """\
The files in this folder are the data set {name} of the Hugging Face Hub, revision {revision}.
Address: {address}
License, as its authors state it: {license}
"""


@dataclass(frozen=True, kw_only=True)
class Options:
    name: tyro.conf.Positional[str]  # of the data set, such as lambda/naruto-blip-captions
    out: tyro.conf.Positional[Path]  # data folder to write
    revision: str | None = None  # branch, tag or commit; left out: the newest, or that of OUT
    files: tuple[str, ...] = ()  # patterns of the files to fetch, such as 'data/train-*'
    yes: bool = False  # fetch however large it is


def main(argv: Sequence[str] | None = None) -> None:
    options = parse(Options, argv, __doc__)
    check_replaceable(options.out, MARK)
    earlier = read_json(options.out / MARK, default={})
    refuse_others(options, earlier)
    with explained(options.name):
        api = HfApi()
        revision = options.revision or earlier.get("revision")
        info = api.dataset_info(options.name, revision=revision, files_metadata=True)
    made = describe(options, info, api.endpoint)
    if earlier and earlier["revision"] != made["revision"]:
        raise UserError(
            f"{one_line(options.out)} holds revision {earlier['revision']}, and {options.revision} "
            f"is {made['revision']}. Choose another folder."
        )
    print(
        printable(
            f"{made['name']}, revision {made['revision']}\nlicense: {made['license']}\n"
            f"{made['files']} files, {format_bytes(made['bytes'])}"
        )
    )
    if made["bytes"] > LARGE and not options.yes:
        raise UserError(
            f"{format_bytes(made['bytes'])} are more than {format_bytes(LARGE)}. To fetch them "
            "all, give --yes; --files fetches a part."
        )
    fetch(options, made, info, api.endpoint)
    print(f"the data are in {options.out}; check them with: python check.py {options.out}")


def refuse_others(options: Options, earlier: dict[str, Any]) -> None:
    """Refuse a folder that holds another data set, or another part of it."""
    ours = {"name": options.name, "patterns": list(options.files)}
    for key, value in ours.items():
        if earlier and earlier.get(key) != value:
            raise UserError(
                f"{one_line(options.out)} was fetched with {key} {earlier.get(key)!r}, not "
                f"{value!r}. Choose another folder."
            )


def describe(options: Options, info: Any, endpoint: str) -> dict[str, Any]:
    """Return what is fetched, as OUT records it.

    Raises:
        UserError: no file has such a name.
    """
    sizes = chosen_sizes(options, info)
    if not sizes:
        raise UserError(f"{options.name} has no files {' '.join(options.files)}".rstrip() + ".")
    license_name = info.card_data.get("license") if info.card_data else None
    if isinstance(license_name, list):
        license_name = ", ".join(map(str, license_name))
    return {
        "recipe": "hub",
        "name": options.name,
        "revision": info.sha,
        "patterns": list(options.files),
        "license": license_name or "none is stated; ask the authors before you use it",
        "address": f"{endpoint}/datasets/{options.name}",
        "files": len(sizes),
        "bytes": sum(sizes.values()),
    }


def chosen_sizes(options: Options, info: Any) -> dict[str, int]:
    """Return the bytes of each file to fetch."""
    sizes = {entry.rfilename: entry.size or 0 for entry in info.siblings or ()}
    names = filter_repo_objects(sizes, allow_patterns=list(options.files) or None)
    return {name: sizes[name] for name in names}


def fetch(options: Options, made: dict[str, Any], info: Any, endpoint: str) -> None:
    """Fetch the files that are not there yet, and check that all have the right size."""
    options.out.mkdir(parents=True, exist_ok=True)
    write_json(options.out / MARK, made)
    advice = "What was fetched is kept. Free some space, and run the same command again."
    with explain_full_disk(options.out, advice), explained(options.name):
        snapshot_download(
            options.name,
            repo_type="dataset",
            revision=made["revision"],
            local_dir=options.out,
            endpoint=endpoint,
            allow_patterns=list(options.files) or None,
        )
    for name, size in chosen_sizes(options, info).items():
        file = options.out / name
        if not file.is_file() or file.stat().st_size != size:
            raise UserError(
                f"{one_line(file)} did not arrive as a whole ({size} bytes). Run the same command "
                "again."
            )
    write_text(options.out / "ATTRIBUTION.txt", ATTRIBUTION.format(**made))


@contextmanager
def explained(name: str) -> Iterator[None]:
    """Turn errors of the Hub and of the network into one line."""
    try:
        yield
    except GatedRepoError as error:
        raise UserError(
            f"{name} asks for an agreement. Give it on its page on the Hub, then log in: hf auth "
            "login"
        ) from error
    except RevisionNotFoundError as error:
        raise UserError(f"{name} has no such revision.") from error
    except RepositoryNotFoundError as error:
        raise UserError(
            f"the Hub has no data set {one_line(name)}, or it is private. Names look like "
            "owner/name; for a private one log in: hf auth login"
        ) from error
    except Exception as error:  # of its HTTP client, whose kinds differ between versions
        if isinstance(error, OSError) and error.errno is not None and error.filename is not None:
            raise  # of the disk
        raise UserError(
            f"{one_line(name)} cannot be fetched ({one_line(error, 300)}). What has arrived is "
            "kept; run the same command again."
        ) from error


if __name__ == "__main__":
    run_main(main, Options)
