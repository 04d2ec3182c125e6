"""Building a latent cache: by several processes, over several attempts, verified afterwards."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from dataset.buckets import Buckets
from dataset.folder import read_folder
from dataset.latent_cache import block_file
from dataset.latent_cache.block_file import BlockFile
from dataset.latent_cache.cache import LatentCache, verify_cache
from dataset.parallel import WorkShare
from dataset.table import PairList
from foundation.errors import UserError
from tests.helpers.data.latent_cache import (
    IDENTITY,
    TRANSFORM,
    encode_images,
    encode_letters,
    folder_content,
)
from tests.helpers.data.latent_cache import build as build_cache
from tests.helpers.images import captioned, picture, write_metadata
from tests.helpers.killing.kills import forked, kill_at

COUNT = 11  # images, each with a caption of its own


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Make blocks of two rows, so that eleven images are six blocks."""
    monkeypatch.setattr(block_file, "ROWS", 2)


def pairs_in(root: Path) -> PairList:
    """Read root/data; make it if it does not exist."""
    data = root / "data"
    return read_folder(data if data.exists() else captioned(data, COUNT)).pairs


def build(root: Path, folder: str = "cache", **changes) -> LatentCache:
    """Build root/folder of the images in root/data."""
    arguments = {"pairs": pairs_in(root), "encode_texts": encode_letters, **changes}
    return build_cache(root / folder, **arguments)


def build_together(root: Path, ranks: int, folder: str = "cache", **changes) -> None:
    """Build with several ranks at the same time, each in a thread.

    Python 3.11 can fail to parse headers of .npy files in several threads at once, so they take
    turns. Real ranks are processes.
    """
    pairs, lock, load = pairs_in(root), threading.Lock(), np.load

    def load_alone(*arguments, **options):
        with lock:
            return load(*arguments, **options)

    barrier, errors = threading.Barrier(ranks, timeout=30), []

    def run(rank: int) -> None:
        try:
            process = WorkShare(rank, ranks, barrier.wait)
            build(root, folder, pairs=pairs, process=process, **changes)
        except Exception as error:
            errors.append(error)
            barrier.abort()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(ranks)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(np, "load", load_alone)
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    if errors:
        raise next(
            (e for e in errors if not isinstance(e, threading.BrokenBarrierError)), errors[0]
        )


def counting_encoder():
    """Return an encoder, and a list that gets the number of images of each call."""
    sizes = []

    def encode(pixels: torch.Tensor) -> torch.Tensor:
        sizes.append(len(pixels))
        return encode_images(pixels)

    return encode, sizes


def test_several_ranks_write_the_same_as_a_single_one(tmp_path):
    build(tmp_path)
    seen = []

    def encode(pixels: torch.Tensor) -> torch.Tensor:
        seen.append((threading.get_ident(), len(pixels)))
        return encode_images(pixels)

    build_together(tmp_path, 3, "other", encode_images=encode)
    assert sum(count for _, count in seen) == COUNT
    assert len({thread for thread, _ in seen}) == 3
    assert folder_content(tmp_path / "cache") == folder_content(tmp_path / "other")


def test_more_ranks_than_blocks(tmp_path):
    build(tmp_path)
    build_together(tmp_path, 8, "other")
    assert folder_content(tmp_path / "cache") == folder_content(tmp_path / "other")


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL on this system")
def test_a_killed_build_continues(tmp_path):
    """After a kill in the fourth block, two processes encode only the three blocks that remain."""
    build(tmp_path, "unbroken")
    script = """
        import os, signal, sys
        from pathlib import Path
        from dataset.folder import read_folder
        from dataset.latent_cache import block_file
        from tests.helpers.data.latent_cache import build, encode_images, encode_letters

        block_file.ROWS = 2
        calls = []

        def encode(pixels):
            calls.append(1)
            if len(calls) == 4:
                os.kill(os.getpid(), signal.SIGKILL)
            return encode_images(pixels)

        root = Path(sys.argv[1])
        pairs = read_folder(root / "data").pairs
        encoders = {"encode_images": encode, "encode_texts": encode_letters}
        build(root / "cache", pairs, **encoders)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)],
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == -signal.SIGKILL
    encode, sizes = counting_encoder()

    def encode_no_texts(texts: list[str]) -> torch.Tensor:
        raise AssertionError("all captions were encoded before the kill")

    build_together(tmp_path, 2, encode_images=encode, encode_texts=encode_no_texts)
    assert sum(sizes) == COUNT - 3 * 2
    assert folder_content(tmp_path / "cache") == folder_content(tmp_path / "unbroken")


def stop_after(count: int):
    """Return an encoder that raises an error after this number of calls."""
    calls = []

    def encode(pixels: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        if len(calls) > count:
            raise InterruptedError("stopped")
        return encode_images(pixels)

    return encode


def test_a_damaged_block_is_encoded_again(tmp_path):
    build(tmp_path, "unbroken")
    with pytest.raises(InterruptedError):
        build(tmp_path, encode_images=stop_after(4))
    moments = tmp_path / "cache.partial" / "moments-0.npy"
    with moments.open("r+b") as file:
        file.seek(block_file.PAGE + 3 * 16 + 2)  # row 3, which is in block 1
        file.write(b"!")
    encode, sizes = counting_encoder()
    build(tmp_path, encode_images=encode)
    assert sizes == [2, 2, 1]
    assert folder_content(tmp_path / "cache") == folder_content(tmp_path / "unbroken")


@pytest.mark.parametrize("before", [True, False])
def test_a_build_may_stop_whenever_it_waits_for_the_disk(tmp_path, monkeypatch, before):
    """Stop before or after each fsync: of a block, of its hash, of the whole cache."""
    build(tmp_path, "unbroken")
    fsync, calls = os.fsync, []

    def stopping(descriptor: int, stop_at: int) -> None:
        calls.append(1)
        if before and len(calls) == stop_at:
            raise InterruptedError("stopped")
        fsync(descriptor)
        if len(calls) == stop_at:
            raise InterruptedError("stopped")

    stops = 0
    for stop_at in range(1, 1000):
        calls.clear()
        monkeypatch.setattr(os, "fsync", partial(stopping, stop_at=stop_at))
        try:
            build(tmp_path)
        except InterruptedError:
            stops += 1
            continue
        break
    assert folder_content(tmp_path / "cache") == folder_content(tmp_path / "unbroken")
    assert stops > 2  # each of them left a little more done


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_build_may_be_killed_before_any_change_of_a_file(tmp_path):
    """Each attempt is killed one change later than the last, until an attempt is complete."""
    pairs = pairs_in(tmp_path)
    build(tmp_path, "unbroken")

    def attempt(number: int) -> None:
        kill_at(number, tmp_path)
        build_cache(tmp_path / "cache", pairs, encode_texts=encode_letters)

    torch.set_num_threads(1)
    number = next(k for k in range(1, 1000) if forked(partial(attempt, k)))
    assert number > 10
    assert folder_content(tmp_path / "cache") == folder_content(tmp_path / "unbroken")


def test_a_block_whose_hash_file_is_torn_is_encoded_again(tmp_path):
    build(tmp_path, "unbroken")
    with pytest.raises(InterruptedError):
        build(tmp_path, encode_images=stop_after(4))
    file = BlockFile(tmp_path / "cache.partial" / "moments-0.npy", COUNT).hash_file(2)
    file.write_text(file.read_text()[:-9])
    encode, sizes = counting_encoder()
    build(tmp_path, encode_images=encode)
    assert sum(sizes) == 2 + 3  # block 2, and the three rows that were not encoded
    assert folder_content(tmp_path / "cache") == folder_content(tmp_path / "unbroken")


def test_a_finished_cache_holds_no_leftovers_of_the_build(tmp_path):
    build(tmp_path)
    assert {path.name for path in (tmp_path / "cache").iterdir()} == {
        *("latent_cache.json", "context.npy", "moments-0.npy", "shape.npy", "image_rows.npy"),
        *("caption_starts.npy", "caption_rows.npy", "sha256.npy", "captions_hash.npy"),
    }


@pytest.mark.parametrize("changed", ["identity", "data"])
def test_an_unfinished_cache_of_another_run_is_not_used(tmp_path, changed):
    with pytest.raises(InterruptedError):
        build(tmp_path, encode_images=stop_after(4))
    identity = IDENTITY
    if changed == "identity":
        identity = IDENTITY | {"autoencoder": "c" * 64}
    else:
        picture(tmp_path / "data" / "010.png", seed=99)
    encode, sizes = counting_encoder()
    build(tmp_path, encode_images=encode, identity=identity)
    assert sum(sizes) == COUNT


def test_a_stop_at_the_end_loses_nothing(tmp_path, monkeypatch):
    build(tmp_path, "unbroken")
    with monkeypatch.context() as patch:
        patch.setattr("dataset.latent_cache.build.put_in_place", stop_after(0))
        with pytest.raises(TypeError):
            build(tmp_path)
    build(tmp_path, encode_images=stop_after(0))
    assert folder_content(tmp_path / "cache") == folder_content(tmp_path / "unbroken")


def test_verification_names_a_damaged_block(tmp_path):
    build(tmp_path)
    verify_cache(tmp_path / "cache")
    with (tmp_path / "cache" / "context.npy").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"!")
    with pytest.raises(UserError, match=r"block 5 of context\.npy"):
        verify_cache(tmp_path / "cache")
    (tmp_path / "cache" / "moments-0.npy").unlink()
    with pytest.raises(UserError, match=r"block 0 of moments-0\.npy.* 4 "):
        verify_cache(tmp_path / "cache")


def test_a_cache_of_an_earlier_format_is_refused(tmp_path):
    (tmp_path / "cache").mkdir()
    old = {"format": 1, "identity": IDENTITY}
    (tmp_path / "cache" / "latent_cache.json").write_text(json.dumps(old))
    with pytest.raises(UserError, match=r"format: .* 1.* 2"):
        LatentCache.open(tmp_path / "cache", IDENTITY, pairs_in(tmp_path))


def test_latents_of_several_shapes(tmp_path):
    """Wide, square and tall images are cropped to their own shapes; a batch holds one shape."""
    sizes = [(16, 8), (8, 8), (8, 16)]
    rows = []
    for k in range(9):
        picture(tmp_path / "data" / f"{k}.png", seed=k, size=sizes[k % 3])
        rows.append({"file_name": f"{k}.png", "text": f"picture {k}"})
    write_metadata(tmp_path / "data", rows)
    buckets = Buckets([(4, 12), (8, 8), (12, 4)])
    pairs = pairs_in(tmp_path)
    build_together(tmp_path, 2, buckets=buckets)
    cache = LatentCache.open(tmp_path / "cache", IDENTITY, pairs)
    bucket, transforms = buckets.assign(pairs), buckets.transforms(TRANSFORM)
    assert bucket.tolist() == [2, 1, 0] * 3
    for k in range(3):
        chosen = np.flatnonzero(bucket == k)
        latents, _ = cache.batch(torch.from_numpy(chosen), [torch.Generator()] * 3, 0.0)
        pixels = [torch.from_numpy(transforms[k](pairs[j].path)) for j in chosen.tolist()]
        expected = encode_images(torch.stack(pixels))[:, :1]
        assert latents.shape[2:] == ((3, 1), (2, 2), (1, 3))[k]
        assert torch.allclose(latents, expected, atol=2e-3)
    with pytest.raises(AssertionError, match="one shape"):
        cache.batch(torch.tensor([0, 1]), [torch.Generator()] * 2, 0.0)
