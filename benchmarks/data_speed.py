"""python benchmarks/data_speed.py

Reads the same pictures from a local folder, local shards, a parquet file, a web server and a server
that speaks S3 (both on this machine, in processes of their own), in the order of a training, and
prints images per second and their ratio to the local folder. `first` is the first pass over empty
caches, `again` the second, which finds all blocks on the disk.
"""

import io
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from the checkout, uninstalled

from training.cli import answer_early, parse, run_main
from training.flags import Positive


@dataclass(frozen=True, kw_only=True)
class Config:
    images: Positive[int] = 1024
    side: Positive[int] = 256  # of the pictures, in pixels


if __name__ == "__main__":
    answer_early(Config, __doc__)  # the imports below take seconds


import numpy as np
from PIL import Image

from dataset.folder import read_folder
from dataset.images.transform import ImageTransform
from dataset.loader import ImageBatches
from dataset.stores import blocks
from tests.helpers.shards import write_shard

BATCH = 32
PER_SHARD = 256
BUCKET = "speed"


def main(argv: Sequence[str] | None = None) -> None:
    config = parse(Config, argv, __doc__)
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        os.environ["LATENTSMITH_CACHE"] = str(root / "cache")
        os.environ["LATENTSMITH_INDEX"] = str(root / "index")
        make_data(root, config.images, config.side)
        with serve(root / "shards") as (web, s3):
            sources = {
                "local folder": str(root / "folder"),
                "local shards": f"{root}/shards/*.tar",
                "parquet": str(root / "data.parquet"),
                "web server": f"{web}/{{000..{(config.images - 1) // PER_SHARD:03d}}}.tar",
                "S3": f"{s3}/*.tar",
            }
            measure_all(sources, config.side)


def measure_all(sources: dict[str, str], side: int) -> None:
    """Print a table; the local folder is measured again at the end, to show how steady it is."""
    print("| source | first, images/s | ratio | again, images/s | ratio |\n|---|---|---|---|---|")
    base: tuple[float, float] | None = None
    for name, data in [*sources.items(), ("local folder, at the end", sources["local folder"])]:
        pairs = read_folder(data).pairs
        shutil.rmtree(blocks.cache_folder(), ignore_errors=True)  # the index has read everything
        blocks.CACHE = None
        batches = ImageBatches(pairs, ImageTransform(side // 2), BATCH, seed=1, in_memory=0)
        speeds = (measure(batches), measure(batches))
        base = base or speeds
        cells = (f"{s:.0f} | {s / b:.2f}" for s, b in zip(speeds, base, strict=True))
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


def measure(batches: ImageBatches) -> float:
    """Return images per second over one epoch."""
    steps = len(batches.pairs) // BATCH
    start = time.perf_counter()
    for _ in islice(batches.stream(), steps):
        pass
    return steps * BATCH / (time.perf_counter() - start)


def make_data(root: Path, count: int, side: int) -> None:
    """Write the same pictures as a folder, as shards and as a parquet file."""
    import pyarrow
    from pyarrow import parquet

    generator = np.random.default_rng(0)
    (root / "folder").mkdir()
    samples: dict[str, bytes] = {}
    for k in range(count):
        small = generator.integers(0, 256, (side // 8, side // 8, 3), np.uint8)
        file = io.BytesIO()
        Image.fromarray(small).resize((side, side)).save(file, "JPEG", quality=90)
        samples[f"{k:06d}.jpg"] = file.getvalue()
        samples[f"{k:06d}.txt"] = f"picture number {k}".encode()
    for name, content in samples.items():
        (root / "folder" / name).write_bytes(content)
    names = list(samples)
    for first in range(0, len(names), 2 * PER_SHARD):
        members = {name: samples[name] for name in names[first : first + 2 * PER_SHARD]}
        write_shard(root / "shards" / f"{first // 2 // PER_SHARD:03d}.tar", members)
    table = pyarrow.table(
        {
            "image": [samples[name] for name in names[::2]],
            "text": [samples[name].decode() for name in names[1::2]],
        }
    )
    parquet.write_table(table, root / "data.parquet", row_group_size=64)


@contextmanager
def serve(folder: Path) -> Iterator[tuple[str, str]]:
    """Run both servers in processes of their own; yield the URLs of the shards."""
    here = Path(__file__).resolve().parents[1]
    web_code = (
        "import sys, time; from pathlib import Path; "
        "from tests.helpers.data.servers import serve_ranges\n"
        "with serve_ranges(Path(sys.argv[1])) as web: print(web.address, flush=True); "
        "time.sleep(1e6)"
    )
    web = subprocess.Popen(
        [sys.executable, "-c", web_code, str(folder)], stdout=subprocess.PIPE, text=True, cwd=here
    )
    assert web.stdout is not None
    address = web.stdout.readline().strip()
    port = 20000 + os.getpid() % 20000
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    s3 = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        fill_bucket(f"http://127.0.0.1:{port}", folder)
        yield address, f"s3://{BUCKET}"
    finally:
        web.terminate()
        s3.terminate()


def fill_bucket(address: str, folder: Path) -> None:
    """Wait for the server that speaks S3, and upload the shards."""
    import boto3

    os.environ |= {
        "AWS_ACCESS_KEY_ID": "none",
        "AWS_SECRET_ACCESS_KEY": "none",
        "AWS_ENDPOINT_URL": address,
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    for _ in range(600):
        with suppress(OSError):
            urllib.request.urlopen(address, timeout=5).close()
            break
        time.sleep(0.1)
    client = boto3.client("s3")
    client.create_bucket(Bucket=BUCKET)
    for file in sorted(folder.glob("*.tar")):
        client.upload_file(str(file), BUCKET, file.name)


if __name__ == "__main__":
    run_main(main, Config)
