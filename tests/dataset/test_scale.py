"""What follows from a data folder of some thousand images, held to digests recorded once.

Split, shapes, order and rows of the cache were once computed by plain loops and 64-bit numbers.
They must stay the same, however they are computed.
"""

import hashlib
from pathlib import Path

import numpy as np
import pytest

from dataset.buckets import bucket_shapes, choose_buckets
from dataset.latent_cache.rows import assign_rows, number_unique
from dataset.order import BucketOrder
from dataset.table import ImageFacts, PairList, TableBuilder, split
from stages.data import data_identity

COUNT = 3000
DIGESTS = {
    "data": "516ac7217ce45d70",
    "images": "85f5f9ee76ac9905",
    "order, many": "e8953a469870dcfb",
    "order, one": "6e6923ab167db900",
    "rows, many": "f7afc1c81d8b7e20c8435994caf97fc6",
    "rows, one": "3f7006da5cbb77c6c8435994caf97fc6",
    "shapes": "b7ce91878ff76869",
    "split": "f202f34e54857edb",
}


def synthetic() -> PairList:
    """Make pairs with repeated images, repeated captions, none to three of them, many shapes."""
    builder = TableBuilder()
    draw = np.random.default_rng(7)
    for k in range(COUNT):
        image = int(draw.integers(0, COUNT))
        texts = [f"word {int(n)} ä" for n in draw.integers(0, 500, int(draw.integers(0, 4)))]
        facts = ImageFacts(
            size=1000 + image,
            mtime_ns=k // 100,
            shard=k // 100,
            offset=512 * (k % 100),
            width=int(draw.integers(300, 900)),
            height=int(draw.integers(300, 900)),
            sha256=hashlib.sha256(str(image).encode()).digest(),
        )
        captions = tuple(dict.fromkeys(texts)) or ("",)
        builder.add(f"{k // 100:03d}.tar/{k:05d}.jpg", captions, facts, ("RGB", "L")[k % 7 == 0])
    shards = [f"{k:03d}.tar" for k in range(COUNT // 100)]
    return builder.build(Path("/data"), shards).pairs


def digest(*arrays) -> str:
    """Hash arrays by their values, whatever their type."""
    result = hashlib.sha256()
    for values in arrays:
        result.update(np.asarray(values).astype(np.int64).tobytes() + b".")
    return result.hexdigest()[:16]


@pytest.fixture(scope="module")
def found() -> dict[str, str]:
    pairs = synthetic()
    train, held_out = split(pairs, 0.03)
    buckets = choose_buckets(train, bucket_shapes(2.0, 512, 64), 16)
    results = {
        "split": digest(train.rows, held_out.rows),
        "shapes": digest(*buckets.shapes, buckets.assign(train)),
        "data": data_identity(train, held_out)["data_files"]["sha256"][:16],
        "images": data_identity(train, held_out, captions=False)["data_files"]["sha256"][:16],
    }
    for name, bucket in (("one", np.zeros(len(train), np.uint8)), ("many", buckets.assign(train))):
        order = BucketOrder(bucket, 16, seed=3)
        steps = [0, 1, 180, 181, 182, 183, 400, 7, 10_000]
        results[f"order, {name}"] = digest(*(order.indices(step) for step in steps))
    for name, shapes in (("one", None), ("many", buckets)):
        rows = assign_rows(train + held_out, shapes)
        texts = hashlib.sha256("\n".join(rows.captions).encode()).hexdigest()[:16]
        arrays = (*rows.images, rows.image_rows, rows.shape, rows.caption_rows, rows.caption_starts)
        results[f"rows, {name}"] = digest(*arrays) + texts
    return results


def test_results_are_those_of_the_recorded_digests(found):
    assert found == DIGESTS


def test_keys_that_agree_in_their_folded_bits_are_told_apart():
    draw = np.random.default_rng(0)
    words = draw.integers(0, 2**63, (50, 2), np.uint64)
    swapped = words[:, ::-1]  # the exclusive or of the words is the same
    keys = np.concatenate([words, swapped, words]).view(np.uint8)
    numbers, firsts = number_unique(keys, np.arange(len(keys), dtype=np.int32))
    assert numbers.tolist() == [*range(100), *range(50)]
    assert firsts.tolist() == [*range(100)]
