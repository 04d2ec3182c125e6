"""Latents and contexts are read as they were encoded; a cache that does not fit is refused."""

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
from dataset.latent_cache import block_file
from dataset.latent_cache.cache import LatentCache
from dataset.table import PairList
from foundation.errors import MissingFileError, UserError
from tests.helpers.data.latent_cache import IDENTITY, TRANSFORM, encode_images, encode_texts
from tests.helpers.data.latent_cache import build as build_cache
from tests.helpers.images import picture, write_metadata

ALL = torch.arange(4)
CAPTIONS = ("apple", ["fig", "quince", "grapefruit"], "apple", "")


def four_pairs(root: Path, captions=CAPTIONS) -> PairList:
    """Make pairs with two equal files, two equal captions, three captions, and no caption."""
    data = root / "data"
    for k in (0, 1, 3):
        if not (data / f"{k}.png").exists():
            picture(data / f"{k}.png", seed=k)
    shutil.copyfile(data / "0.png", data / "2.png")
    rows = [{"file_name": f"{k}.png", "text": text} for k, text in enumerate(captions)]
    write_metadata(data, rows)
    return read_folder(data, allow_missing_captions=True).pairs


def build(root: Path, pairs: PairList | None = None, **changes) -> LatentCache:
    """Build root/cache, of the four pairs unless others are given."""
    return build_cache(root / "cache", four_pairs(root) if pairs is None else pairs, **changes)


def draw(cache: LatentCache, indices=ALL, dropout: float = 0.0, seed: int = 0):
    """Return latents and contexts, drawn with one generator per pair."""
    generators = [torch.Generator().manual_seed(10**6 * seed + k) for k in range(len(indices))]
    latents, captions = cache.batch(indices, generators, dropout)
    return latents, cache.contexts(captions)


def cache_folders(root: Path) -> list[str]:
    """Return the names of finished and unfinished caches."""
    return [path.name for path in root.iterdir() if path.name.startswith("cache")]


def test_latents_and_contexts_are_read_as_they_were_encoded(tmp_path):
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
    assert [moments.shape for moments in cache.moments] == [(3, 2, 2, 2)]
    assert cache.context.shape == (5, 3, 2)
    texts = ("", "apple", "fig", "quince", "grapefruit")
    assert seen == Counter({"images": 3, **dict.fromkeys(texts, 1)})


def test_latents_are_sampled_from_the_posterior(tmp_path):
    """The posterior has mean 3 and standard deviation 0.5; another generator gives other noise."""

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


def test_dropped_captions_get_the_context_of_the_empty_caption(tmp_path):
    def encode(texts: list[str]) -> torch.Tensor:
        return encode_texts(texts) + 7

    cache = build(tmp_path, encode_texts=encode)
    zeros = torch.zeros(4000, dtype=torch.long)
    assert torch.equal(cache.context[0].float(), torch.full((3, 2), 7.0))
    assert (draw(cache, zeros, dropout=1.0)[1] == 7).all()
    assert (draw(cache, zeros, dropout=0.0)[1] == 12).all()
    dropped = (draw(cache, zeros, dropout=0.1)[1][:, 0, 0] == 7).float().mean()
    assert dropped.item() == pytest.approx(0.1, abs=0.02)


def test_every_caption_of_an_image_is_used(tmp_path):
    _, context = draw(build(tmp_path), torch.ones(3000, dtype=torch.long))
    for length in (3, 6, 10):
        share = (context[:, 0, 0] == length).float().mean().item()
        assert share == pytest.approx(1 / 3, abs=0.04)


def test_another_autoencoder_is_refused_with_both_hashes(tmp_path):
    build(tmp_path)
    with pytest.raises(UserError, match=r"autoencoder: .*a{64}.*c{64}"):
        LatentCache.open(tmp_path / "cache", {**IDENTITY, "autoencoder": "c" * 64})


def test_every_difference_is_named(tmp_path):
    build(tmp_path)
    other = {**IDENTITY, "transform": ImageTransform(16).describe(), "dtype": "bfloat16"}
    with pytest.raises(UserError, match=r"(?s)dtype: .*size: .* 8.* 16"):
        LatentCache.open(tmp_path / "cache", other)


def test_other_data_is_refused(tmp_path):
    pairs = four_pairs(tmp_path)
    build(tmp_path, pairs)

    def check_refused(changed: PairList, message: str) -> None:
        with pytest.raises(UserError, match=message):
            LatentCache.open(tmp_path / "cache", IDENTITY, changed)

    check_refused(pairs[:3], "4 pairs.* 3 ")
    check_refused(four_pairs(tmp_path, [*CAPTIONS[:3], "new"]), r"3\.png")
    picture(tmp_path / "data" / "1.png", seed=9)
    check_refused(four_pairs(tmp_path), r"1\.png")


def test_a_cache_is_valid_after_its_data_folder_was_moved(tmp_path):
    build(tmp_path, four_pairs(tmp_path / "old"))
    for file in (tmp_path / "old" / "data").glob("*.png"):
        os.utime(file, ns=(1, 1))
    (tmp_path / "old").rename(tmp_path / "new")
    moved = read_folder(tmp_path / "new" / "data", allow_missing_captions=True).pairs
    assert moved[0].path.is_relative_to(tmp_path / "new")
    assert len(LatentCache.open(tmp_path / "cache", IDENTITY, moved)) == 4


def test_a_missing_cache_is_refused(tmp_path):
    with pytest.raises(MissingFileError):
        LatentCache.open(tmp_path, IDENTITY)


@pytest.mark.parametrize(
    ("value", "shown"), [(float("nan"), ""), (float("inf"), ""), (7e4, "7e\\+04")]
)
def test_numbers_beyond_float16_are_never_cached(tmp_path, value, shown):
    def encode(pixels: torch.Tensor) -> torch.Tensor:
        moments = encode_images(pixels)
        moments[-1, 0, 1, 1] = value
        return moments

    with pytest.raises(UserError, match=rf"1\.png .*{shown}"):
        build(tmp_path, encode_images=encode)
    shutil.rmtree(tmp_path / "cache.partial")
    with pytest.raises(UserError, match=f"'apple' .*{shown}"):
        build(tmp_path, encode_texts=lambda t: torch.tensor([0, value])[: len(t), None, None])
    assert cache_folders(tmp_path) == ["cache.partial"]


def test_random_crops_are_not_cached(tmp_path):
    with pytest.raises(UserError, match="center or letterbox"):
        build(tmp_path, transform=ImageTransform(8, crop="random"))


def test_a_new_cache_replaces_an_old_one_and_nothing_else(tmp_path):
    build(tmp_path)
    new = {**IDENTITY, "autoencoder": "c" * 64}
    build(tmp_path, identity=new)
    assert len(LatentCache.open(tmp_path / "cache", new)) == 4
    (tmp_path / "photos").mkdir()
    picture(tmp_path / "photos" / "mine.png")
    with pytest.raises(UserError, match="photos"):
        build_cache(tmp_path / "photos", four_pairs(tmp_path))
    assert (tmp_path / "photos" / "mine.png").exists()


def test_a_failed_build_does_not_change_the_old_cache(tmp_path):
    before = draw(build(tmp_path))
    with pytest.raises(ZeroDivisionError):
        build(tmp_path, encode_images=lambda pixels: 1 / 0)
    after = draw(LatentCache.open(tmp_path / "cache", IDENTITY))
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_a_disk_with_too_little_space_is_noticed_before_writing(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10))
    with pytest.raises(OSError, match=r" GB .*0\.00 GB"):
        build(tmp_path)


def test_a_disk_that_becomes_full_keeps_the_finished_blocks(tmp_path):
    """A limit on file sizes imitates it: the write in the middle of a file fails."""
    resource = pytest.importorskip("resource")
    pairs = four_pairs(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, hard))
    try:
        with pytest.raises(OSError, match="cache") as raised:
            build(tmp_path, pairs, encode_images=lambda x: torch.zeros(len(x), 2, 128, 128))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert raised.value.errno == errno.EFBIG
    with pytest.raises(MissingFileError):
        LatentCache.open(tmp_path / "cache", IDENTITY)
    wide = build(tmp_path, pairs, encode_images=lambda x: torch.zeros(len(x), 2, 128, 128))
    assert len(wide) == 4
    assert cache_folders(tmp_path) == ["cache"]


def test_an_array_larger_than_memory_can_be_mapped(tmp_path):
    """A sparse file holds four terabytes of zeros."""
    shape = (2**31, 1024)
    with (tmp_path / "large.npy").open("wb") as file:
        file.write(block_file.npy_header(shape))
        try:
            file.truncate(block_file.PAGE + 2 * 2**41)
        except OSError as error:
            pytest.skip(f"no sparse file of this size here: {error}")
    array = block_file.map_array(tmp_path / "large.npy", axes=2)
    assert array.shape == shape
    assert array.index_select(0, torch.tensor([0, 2**31 - 1])).abs().sum() == 0
