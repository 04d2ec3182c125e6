"""What tests run in a child process that meets the refusals of Windows.

python -m tests.helpers.windows.programs NAME FOLDER
"""

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dataset.folder import read_folder
from dataset.images.transform import ImageTransform
from dataset.loader import ImageBatches
from foundation import files, system
from foundation.errors import FileInUseError
from foundation.files import append_line, atomic_folder, remove_folder, write_json, write_text
from tests.helpers.data.parquet_files import image_table, write_parquet
from tests.helpers.images import captioned
from tests.helpers.shards import make_shards
from tests.helpers.toy_training import Toy
from training.checkpoint import saved_states
from training.cli import run_main
from training.run_lock import RunLock


def refused(call: Callable[..., Any], *args: Any) -> bool:
    """Return whether a call ends as on Windows."""
    try:
        call(*args)
    except (OSError, AttributeError, ImportError, ValueError):
        return True
    return False


def simulation(folder: Path) -> None:
    """Each refusal is met, and not where Windows has no objection."""
    (folder / "Name").write_text("text é\n")
    assert (folder / "Name").read_bytes() == "text é\r\n".encode("cp1252")
    assert (folder / "NAME").exists() and (folder / "nAME").read_text() == "text é\n"
    assert refused((folder / "NAME").mkdir)
    with (folder / "name").open("rb") as file:
        assert refused(os.fsync, file.fileno())
        assert refused(os.replace, folder / "Name", folder / "other")
        assert refused((folder / "Name").unlink)
    with (folder / "Name").open("r+b") as file:
        os.fsync(file.fileno())
    (folder / "deeper").mkdir()
    np.save(folder / "deeper" / "array.npy", np.arange(4))
    mapped = np.load(folder / "deeper" / "array.npy", mmap_mode="r")
    assert refused(os.replace, folder / "deeper", folder / "moved")
    assert refused((folder / "deeper" / "array.npy").unlink)
    del mapped
    os.replace(folder / "deeper", folder / "moved")
    (folder / "deeper").mkdir()
    assert refused(os.replace, folder / "moved", folder / "deeper")
    assert refused(os.rename, folder / "Name", folder / "moved")
    assert refused(os.open, folder, os.O_RDONLY) and refused(open, "/proc/meminfo")
    assert refused(os.fork) and multiprocessing.get_start_method() == "spawn"
    assert refused(multiprocessing.get_context, "fork")
    assert refused((folder / "a:b").mkdir) and refused(open, folder / "a?b", "w")
    assert refused(__import__, "resource") and refused(__import__, "fcntl")
    assert sys.stdout.encoding == "cp1252"


def replacing(folder: Path) -> None:
    """Files and folders are replaced; what is in use stays whole, and the error says so."""
    system.WAITS = files.patiently.__globals__["WAITS"] = (0.0, 0.0)
    target = folder / "target"
    for k in range(2):
        with atomic_folder(target, keep_others=True) as partial:
            np.save(partial / "array.npy", np.arange(4) + k)
        (target / "kept").write_text("kept")
    assert (target / "kept").read_text() == "kept"
    assert np.load(target / "array.npy")[0] == 1
    mapped = np.load(target / "array.npy", mmap_mode="r")
    try:
        with atomic_folder(target) as partial:
            (partial / "array.npy").write_text("new")
        raise AssertionError("it was replaced")
    except FileInUseError as error:
        assert "target" in str(error)
    assert refused(remove_folder, target)
    assert sorted(path.name for path in folder.iterdir()) == ["target"]
    assert sorted(path.name for path in target.iterdir()) == ["array.npy", "kept"]
    del mapped
    remove_folder(target)
    for text in ("old", "new \u0394"):
        write_text(folder / "text", text)
        write_json(folder / "json", {"text": text})
        append_line(folder / "lines", text)
    assert (folder / "lines").read_bytes() == "old\nnew \u0394\n".encode()
    assert sorted(path.name for path in folder.iterdir()) == ["json", "lines", "text"]


def toy_training(folder: Path) -> None:
    """A training that is stopped and goes on ends with the numbers of one that was not stopped."""
    unbroken = Toy(folder / "unbroken")
    unbroken.train()
    stopped = Toy(folder / "stopped")
    step = stopped.step

    def failing(number: int) -> dict[str, torch.Tensor]:
        if number == 7:
            raise MemoryError
        return step(number)

    stopped.step = failing
    with suppress(MemoryError):
        stopped.train()
    resumed = Toy(folder / "stopped")
    resumed.train()
    assert [path.name for path in saved_states(folder / "stopped" / "state")] == [
        "step-0000010",
        "step-0000012",
    ]
    for ours, theirs in zip(resumed.weights(), unbroken.weights(), strict=True):
        assert torch.equal(ours, theirs)
    assert resumed.metrics() == unbroken.metrics()
    text = (folder / "stopped" / "metrics.jsonl").read_bytes()
    assert b"\r" not in text


def commands(folder: Path) -> None:
    """The readers of every kind of data, and scripts with models that are not trained."""
    from tests.helpers.bad_calls import command, evaluate, export, make_world, sample

    world = make_world(folder / "world")
    table = image_table(folder / "pictures", range(12))
    for k in range(2):
        part = table.slice(6 * k, 6)
        write_parquet(folder / "parquet" / "data" / f"train-{k}.parquet", part)
    rows = [("image", "text"), *((f"{k:03d}.png", f"number {k}") for k in range(12))]
    csv = folder / "pictures" / "images" / "rows.csv"
    csv.write_bytes("\r\n".join(map(",".join, rows)).encode())
    for data in (world / "data", folder / "parquet", csv, make_shards(folder, 12)):
        for _ in range(2):  # without an index, and with one
            pairs = read_folder(data).pairs
            assert len(pairs) == 12 and pairs[3].captions
        batches = ImageBatches(pairs, ImageTransform(8), 4, 1, workers=0, in_memory=0)
        assert next(batches.stream())[0].shape == (4, 3, 8, 8)
    for _ in range(2):
        sample.main(command(sample, world, folder / "samples", "--grid", "--save-latents"))
    names = {path.suffix for path in (folder / "samples").iterdir()}
    assert names == {".png", ".safetensors"}
    judged = command(evaluate, world, folder / "judged", "--samples", "2")
    run_main(lambda: evaluate.main(judged))  # prints arrows, which the console lacks
    single, whole = folder / "single.safetensors", folder / "whole"
    unet = ("--part", "vae")
    export.main([str(world / "ldm"), str(single), "--format", "single-file", *unet])
    export.main([str(world / "ldm"), str(whole), "--format", "diffusers"])
    assert (whole / "unet").is_dir() and single.is_file()
    left = [path for path in folder.rglob("*") if path.name.endswith((".partial", ".old"))]
    assert not left


def locking(folder: Path) -> None:
    """A run folder is locked by one process at a time, and the content of the lock can be read."""
    lock = RunLock(folder)
    child = multiprocessing.Process(target=RunLock, args=(folder,))
    child.start()
    child.join()
    assert child.exitcode == 1
    lock.release()
    RunLock(folder).release()


def workers(folder: Path) -> None:
    """Processes that are not forked decode the same batches, and Ctrl-C does not end them."""
    pairs = read_folder(captioned(folder, 9)).pairs
    transform = ImageTransform(8)
    batches = [ImageBatches(pairs, transform, 4, 1, workers=count, in_memory=0) for count in (0, 1)]
    inline, decoded = (list(islice(each.stream(), 2)) for each in batches)
    for (ours, captions), (theirs, others) in zip(decoded, inline, strict=True):
        assert torch.equal(ours, theirs) and captions == others
    stream = batches[1].stream()
    next(stream)
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    for child in multiprocessing.active_children():
        os.kill(child.pid or 0, signal.SIGINT)
    for _ in range(5):
        next(stream)
    signal.signal(signal.SIGINT, before)


def printing(folder: Path) -> None:
    """A message may have characters that the console lacks."""
    run_main(lambda: print("snowman \u2603"))


PROGRAMS = (simulation, replacing, toy_training, commands, locking, workers, printing)


def main() -> None:
    by_name = {program.__name__: program for program in PROGRAMS}
    for name in sys.argv[2:]:
        folder = Path(sys.argv[1]) / name
        folder.mkdir()
        by_name[name](folder)
        print(f"{name} done", flush=True)


if __name__ == "__main__":
    main()
