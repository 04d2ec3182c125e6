"""A cache that several processes build, that is killed and goes on, and that is verified."""

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
from dataset.images.transform import ImageTransform
from dataset.latent_cache import block_file as blocks
from dataset.latent_cache.build import Process, build_cache
from dataset.latent_cache.cache import LatentCache, verify_cache
from dataset.table import Pairs
from tests.helpers.images import captioned, picture, write_metadata

TRANSFORM = ImageTransform(8)
IDENTITY = {"transform": TRANSFORM.describe(), "autoencoder": "a" * 64}
COUNT = 11


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Two rows each, so that eleven images make six blocks."""
    monkeypatch.setattr(blocks, "ROWS", 2)


def encode_images(pixels: torch.Tensor) -> torch.Tensor:
    mean = torch.nn.functional.avg_pool2d(pixels.float(), 4).mean(1, keepdim=True) / 64
    return torch.cat([mean, torch.full_like(mean, -18.0)], dim=1)


def encode_texts(texts: list[str]) -> torch.Tensor:
    return torch.stack([torch.full((3, 2), float(hash_of(text))) for text in texts])


def hash_of(text: str) -> int:
    return sum(map(ord, text)) % 1000


def pairs_in(root: Path) -> Pairs:
    return read_folder(
        root / "data" if (root / "data").exists() else captioned(root / "data", COUNT)
    ).pairs


def build(root: Path, folder: str = "cache", **changes) -> LatentCache:
    arguments = {
        "pairs": pairs_in(root),
        "transform": TRANSFORM,
        "encode_images": encode_images,
        "encode_texts": encode_texts,
        "folder": root / folder,
        "identity": IDENTITY,
        "batch_size": 2,
    }
    return build_cache(**arguments | changes)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def together(root: Path, ranks: int, folder: str = "cache", **changes) -> None:
    """As many builds at once, in threads."""
    barrier, errors = threading.Barrier(ranks, timeout=30), []

    def one(rank: int) -> None:
        try:
            build(root, folder, process=Process(rank, ranks, barrier.wait), **changes)
        except Exception as error:
            errors.append(error)
            barrier.abort()

    threads = [threading.Thread(target=one, args=(rank,)) for rank in range(ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise next(
            (e for e in errors if not isinstance(e, threading.BrokenBarrierError)), errors[0]
        )


def test_all_ranks_together_write_what_one_writes(tmp_path):
    build(tmp_path)
    seen = []

    def encode(pixels: torch.Tensor) -> torch.Tensor:
        seen.append((threading.get_ident(), len(pixels)))
        return encode_images(pixels)

    together(tmp_path, 3, "other", encode_images=encode)
    assert sum(count for _, count in seen) == COUNT
    assert len({thread for thread, _ in seen}) == 3
    assert content(tmp_path / "cache") == content(tmp_path / "other")


def test_more_ranks_than_blocks(tmp_path):
    build(tmp_path)
    together(tmp_path, 8, "other")
    assert content(tmp_path / "cache") == content(tmp_path / "other")


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL on this system")
def test_a_killed_build_goes_on_where_it_was(tmp_path):
    """Killed in the fourth block; then by two processes, which encode three blocks, not six."""
    build(tmp_path, "straight")
    script = """
        import os, signal, sys
        from pathlib import Path
        from dataset.latent_cache import block_file as blocks
        from tests.dataset.test_latent_cache_build import build, encode_images

        blocks.ROWS = 2
        calls = []

        def encode(pixels):
            calls.append(1)
            if len(calls) == 4:
                os.kill(os.getpid(), signal.SIGKILL)
            return encode_images(pixels)

        build(Path(sys.argv[1]), encode_images=encode)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)],
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == -signal.SIGKILL
    seen = []

    def encode(pixels: torch.Tensor) -> torch.Tensor:
        seen.append(len(pixels))
        return encode_images(pixels)

    def no_text(texts: list[str]) -> torch.Tensor:
        raise AssertionError("all captions were encoded before the kill")

    together(tmp_path, 2, encode_images=encode, encode_texts=no_text)
    assert sum(seen) == COUNT - 3 * 2
    assert content(tmp_path / "cache") == content(tmp_path / "straight")


def stop_after(blocks_done: int):
    calls = []

    def encode(pixels: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        if len(calls) > blocks_done:
            raise InterruptedError("stopped")
        return encode_images(pixels)

    return encode


def test_a_block_that_was_damaged_meanwhile_is_encoded_again(tmp_path):
    build(tmp_path, "straight")
    with pytest.raises(InterruptedError):
        build(tmp_path, encode_images=stop_after(4))
    moments = tmp_path / "cache.partial" / "moments-0.npy"
    with moments.open("r+b") as file:
        file.seek(blocks.PAGE + 3 * 16 + 2)  # row 3, which is in block 1
        file.write(b"!")
    seen = []

    def encode(pixels: torch.Tensor) -> torch.Tensor:
        seen.append(len(pixels))
        return encode_images(pixels)

    build(tmp_path, encode_images=encode)
    assert seen == [2, 2, 1]
    assert content(tmp_path / "cache") == content(tmp_path / "straight")


@pytest.mark.parametrize("before", [True, False])
def test_a_build_may_stop_at_any_write(tmp_path, monkeypatch, before):
    """Before or after each of the moments at which something has to be on the disk."""
    build(tmp_path, "straight")
    sync, calls = blocks.sync, []

    def stopping(file, at: int) -> None:
        calls.append(1)
        if before and len(calls) == at:
            raise InterruptedError("stopped")
        sync(file)
        if len(calls) == at:
            raise InterruptedError("stopped")

    for at in range(1, 1000):
        calls.clear()
        monkeypatch.setattr(blocks, "sync", partial(stopping, at=at))
        try:
            build(tmp_path)
        except InterruptedError:
            continue
        break
    assert content(tmp_path / "cache") == content(tmp_path / "straight")
    assert at > 2  # several stops, each of which left a little more done


def test_a_line_that_a_kill_tore_is_ignored(tmp_path):
    build(tmp_path, "straight")
    with pytest.raises(InterruptedError):
        build(tmp_path, encode_images=stop_after(4))
    (journal,) = (tmp_path / "cache.partial").glob("moments-0.*.done")
    journal.write_text(journal.read_text()[:-9])
    build(tmp_path)
    assert content(tmp_path / "cache") == content(tmp_path / "straight")


@pytest.mark.parametrize("changed", ["identity", "data"])
def test_what_another_run_left_unfinished_is_not_used(tmp_path, changed):
    with pytest.raises(InterruptedError):
        build(tmp_path, encode_images=stop_after(4))
    identity = IDENTITY
    if changed == "identity":
        identity = IDENTITY | {"autoencoder": "c" * 64}
    else:
        picture(tmp_path / "data" / "010.png", seed=99)
    seen = []

    def encode(pixels: torch.Tensor) -> torch.Tensor:
        seen.append(len(pixels))
        return encode_images(pixels)

    build(tmp_path, encode_images=encode, identity=identity)
    assert sum(seen) == COUNT


def test_a_stop_at_the_very_end_loses_nothing(tmp_path, monkeypatch):
    build(tmp_path, "straight")
    with monkeypatch.context() as patch:
        patch.setattr("dataset.latent_cache.build.put_in_place", stop_after(0))
        with pytest.raises(TypeError):
            build(tmp_path)
    build(tmp_path, encode_images=stop_after(0))
    assert content(tmp_path / "cache") == content(tmp_path / "straight")


def test_verification_names_a_damaged_block(tmp_path):
    build(tmp_path)
    verify_cache(tmp_path / "cache")
    with (tmp_path / "cache" / "context.npy").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"!")
    with pytest.raises(ValueError, match=r"damaged: block 5 of context\.npy\. Delete"):
        verify_cache(tmp_path / "cache")
    (tmp_path / "cache" / "moments-0.npy").unlink()
    with pytest.raises(ValueError, match=r"block 0 of moments-0\.npy.* and 4 more"):
        verify_cache(tmp_path / "cache")


def test_a_cache_of_an_earlier_format_is_refused(tmp_path):
    (tmp_path / "cache").mkdir()
    old = {"format": 1, "identity": IDENTITY}
    (tmp_path / "cache" / "latent_cache.json").write_text(json.dumps(old))
    with pytest.raises(ValueError, match=r"format: cached with 1, now 2\nDelete"):
        LatentCache.open(tmp_path / "cache", IDENTITY, pairs_in(tmp_path))


def test_latents_of_several_shapes(tmp_path):
    """Wide, square and tall images, each cut to its own shape; a batch holds one of them."""
    sizes = [(16, 8), (8, 8), (8, 16)]
    rows = []
    for k in range(9):
        picture(tmp_path / "data" / f"{k}.png", seed=k, size=sizes[k % 3])
        rows.append({"file_name": f"{k}.png", "text": f"picture {k}"})
    write_metadata(tmp_path / "data", rows)
    buckets = Buckets([(4, 12), (8, 8), (12, 4)])
    pairs = pairs_in(tmp_path)
    together(tmp_path, 2, buckets=buckets)
    cache = LatentCache.open(tmp_path / "cache", IDENTITY, pairs)
    of, transforms = buckets.of(pairs), buckets.transforms(TRANSFORM)
    assert of.tolist() == [2, 1, 0] * 3
    for k in range(3):
        chosen = np.flatnonzero(of == k)
        latents, _ = cache.batch(torch.from_numpy(chosen), [torch.Generator()] * 3, 0.0)
        pixels = [torch.from_numpy(transforms[k](pairs[j].path)) for j in chosen.tolist()]
        expected = encode_images(torch.stack(pixels))[:, :1]
        assert latents.shape[2:] == ((3, 1), (2, 2), (1, 3))[k]
        assert torch.allclose(latents, expected, atol=2e-3)
    with pytest.raises(AssertionError, match="one shape"):
        cache.batch(torch.tensor([0, 1]), [torch.Generator()] * 2, 0.0)
