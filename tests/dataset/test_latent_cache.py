"""Latents and texts come back as they were encoded; anything that does not fit is refused."""

import errno
import os
import shutil
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dataset.folder import read_folder
from dataset.images.transform import ImageTransform
from dataset.latent_cache import block_file as blocks
from dataset.latent_cache.build import build_cache
from dataset.latent_cache.cache import LatentCache
from dataset.table import Pairs
from tests.helpers.images import picture, write_metadata

TRANSFORM = ImageTransform(8)
IDENTITY = {
    "transform": TRANSFORM.describe(),
    "autoencoder": "a" * 64,
    "text_encoder": "b" * 64,
    "dtype": "float32",
}
ALL = torch.arange(4)


def encode_images(pixels: torch.Tensor) -> torch.Tensor:
    """One latent channel of 2x2; log-variance so low that sampling adds 1e-4."""
    mean = torch.nn.functional.avg_pool2d(pixels.float(), 4).mean(1, keepdim=True) / 64
    return torch.cat([mean, torch.full_like(mean, -18.0)], dim=1)


def encode_texts(texts: list[str]) -> torch.Tensor:
    """Three tokens of width 2, which tell texts apart."""
    return torch.stack([torch.full((3, 2), float(len(text))) for text in texts])


CAPTIONS = ("apple", ["fig", "quince", "grapefruit"], "apple", "")


def four_pairs(root: Path, captions=CAPTIONS) -> Pairs:
    """Two files of equal bytes, two equal captions, one with three captions, one with none."""
    data = root / "data"
    for k in (0, 1, 3):
        if not (data / f"{k}.png").exists():
            picture(data / f"{k}.png", seed=k)
    shutil.copyfile(data / "0.png", data / "2.png")
    rows = [{"file_name": f"{k}.png", "text": text} for k, text in enumerate(captions)]
    write_metadata(data, rows)
    return read_folder(data, allow_missing_captions=True).pairs


def build(root: Path, pairs: Pairs | None = None, **changes) -> LatentCache:
    arguments = {
        "pairs": pairs if pairs is not None else four_pairs(root),
        "transform": TRANSFORM,
        "encode_images": encode_images,
        "encode_texts": encode_texts,
        "folder": root / "cache",
        "identity": IDENTITY,
        "batch_size": 2,
    }
    return build_cache(**arguments | changes)


def draw(cache: LatentCache, indices=ALL, dropout: float = 0.0, seed: int = 0):
    each = [torch.Generator().manual_seed(10**6 * seed + k) for k in range(len(indices))]
    return cache.batch(indices, each, dropout)


def left_over(root: Path) -> list[str]:
    return [path.name for path in root.iterdir() if path.name.startswith("cache")]


def test_latents_and_contexts_come_back(tmp_path):
    pairs = four_pairs(tmp_path)
    cache = build(tmp_path, pairs)
    indices = torch.tensor([3, 0, 0, 2, 1])
    latents, context = draw(cache, indices)
    pixels = torch.stack([torch.from_numpy(TRANSFORM(pairs[k].path)) for k in indices.tolist()])
    expected = encode_images(pixels)[:, :1]
    assert latents.dtype == context.dtype == torch.float32
    assert torch.allclose(latents, expected, atol=2e-3)
    assert context[:4, 0, 0].tolist() == [0, 5, 5, 5]
    assert context[4, 0, 0] in (3, 6, 10)


def test_opening_again_gives_the_same(tmp_path):
    built = build(tmp_path)
    opened = LatentCache.open(tmp_path / "cache", IDENTITY, four_pairs(tmp_path))
    assert len(opened) == 4
    for ours, theirs in zip(draw(opened), draw(built), strict=True):
        assert torch.equal(ours, theirs)


def test_equal_images_and_captions_are_stored_once(tmp_path):
    seen = Counter()

    def count_images(pixels: torch.Tensor) -> torch.Tensor:
        seen["images"] += len(pixels)
        return encode_images(pixels)

    def count_texts(texts: list[str]) -> torch.Tensor:
        seen.update(texts)
        return encode_texts(texts)

    cache = build(tmp_path, encode_images=count_images, encode_texts=count_texts)
    assert [part.shape for part in cache.moments] == [(3, 2, 2, 2)]
    assert cache.context.shape == (5, 3, 2)
    texts = ("", "apple", "fig", "quince", "grapefruit")
    assert seen == Counter({"images": 3, **dict.fromkeys(texts, 1)})


def test_latents_are_sampled_from_the_posterior(tmp_path):
    """Mean 3, standard deviation 0.5, new noise at every reading."""

    def encode(pixels: torch.Tensor) -> torch.Tensor:
        mean = torch.full((len(pixels), 4, 2, 2), 3.0)
        return torch.cat([mean, torch.full_like(mean, 2 * np.log(0.5))], dim=1)

    cache = build(tmp_path, encode_images=encode)
    latents, _ = draw(cache, torch.zeros(2000, dtype=torch.long))
    assert latents.shape == (2000, 4, 2, 2)
    assert latents.mean().item() == pytest.approx(3, abs=0.02)
    assert latents.std().item() == pytest.approx(0.5, abs=0.02)
    again, _ = draw(cache, torch.zeros(2000, dtype=torch.long))
    other, _ = draw(cache, torch.zeros(2000, dtype=torch.long), seed=1)
    assert torch.equal(latents, again)
    assert not torch.equal(latents, other)


def test_dropped_captions_get_the_embedding_of_the_empty_caption(tmp_path):
    def encode(texts: list[str]) -> torch.Tensor:
        return encode_texts(texts) + 7

    cache = build(tmp_path, encode_texts=encode)
    zeros = torch.zeros(4000, dtype=torch.long)
    assert torch.equal(cache.context[0].float(), torch.full((3, 2), 7.0))
    assert (draw(cache, zeros, dropout=1.0)[1] == 7).all()
    assert (draw(cache, zeros, dropout=0.0)[1] == 12).all()
    dropped = (draw(cache, zeros, dropout=0.1)[1][:, 0, 0] == 7).float().mean()
    assert dropped.item() == pytest.approx(0.1, abs=0.02)


def test_of_several_captions_each_is_used(tmp_path):
    _, context = draw(build(tmp_path), torch.ones(3000, dtype=torch.long))
    for length in (3, 6, 10):
        share = (context[:, 0, 0] == length).float().mean().item()
        assert share == pytest.approx(1 / 3, abs=0.04)


def test_another_autoencoder_is_refused_with_both_hashes(tmp_path):
    build(tmp_path)
    with pytest.raises(ValueError, match=r"(?s)autoencoder: cached with a{64}, now c{64}.*Delete"):
        LatentCache.open(tmp_path / "cache", {**IDENTITY, "autoencoder": "c" * 64})


def test_every_difference_is_named(tmp_path):
    build(tmp_path)
    other = {**IDENTITY, "transform": ImageTransform(16).describe(), "dtype": "bfloat16"}
    with pytest.raises(ValueError, match=r"(?s)dtype: .*size: cached with 8, now 16"):
        LatentCache.open(tmp_path / "cache", other)


def test_other_data_is_refused(tmp_path):
    pairs = four_pairs(tmp_path)
    build(tmp_path, pairs)

    def refused(changed: Pairs, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            LatentCache.open(tmp_path / "cache", IDENTITY, changed)

    refused(pairs[:3], "4 pairs then, 3 now")
    refused(four_pairs(tmp_path, [*CAPTIONS[:3], "new"]), r"3\.png has other captions")
    picture(tmp_path / "data" / "1.png", seed=9)
    refused(four_pairs(tmp_path), r"1\.png is another image now")


def test_a_moved_data_folder_is_still_the_same(tmp_path):
    build(tmp_path, four_pairs(tmp_path / "old"))
    for file in (tmp_path / "old" / "data").glob("*.png"):
        os.utime(file, ns=(1, 1))
    (tmp_path / "old").rename(tmp_path / "new")
    moved = read_folder(tmp_path / "new" / "data", allow_missing_captions=True).pairs
    assert moved[0].path.is_relative_to(tmp_path / "new")
    assert len(LatentCache.open(tmp_path / "cache", IDENTITY, moved)) == 4


def test_a_missing_cache(tmp_path):
    with pytest.raises(FileNotFoundError, match="no latent cache"):
        LatentCache.open(tmp_path, IDENTITY)


@pytest.mark.parametrize(
    ("value", "message"),
    [(float("nan"), "not finite"), (float("inf"), "not finite"), (7e4, "as large as 7e")],
)
def test_what_float16_cannot_hold_is_never_cached(tmp_path, value, message):
    def encode(pixels: torch.Tensor) -> torch.Tensor:
        moments = encode_images(pixels)
        moments[-1, 0, 1, 1] = value
        return moments

    with pytest.raises(ValueError, match=rf"1\.png is {message}"):
        build(tmp_path, encode_images=encode)
    shutil.rmtree(tmp_path / "cache.partial")
    with pytest.raises(ValueError, match=f"the caption 'apple' is {message}"):
        build(tmp_path, encode_texts=lambda t: torch.tensor([0, value])[: len(t), None, None])
    assert left_over(tmp_path) == ["cache.partial"]


def test_a_random_crop_is_not_frozen_into_a_cache(tmp_path):
    with pytest.raises(ValueError, match="read once and kept"):
        build(tmp_path, transform=ImageTransform(8, crop="random"))


def test_a_new_cache_takes_the_place_of_an_old_one_and_of_nothing_else(tmp_path):
    build(tmp_path)
    new = {**IDENTITY, "autoencoder": "c" * 64}
    build(tmp_path, identity=new)
    assert len(LatentCache.open(tmp_path / "cache", new)) == 4
    (tmp_path / "photos").mkdir()
    picture(tmp_path / "photos" / "mine.png")
    with pytest.raises(ValueError, match=r"not empty.*contains something else"):
        build(tmp_path, folder=tmp_path / "photos")
    assert (tmp_path / "photos" / "mine.png").exists()


def test_a_failed_build_leaves_the_old_cache_alone(tmp_path):
    before = draw(build(tmp_path))
    with pytest.raises(ZeroDivisionError):
        build(tmp_path, encode_images=lambda pixels: 1 / 0)
    after = draw(LatentCache.open(tmp_path / "cache", IDENTITY))
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_too_little_space_is_noticed_before_writing(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10))
    with pytest.raises(OSError, match=r"the disk is full.*GB needed.*Free some space"):
        build(tmp_path)


def test_a_disk_that_fills_up_meanwhile(tmp_path):
    """A limit on file sizes stands in for it: the write in the middle of a file fails."""
    resource = pytest.importorskip("resource")
    pairs = four_pairs(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, hard))
    try:
        with pytest.raises(OSError, match="the disk is full, or a limit is reached") as raised:
            build(tmp_path, pairs, encode_images=lambda x: torch.zeros(len(x), 2, 128, 128))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert raised.value.errno == errno.EFBIG
    with pytest.raises(FileNotFoundError):
        LatentCache.open(tmp_path / "cache", IDENTITY)
    wide = build(tmp_path, pairs, encode_images=lambda x: torch.zeros(len(x), 2, 128, 128))
    assert len(wide) == 4
    assert left_over(tmp_path) == ["cache"]


def test_an_array_larger_than_memory_can_be_mapped(tmp_path):
    """Four terabytes of nothing, in a sparse file."""
    shape = (2**31, 1024)
    with (tmp_path / "large.npy").open("wb") as file:
        file.write(blocks.npy_header(shape))
        try:
            file.truncate(blocks.PAGE + 2 * 2**41)
        except OSError as error:
            pytest.skip(f"no sparse file of this size here: {error}")
    array = blocks.map_array(tmp_path / "large.npy")
    assert array.shape == shape
    assert array.index_select(0, torch.tensor([0, 2**31 - 1])).abs().sum() == 0
