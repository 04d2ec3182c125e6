"""Shards give the same pairs as a folder of the same files; damage is named by shard and member."""

import shutil
import tarfile
from itertools import islice
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dataset import index, source
from dataset.folder import Folder, read_folder
from dataset.images.transform import ImageTransform
from dataset.latent_cache.cache import LatentCache
from dataset.loader import ImageBatches
from dataset.report import report
from dataset.source import UnusableImage
from dataset.table import split
from dataset.webdataset import expand_braces, expand_shards
from foundation.errors import UserError
from tests.helpers.data.latent_cache import IDENTITY, build
from tests.helpers.shards import (
    SAMPLES,
    make_shards,
    sample_captions,
    sample_members,
    write_shard,
)

TRANSFORM = ImageTransform(8)
WORD = st.text("abc019", max_size=3)


def batches(data: str, **options) -> ImageBatches:
    options = {"batch_size": 4, "seed": 1, "in_memory": 0, **options}
    return ImageBatches(read_folder(data).pairs, TRANSFORM, **options)


def test_images_and_captions_are_read(tmp_path):
    folder = read_folder(make_shards(tmp_path))
    assert len(folder.pairs) == SAMPLES
    assert not folder.unusable
    for k, pair in enumerate(folder.pairs):
        assert list(pair.captions) == sample_captions(k)
        pixels = TRANSFORM(tmp_path / "images" / f"{k:03d}.png")
        assert (TRANSFORM(pair.path) == pixels).all()
        assert str(pair.path) == f"{tmp_path}/shards/{k // 4:03d}.tar: {k:03d}.png"


def test_only_images_of_changed_shards_are_decoded_again(tmp_path, monkeypatch):
    data, opened = make_shards(tmp_path), []
    first = list(read_folder(data).pairs)
    read = tarfile.open
    monkeypatch.setattr("dataset.index.inspect_image", lambda path: opened.append(path.name))
    monkeypatch.setattr("tarfile.open", lambda *args: pytest.fail("the index lists the shards"))
    assert list(read_folder(data).pairs) == first
    assert opened == []
    monkeypatch.undo()
    monkeypatch.setattr("tarfile.open", read)
    inspect = index.inspect_image

    def recording(path):
        opened.append(path.name)
        return inspect(path)

    monkeypatch.setattr(index, "inspect_image", recording)
    members = {
        f"{k:03d}.{kind}": c for k in (8, 9) for kind, c in sample_members(tmp_path, k).items()
    }
    write_shard(tmp_path / "shards" / "002.tar", members)
    assert list(read_folder(data).pairs) == first[:10]
    assert sorted(opened) == ["008.png", "009.png"]


def test_every_epoch_has_every_image_once_with_any_number_of_ranks(tmp_path):
    data = make_shards(tmp_path)
    single = list(islice(batches(data).stream(), SAMPLES))
    captions = [int(text.split()[-1]) for _, texts in single for text in texts]
    seen = [image.numpy().tobytes() for images, _ in single for image in images]
    for epoch in range(4):
        assert len(set(seen[epoch * SAMPLES : (epoch + 1) * SAMPLES])) == SAMPLES
        assert len(set(captions[epoch * SAMPLES : (epoch + 1) * SAMPLES])) == SAMPLES
    shares = [list(islice(batches(data, rank=r, world_size=2).stream(), SAMPLES)) for r in (0, 1)]
    for step, (images, texts) in enumerate(single):
        for rank in (0, 1):
            assert torch.equal(shares[rank][step][0], images[rank::2])
            assert shares[rank][step][1] == texts[rank::2]


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_a_resumed_stream_with_workers_continues(tmp_path):
    data = make_shards(tmp_path)
    unbroken = list(islice(batches(data).stream(), 9))
    resumed = list(islice(batches(data, workers=2).stream(first_step=5), 4))
    for (images, texts), (again, texts_again) in zip(unbroken[5:], resumed, strict=True):
        assert torch.equal(images, again)
        assert texts == texts_again


def test_shards_are_split_and_cached_like_a_folder(tmp_path):
    train, held_out = split(read_folder(make_shards(tmp_path)).pairs, 0.2)
    assert held_out and len(train) + len(held_out) == SAMPLES
    pairs = train + held_out
    build(tmp_path / "cache", pairs)
    cache = LatentCache.open(tmp_path / "cache", IDENTITY, pairs)
    _, captions = cache.batch(torch.arange(SAMPLES), [torch.Generator()] * SAMPLES, 0.0)
    context = cache.contexts(captions)
    lengths = [[float(len(text)) for text in pair.captions] for pair in pairs]
    for value, allowed in zip(context[:, 0, 0].tolist(), lengths, strict=True):
        assert value in allowed


def reasons(folder: Folder) -> dict[str, str]:
    return {str(entry.path).rpartition("/")[2]: entry.reason for entry in folder.unusable}


@pytest.mark.parametrize("inside_member", [True, False])
def test_a_truncated_shard_is_named_and_its_intact_part_is_used(tmp_path, inside_member):
    data = make_shards(tmp_path)
    shard = tmp_path / "shards" / "001.tar"
    with tarfile.open(shard) as tar:
        entry = tar.getmembers()[5]  # 006.png
        end = tar.getmembers()[6].offset
    content = shard.read_bytes()
    shard.write_bytes(content[: entry.offset_data + 50 if inside_member else end])
    folder = read_folder(data, allow_missing_captions=True)
    with pytest.raises(UserError, match=r"001\.tar: .* 006\.(png|txt)"):
        folder.require_all_usable()
    assert len(folder.pairs) == (9 if inside_member else 10)


def test_a_file_that_is_not_a_tar_file_is_named(tmp_path):
    data = make_shards(tmp_path)
    (tmp_path / "shards" / "001.tar").write_bytes(b"not a tar file" * 100)
    with pytest.raises(UserError, match=r"001\.tar"):
        read_folder(data).require_all_usable()


def test_a_shard_that_is_truncated_during_training_is_named(tmp_path):
    made = batches(make_shards(tmp_path))
    shard = tmp_path / "shards" / "002.tar"
    shard.write_bytes(shard.read_bytes()[:100])
    with pytest.raises(UnusableImage, match=r"002\.tar: 0\d\d\.png: .* 100 bytes"):
        list(islice(made.stream(), 3))


def test_damaged_images_and_captions_are_named(tmp_path):
    intact = sample_members(tmp_path, 0)["png"]
    members = {
        "a.png": intact[:-30],
        "a.txt": b"cut",
        "b.png": intact,
        "b.json": b'{"title": "x"}',
        "c.png": intact,
        "c.txt": "äpfel".encode("latin-1"),
        "d.png": intact,
        "d.jpg": intact,
        "d.txt": b"two images",
    }
    write_shard(tmp_path / "one.tar", members)
    named = reasons(read_folder(tmp_path / "one.tar", allow_missing_captions=True))
    assert named.keys() == {"one.tar: a.png", "one.tar: b.json", "one.tar: c.txt", "one.tar: d.jpg"}
    assert "title" in named["one.tar: b.json"]
    assert "UTF-8" in named["one.tar: c.txt"]
    with pytest.raises(UserError, match=r"(?s)2 of 3 .*one\.tar: b\.png"):
        read_folder(tmp_path / "one.tar")


def test_members_without_an_image_extension_are_counted(tmp_path):
    write_shard(tmp_path / "one.tar", {"a.input.jpg": b"x", "a.outputs.txt": b"y"})
    with pytest.raises(UserError, match=r"1 \.input\.jpg, 1 \.outputs\.txt"):
        read_folder(tmp_path / "one.tar")


def test_samples_in_different_folders_of_a_shard_are_distinct(tmp_path):
    members = {}
    for k, folder in enumerate(("x", "y")):
        members |= {f"./{folder}/a.{kind}": c for kind, c in sample_members(tmp_path, k).items()}
    write_shard(tmp_path / "one.tar", members)
    pairs = read_folder(tmp_path / "one.tar").pairs
    assert [pair.captions[0] for pair in pairs] == ["picture number 0", "picture number 1"]


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("{root}/shards/{{000..004}}.tar", r"2 of the 5 .*\n.*003\.tar"),
        ("{root}/shards/*.tar.gz", "gunzip"),
        ("{root}/shards/x*.tar", r"1 of the 1 "),
    ],
)
def test_patterns_that_name_no_readable_files_are_refused(tmp_path, pattern, message):
    make_shards(tmp_path)
    for data in (pattern.format(root=tmp_path), Path(pattern.format(root=tmp_path))):
        with pytest.raises(UserError, match=message):
            read_folder(data)


@given(st.integers(0, 200), st.integers(0, 20), st.integers(1, 5), st.lists(WORD, min_size=2))
def test_braces_are_expanded(first, count, width, words):
    pattern = f"a{{{first:0{width}d}..{first + count}}}b{{{','.join(words)}}}.tar"
    numbers = range(first, first + count + 1)
    width = max(width, len(str(first)))
    expected = [f"a{number:0{width}d}b{word}.tar" for number in numbers for word in words]
    assert list(expand_braces(pattern)) == expected


@given(st.text(st.characters(exclude_characters="{}")))
def test_text_without_braces_is_not_changed(text):
    assert list(expand_braces(text)) == [text]


def test_braces_and_wildcards_name_the_same_shards(tmp_path):
    make_shards(tmp_path)
    shutil.move(tmp_path / "shards" / "002.tar", tmp_path / "002.tar")
    spread = f"{tmp_path}/{{shards/000,shards/001,002}}.tar"
    assert len(read_folder(spread).pairs) == SAMPLES
    assert len(read_folder(f"{tmp_path}/shards/*.tar").pairs) == 8
    assert len(read_folder(f"{tmp_path}/shards/00[1].tar").pairs) == 4


def test_a_report_on_shards(tmp_path):
    text = report(read_folder(make_shards(tmp_path)))
    assert f"images           {SAMPLES}" in text
    assert "000.tar: 000.png: picture number 0 | another" in text


def test_the_root_of_shards_is_their_common_folder(tmp_path):
    """A folder name that occurs in all paths does not count, only their common beginning."""
    for folder in ("a", "b"):
        (tmp_path / folder / "tars").mkdir(parents=True)
        (tmp_path / folder / "tars" / "0.tar").touch()
    root, names = expand_shards(tmp_path / "{a,b}" / "tars" / "0.tar")
    assert root == tmp_path and names == ["a/tars/0.tar", "b/tars/0.tar"]


def test_a_large_member_is_a_binary_file(tmp_path, monkeypatch):
    monkeypatch.setattr(source, "IN_MEMORY", 4)
    file = tmp_path / "a.tar"
    file.write_bytes(b"0123456789")
    member = source.Member(file, "a.png", offset=2, size=6)
    with member.open() as stream:
        assert (stream.name, stream.mode, stream.read()) == (str(member), "rb", b"234567")
