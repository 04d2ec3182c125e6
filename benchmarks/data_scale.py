"""python benchmarks/data_scale.py --entries 1000000 10000000

Measures how index, order, shapes, rows of the latent cache and start-up of a training grow with
the number of images. The entries are synthetic: names, captions, sizes and hashes as of shards of
10,000 images, without any image. They go through the functions that a training calls. Each number
of entries, and each of the two parts (building, starting), has a process of its own, so that peaks
of memory are its own. All parts but the first repeat its texts, with other hashes. Prints a table,
with what follows for 100 million entries on 64 ranks.
"""

import json
import multiprocessing
import os
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # run from a checkout, whatever is installed

from training.cli import answer_early, parse, run_main


@dataclass(frozen=True, kw_only=True)
class Config:
    entries: tuple[int, ...] = (1_000_000, 10_000_000)
    where: Path | None = None  # folder for the files, which are removed; else a temporary one


if __name__ == "__main__":
    answer_early(Config, __doc__)  # the imports below take seconds


import numpy as np
import torch

from dataset.buckets import bucket_shapes, choose_buckets
from dataset.folder import Folder
from dataset.index_files import Index, load_index, save_index, write_index
from dataset.joining import JoinedTables
from dataset.latent_cache.cache import hash_pairs
from dataset.latent_cache.rows import assign_rows
from dataset.order import BucketOrder
from dataset.table import ImageFacts, Table, TableBuilder, split
from stages.data import data_identity

PER_SHARD, SHARDS_PER_PART, BATCH, RANKS = 10_000, 10, 2048, 64
PLANNED = 100_000_000
TEXT = (
    "a photograph of one small red wooden toy house beside an old tree under the morning sky with "
    "two people on a bench and a dog that looks at the water"
)
WORDS = TEXT.split()  # of captions of 60 to 120 characters


@dataclass
class Figures:
    """What one process measured: step -> (seconds, more private bytes, more at the peak)."""

    steps: dict[str, tuple[float, int, int]] = field(default_factory=dict)
    disk: int = 0
    private: int = 0

    @contextmanager
    def measured(self, step: str) -> Iterator[None]:
        """Measure a block; its peak, with mapped files, is the one since the last block."""
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
        private, resident = status("RssAnon"), status("VmRSS")
        started = time.perf_counter()
        yield
        seconds, peak = time.perf_counter() - started, status("VmHWM") - resident
        self.steps[step] = (seconds, status("RssAnon") - private, peak)


def main(argv: Sequence[str] | None = None) -> None:
    config = parse(Config, argv, __doc__)
    folder = Path(tempfile.mkdtemp(prefix="scale-", dir=config.where))
    try:
        results = {count: measure(count, folder / str(count)) for count in config.entries}
        print_table(results)
    finally:
        shutil.rmtree(folder)


def measure(count: int, folder: Path) -> Figures:
    """Run both parts, each in a new process."""
    folder.mkdir()
    figures = Figures()
    for part in (build, start):
        found = in_new_process(part, count, folder)
        figures.steps |= found.steps
        figures.disk, figures.private = found.disk or figures.disk, found.private
    return figures


def in_new_process(part: Callable[[int, Path], Figures], count: int, folder: Path) -> Figures:
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(part, (count, folder))


# What is measured ---------------------------------------------------------------------------------


def build(count: int, folder: Path) -> Figures:
    """Write the parts as ranks do that check the images, and join them as rank 0 does."""
    figures, step = Figures(), PER_SHARD * SHARDS_PER_PART
    parts = [folder / f"part-{first}" for first in range(0, count, step)]
    with figures.measured(f"{step} rows made (a rank, besides decoding)"):
        table = make_part(folder, 0, step)
    with figures.measured("parts written"):
        for number, part in enumerate(parts):
            varied = vary(table, number) if number else table
            assert save_index(Index(varied, "captions", [], []), part)
            del varied
    del table
    with figures.measured("parts joined to the index (rank 0)"):
        tables = [lambda part=part: open_part(part, folder) for part in parts]
        joined = JoinedTables(tables)
        index = Index(TableBuilder().build(folder), "captions", [], [])
        assert write_index(index, folder / "index", joined.save)
    figures.disk = sum(file.stat().st_size for file in (folder / "index").iterdir())
    for part in parts:
        shutil.rmtree(part)
    return figures


def start(count: int, folder: Path) -> Figures:
    """Do what each rank does before its first step, and before it builds a latent cache."""
    figures = Figures()
    torch.randperm(10)  # what the libraries take at their first use
    with figures.measured("index opened"):
        index = load_index(folder / "index", folder)
        assert index is not None and len(index.table) == count
    pairs = index.table.pairs
    read = Folder(folder, index.rule, pairs)
    with figures.measured("checks: captions, depth"):
        assert not len(read.without_caption)
        assert read.require_one_dtype() == "uint8"
    with figures.measured("split"):
        train, held_out = split(pairs, 0.001)
    with figures.measured("hash of the data"):
        data_identity(train, held_out)
    with figures.measured("shapes (max_aspect 2)"):
        buckets = choose_buckets(train, bucket_shapes(2.0, 512, 64), BATCH)
        bucket = buckets.assign(train)
    with figures.measured("order, one shape"):
        plain = BucketOrder(np.zeros(len(train), np.uint8), BATCH, seed=0)
        plain.indices(0)
    del plain
    with figures.measured("order, several shapes"):
        order = BucketOrder(bucket, BATCH, seed=0)
        order.indices(0)
    last = len(train) // BATCH
    with figures.measured("order, a resume in epoch 3"):
        first = order.indices(3 * last)
    share = first[:0]
    with figures.measured("share of a rank in 1000 steps"):
        for step in range(1000):
            share = order.indices(3 * last + step % max(last // 2, 1))[0::RANKS]
    with figures.measured("1000 captions and places"):
        assert all(train[k].captions for k in first[:1000].tolist())
    assert len(share) == BATCH // RANKS
    figures.private = status("RssAnon")
    del order
    with figures.measured("latent cache: hash"):
        hash_pairs(train + held_out)
    with figures.measured("latent cache: rows (when it is built)"):
        rows = assign_rows(train + held_out, buckets)
    assert len(rows.captions) > count // 2
    return figures


def make_part(root: Path, first: int, end: int) -> Table:
    """Make the rows of some shards, of which every hundredth image and caption is there twice."""
    builder = TableBuilder()
    draw = np.random.default_rng(first)
    words = draw.integers(0, len(WORDS), (end - first, 20)).tolist()
    lengths = draw.integers(12, 20, end - first).tolist()
    sides = draw.integers(384, 1024, (end - first, 2)).tolist()
    hashes = draw.bytes(32 * (end - first))
    shards = [f"{k:05d}.tar" for k in range(first // PER_SHARD, -(-end // PER_SHARD))]
    for k in range(end - first):
        j = k - 1 if k % 100 == 99 else k
        caption = " ".join(WORDS[w] for w in words[j][: lengths[j]])
        facts = ImageFacts(
            size=100_000,
            mtime_ns=1,
            shard=k // PER_SHARD,
            offset=100_000 * k,
            width=sides[k][0],
            height=sides[k][1],
            sha256=hashes[32 * j : 32 * j + 32],
        )
        builder.add(f"{shards[k // PER_SHARD]}/{first + k:09d}.jpg", (caption,), facts, "RGB")
    return builder.build(root, shards)


def vary(table: Table, number: int) -> Table:
    """Return a part with the texts of another, and with shards, hashes and places of its own."""
    draw = np.random.default_rng(number)
    columns = dict(table.columns)
    for name in ("sha256", "captions_hash"):
        columns[name] = draw.integers(0, 256, columns[name].shape, np.uint8)
        columns[name][99::100] = columns[name][98::100]
    columns["place"] = draw.random(len(table))
    first = number * SHARDS_PER_PART
    shards = tuple(f"{k:05d}.tar" for k in range(first, first + SHARDS_PER_PART))
    return replace(table, shards=shards, columns=columns)


def open_part(part: Path, root: Path) -> Table:
    index = load_index(part, root)
    assert index is not None
    return index.table


# Memory and table ---------------------------------------------------------------------------------


def status(kind: str) -> int:
    """Return bytes of this process: RssAnon is private, VmRSS has mapped files, too."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return 1024 * int(lines[kind].split()[0])


def print_table(results: dict[int, Figures]) -> None:
    """Print each step: seconds and bytes per entry, and what follows for the planned number."""
    most = max(results)
    names = list(results[most].steps)
    heads = [f"{count:,}: s | private B/entry | at its peak" for count in results]
    print(f"| step | {' | '.join(heads)} | at {PLANNED:,}: s | private GB |")
    print("|" + "---|" * (3 + 3 * len(results)))
    for name in names:
        cells: list[str] = []
        for count, figures in results.items():
            seconds, own, peak = figures.steps[name]
            cells.append(f"{seconds:.2f} | {own / count:.0f} | {peak / count:.0f}")
        seconds, own, _ = results[most].steps[name]
        scale = PLANNED / most if "000" not in name else 1
        cells.append(f"{seconds * scale:.1f} | {own * scale / 1e9:.2f}")
        print(f"| {name} | {' | '.join(cells)} |")
    for count, figures in results.items():
        print(
            f"{count:,} entries: the index has {figures.disk / count:.0f} bytes per entry, and a "
            f"rank that is ready to train {figures.private / 1e9:.2f} GB of private memory"
        )
    print(
        f"For {PLANNED:,} entries: each figure of {most:,} times {PLANNED / most:g}; steps that "
        "name a number of rows, steps or captions stay as they are."
    )
    print(json.dumps({str(n): {"steps": f.steps, "disk": f.disk} for n, f in results.items()}))
    usage = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    print(f"largest process: {usage / 1e9:.2f} GB with mapped files; {os.cpu_count()} CPU cores")


if __name__ == "__main__":
    run_main(main, Config)
