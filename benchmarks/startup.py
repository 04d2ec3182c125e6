"""python benchmarks/startup.py --images 1000000 --where /tmp/million

What stage 2 does with its data before the first step when index and cache exist: time and memory.
The images are made up: files of no content, and an index and a cache as they would be kept for
them, of latents and contexts as large as those of Stable Diffusion (their files are sparse and take
no space). Prints rows of the table of docs/data.md. --where is left as it is for the next call.
"""

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).parents[1]))  # run from a checkout, whatever is installed

import numpy as np
import torch

from dataset.buckets import choose_buckets, shapes_up_to
from dataset.folder import read_folder
from dataset.index import FORMAT, Index, index_place, keep
from dataset.latent_cache.block_file import PAGE, npy_header
from dataset.latent_cache.cache import MARK, LatentCache, about, data_hash
from dataset.latent_cache.rows import assign_rows
from dataset.listing import fingerprint
from dataset.order import BucketOrder
from dataset.split import split
from dataset.table import Rows
from dataset.webdataset import expand, shards_fingerprint, shards_hash
from training.cli import parse, run_main
from training.flags import Positive

IDENTITY = {"made": "up"}
MOMENTS, CONTEXT = (8, 64, 64), (77, 768)  # at 512 pixels, and of CLIP ViT-L/14
PER_FOLDER = 1000
WORDS = "a photo of one small red wooden toy house beside an old tree under the morning sky"


@dataclass(frozen=True, kw_only=True)
class Config:
    where: Path  # folder for the made-up data
    images: Positive[int] = 100_000
    kind: Literal["folder", "shards"] = "folder"  # each image a file, or a thousand in a tar file
    batch_size: Positive[int] = 256  # of the first batch
    max_aspect: float = 1.0  # as in train_ldm.py
    measure: bool = False  # only measure, in this process; used by the benchmark itself


def main(argv: Sequence[str] | None = None) -> None:
    config = parse(Config, argv, __doc__)
    root = config.where / f"{config.kind}-{config.images}"
    if config.measure:
        print(json.dumps(measure(config, root)))
        return
    if not root.exists():
        make_data(config, root)
    given = [word for word in (argv or sys.argv[1:]) if word != "--measure"]
    command = [sys.executable, __file__, *given, "--measure"]
    for _ in range(2):  # the second time the file system's tables are in memory
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        figures = json.loads(done.stdout.splitlines()[-1])
        print(f"| {config.images:,} {config.kind} | " + " | ".join(figures.values()) + " |")
    print("columns: " + ", ".join(figures))


def data(config: Config, root: Path) -> str:
    return str(root / "data") if config.kind == "folder" else str(root / "data" / "*.tar")


def make_data(config: Config, root: Path) -> None:
    folder, rows = root / "data", Rows()
    folder.mkdir(parents=True)
    shards = []
    for k in range(config.images):
        group, place = divmod(k, PER_FOLDER)
        if place == 0 and config.kind == "shards":
            shards.append(f"{group:05d}.tar")
            (folder / shards[-1]).touch()
        elif place == 0:
            (folder / f"{group:05d}").mkdir()
        name = f"{group:05d}{'.tar' if shards else ''}/{k:08d}.jpg"
        if not shards:
            (folder / name).touch()
        facts = {
            "size": 50_000,
            "mtime_ns": 0,
            "offset": 50_000 * place,
            "shard": group if shards else -1,
            "width": 512 + 64 * (k % 5),
            "height": 512,
            "sha256": k.to_bytes(32),
        }
        rows.add(name, [f"{WORDS} {k}"], facts, "RGB")
    table = rows.table(folder, shards)
    if shards:
        _, names = expand(data(config, root))
        kind, stamp = f"shards-{shards_hash(names)}", shards_fingerprint(folder, names)
    else:
        (folder / "metadata.jsonl").touch()
        kind, stamp = "folder", fingerprint(folder)
    place = index_place(folder) / f"{kind}-{stamp}-{FORMAT}"
    assert keep(Index(table, "metadata.jsonl", [], []), place)
    make_cache(config, root)


def make_cache(config: Config, root: Path) -> None:
    """As cache_build.py writes it; of the encodings only their size."""
    folder = root / "cache"
    folder.mkdir()
    folded = read_folder(data(config, root))
    train, held_out = split(folded, 0.02)
    pairs = train + held_out
    shapes = shapes_up_to(config.max_aspect, 512, 64)
    rows = assign_rows(pairs, choose_buckets(train, shapes, config.batch_size))
    sizes = {"context": (len(rows.captions), *CONTEXT)}
    for k, members in enumerate(rows.images):
        sizes[f"moments-{k}"] = (len(members), *MOMENTS)
    for name, shape in sizes.items():
        with (folder / f"{name}.npy").open("wb") as file:
            file.write(npy_header(shape))
            file.truncate(PAGE + 2 * int(np.prod(shape, dtype=np.int64)))
    for name in ("image_rows", "shape", "caption_starts", "caption_rows"):
        np.save(folder / f"{name}.npy", getattr(rows, name))
    for name in ("sha256", "captions_hash"):
        np.save(folder / f"{name}.npy", pairs.column(name))
    blocks = {f"{name}.npy": ["0" * 64] * 4096 for name in sizes}
    mark = about(IDENTITY, data_hash(pairs)) | {"blocks": blocks}
    (folder / MARK).write_text(json.dumps(mark))


def measure(config: Config, root: Path) -> dict[str, str]:
    """CPU seconds of each part, and bytes of memory that an image takes when all is ready."""
    times: dict[str, float] = {}

    @contextmanager
    def timed(name: str) -> Iterator[None]:
        started = time.process_time()
        yield
        times[name] = time.process_time() - started

    before, started_at = memory(), time.perf_counter()
    with timed("index"):
        folder = read_folder(data(config, root))
        folder.require_all_usable()
    with timed("split, shapes, order"):
        train, held_out = split(folder, 0.02)
        buckets = choose_buckets(train, shapes_up_to(config.max_aspect, 512, 64), config.batch_size)
        order = BucketOrder(buckets.of(train), config.batch_size, seed=0)
        indices = order.indices(0)
    with timed("cache"):
        cache = LatentCache.open(root / "cache", IDENTITY, train + held_out)
    started = memory()
    with timed("first batch"):
        cache.batch(indices, [torch.Generator().manual_seed(k) for k in indices.tolist()], 0.1)
        captions = [pair.captions[0] for pair in held_out[:8]]
    assert len(captions) == 8
    assert len(cache) == config.images

    def per_image(kind: str) -> str:
        return f"{(started[kind] - before[kind]) / config.images:.0f}"

    total = sum(times.values())
    figures = {name: f"{seconds:.2f}" for name, seconds in times.items()}
    return figures | {
        "all, CPU seconds": f"{total:.2f}",
        "all, seconds": f"{time.perf_counter() - started_at:.2f}",
        "memory of its own, bytes per image": per_image("RssAnon"),
        "with mapped files": per_image("VmRSS"),
        "at most meanwhile": per_image("VmHWM"),
    }


def memory() -> dict[str, int]:
    """Bytes, as Linux counts them: of its own, with the pages of mapped files, at most so far."""
    status = Path("/proc/self/status").read_text()
    lines = dict(line.split(":", 1) for line in status.splitlines())
    return {kind: 1024 * int(lines[kind].split()[0]) for kind in ("RssAnon", "VmRSS", "VmHWM")}


if __name__ == "__main__":
    run_main(main)
