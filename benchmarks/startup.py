"""python benchmarks/startup.py --images 1000000 --where /tmp/million

Measures time and memory of what stage 2 does with its data before the first step, when index and
cache exist. The data are synthetic: empty image files, an index, and a cache with latents and
contexts as large as those of Stable Diffusion (in sparse files, which take no space). Prints rows
of the table in docs/data.md. The data stay in --where for the next call.
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

from training.cli import answer_early, parse, run_main
from training.flags import Positive


@dataclass(frozen=True, kw_only=True)
class Config:
    where: Path  # folder for the synthetic data
    images: Positive[int] = 100_000
    kind: Literal["folder", "shards"] = "folder"  # a file per image, or 1000 images per tar file
    batch_size: Positive[int] = 256  # images in the first batch
    max_aspect: float = 1.0  # as in train_ldm.py
    measure: bool = False  # measure in this process; the benchmark itself uses it


if __name__ == "__main__":
    answer_early(Config, __doc__)  # the imports below take seconds


import numpy as np
import torch

from dataset.buckets import bucket_shapes, choose_buckets
from dataset.folder import folder_fingerprint, read_folder
from dataset.index_files import FORMAT, Index, index_folder, save_index
from dataset.latent_cache.block_file import PAGE, npy_header
from dataset.latent_cache.cache import MARK, LatentCache, describe_cache, hash_pairs
from dataset.latent_cache.rows import assign_rows
from dataset.order import BucketOrder
from dataset.table import ImageFacts, TableBuilder, split
from dataset.webdataset import expand_shards, shard_names_hash, shards_fingerprint

IDENTITY = {"made": "up"}
MOMENTS, CONTEXT = (8, 64, 64), (77, 768)  # of 512-pixel images, and of CLIP ViT-L/14
PER_FOLDER = 1000
WORDS = "a photo of one small red wooden toy house beside an old tree under the morning sky"


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
    figures: dict[str, str] = {}
    for _ in range(2):  # at the second time the system has the file names in memory
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        figures = json.loads(done.stdout.splitlines()[-1])
        print(f"| {config.images:,} {config.kind} | " + " | ".join(figures.values()) + " |")
    print("columns: " + ", ".join(figures))


def data_flag(config: Config, root: Path) -> str:
    """Return what a training gets as --data."""
    return str(root / "data") if config.kind == "folder" else str(root / "data" / "*.tar")


def make_data(config: Config, root: Path) -> None:
    """Write empty image files, and an index and a latent cache for them."""
    folder, builder = root / "data", TableBuilder()
    folder.mkdir(parents=True)
    shards: list[str] = []
    for k in range(config.images):
        group, position = divmod(k, PER_FOLDER)
        if position == 0 and config.kind == "shards":
            shards.append(f"{group:05d}.tar")
            (folder / shards[-1]).touch()
        elif position == 0:
            (folder / f"{group:05d}").mkdir()
        name = f"{group:05d}{'.tar' if shards else ''}/{k:08d}.jpg"
        if not shards:
            (folder / name).touch()
        facts = ImageFacts(
            size=50_000,
            mtime_ns=0,
            offset=50_000 * position,
            shard=group if shards else -1,
            width=512 + 64 * (k % 5),
            height=512,
            sha256=k.to_bytes(32),
        )
        builder.add(name, [f"{WORDS} {k}"], facts, "RGB")
    table = builder.build(folder, shards)
    if shards:
        _, names = expand_shards(data_flag(config, root))
        kind, fingerprint = f"shards-{shard_names_hash(names)}", shards_fingerprint(folder, names)
    else:
        (folder / "metadata.jsonl").touch()
        kind, fingerprint = "folder", folder_fingerprint(folder)
    target = index_folder(folder) / f"{kind}-{fingerprint}-{FORMAT}"
    assert save_index(Index(table, "metadata.jsonl", [], []), target)
    make_cache(config, root)


def make_cache(config: Config, root: Path) -> None:
    """Write a latent cache as `build_cache` does, but with encodings of zeros, in sparse files."""
    folder = root / "cache"
    folder.mkdir()
    pairs = read_folder(data_flag(config, root)).pairs
    train, held_out = split(pairs, 0.02)
    pairs = train + held_out
    shapes = bucket_shapes(config.max_aspect, 512, 64)
    rows = assign_rows(pairs, choose_buckets(train, shapes, config.batch_size))
    sizes: dict[str, tuple[int, ...]] = {"context": (len(rows.captions), *CONTEXT)}
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
    mark = describe_cache(IDENTITY, hash_pairs(pairs)) | {"blocks": blocks}
    (folder / MARK).write_text(json.dumps(mark))


def measure(config: Config, root: Path) -> dict[str, str]:
    """Measure CPU seconds of each part, and the memory per image when everything is ready."""
    times: dict[str, float] = {}

    @contextmanager
    def timed(name: str) -> Iterator[None]:
        started = time.process_time()
        yield
        times[name] = time.process_time() - started

    before, started_at = memory(), time.perf_counter()
    with timed("index"):
        folder = read_folder(data_flag(config, root))
        folder.require_all_usable()
    with timed("split, shapes, order"):
        train, held_out = split(folder.pairs, 0.02)
        buckets = choose_buckets(
            train, bucket_shapes(config.max_aspect, 512, 64), config.batch_size
        )
        order = BucketOrder(buckets.assign(train), config.batch_size, seed=0)
        indices = order.indices(0)
    with timed("cache"):
        cache = LatentCache.open(root / "cache", IDENTITY, train + held_out)
    started = memory()
    with timed("first batch"):
        random = [torch.Generator().manual_seed(k) for k in indices.tolist()]
        _, numbers = cache.batch(indices, random, 0.1)
        cache.contexts(numbers)
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
        "private memory, bytes per image": per_image("RssAnon"),
        "with mapped files": per_image("VmRSS"),
        "at its peak": per_image("VmHWM"),
    }


def memory() -> dict[str, int]:
    """Return bytes as Linux counts them: private, with pages of mapped files, and at the peak."""
    status = Path("/proc/self/status").read_text()
    lines = dict(line.split(":", 1) for line in status.splitlines())
    return {kind: 1024 * int(lines[kind].split()[0]) for kind in ("RssAnon", "VmRSS", "VmHWM")}


if __name__ == "__main__":
    run_main(main, Config)
