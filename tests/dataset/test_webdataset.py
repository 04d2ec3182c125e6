"""Shards give what the same files give in a folder; damage is named with shard and member."""

import io
import json
import shutil
import tarfile
from itertools import islice
from pathlib import Path

import pytest
import torch

from dataset.folder import Folder, read_folder
from dataset.images.transform import ImageTransform, UnusableImage
from dataset.latent_cache.build import build_cache
from dataset.latent_cache.cache import LatentCache
from dataset.loader import ImageBatches
from dataset.report import report
from dataset.split import split
from dataset.webdataset import braces, expand
from tests.helpers.images import picture, table

TRANSFORM = ImageTransform(8)
COUNT = 11


def sample(root: Path, k: int) -> dict[str, bytes]:
    """Members of sample k; some with several captions, some as .json."""
    image = picture(root / "images" / f"{k:03d}.png", seed=k)
    texts = [f"picture number {k}", *([f"another {k}"] if k % 3 == 0 else [])]
    if k % 2:
        return {"png": image.read_bytes(), "json": json.dumps({"caption": texts}).encode()}
    return {"txt": "\n".join(texts).encode(), "png": image.read_bytes()}


def write_shard(path: Path, members: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return path


def shards(root: Path, count: int = COUNT, of: int = 4) -> str:
    """Shards of `of` samples each."""
    for first in range(0, count, of):
        members = {
            f"{k:03d}.{kind}": content
            for k in range(first, min(first + of, count))
            for kind, content in sample(root, k).items()
        }
        write_shard(root / "shards" / f"{first // of:03d}.tar", members)
    return str(root / "shards" / f"{{000..{(count - 1) // of:03d}}}.tar")


def batches(data: str, **options) -> ImageBatches:
    options = {"batch_size": 4, "seed": 1, "in_memory": 0, **options}
    return ImageBatches(read_folder(data).pairs, TRANSFORM, **options)


def test_images_and_captions_come_back(tmp_path):
    folder = read_folder(shards(tmp_path))
    assert len(folder.pairs) == COUNT
    assert not folder.unusable
    for k, pair in enumerate(folder.pairs):
        expected = [f"picture number {k}", *([f"another {k}"] if k % 3 == 0 else [])]
        assert list(pair.captions) == expected
        direct = TRANSFORM(tmp_path / "images" / f"{k:03d}.png")
        assert (TRANSFORM(pair.path) == direct).all()
        assert str(pair.path) == f"{tmp_path}/shards/{k // 4:03d}.tar: {k:03d}.png"


def test_a_second_start_opens_no_image_and_a_changed_shard_only_its_own(tmp_path, monkeypatch):
    data, opened = shards(tmp_path), []
    first = list(read_folder(data).pairs)
    read = tarfile.open
    monkeypatch.setattr("dataset.index.inspect_image", lambda path: opened.append(path.name))
    monkeypatch.setattr("tarfile.open", lambda *args: pytest.fail("the shards are known"))
    assert list(read_folder(data).pairs) == first
    assert opened == []
    monkeypatch.undo()
    monkeypatch.setattr("tarfile.open", read)
    from dataset import index

    inspect = index.inspect_image

    def watched(path):
        opened.append(path.name)
        return inspect(path)

    monkeypatch.setattr(index, "inspect_image", watched)
    members = {f"{k:03d}.{kind}": c for k in (8, 9) for kind, c in sample(tmp_path, k).items()}
    write_shard(tmp_path / "shards" / "002.tar", members)
    assert list(read_folder(data).pairs) == first[:10]
    assert sorted(opened) == ["008.png", "009.png"]


def test_every_epoch_shows_every_image_once_whatever_ranks_and_workers(tmp_path):
    data = shards(tmp_path)
    alone = list(islice(batches(data).stream(), COUNT))
    captions = [int(text.split()[-1]) for _, texts in alone for text in texts]
    seen = [image.numpy().tobytes() for images, _ in alone for image in images]
    for epoch in range(4):
        assert len(set(seen[epoch * COUNT : (epoch + 1) * COUNT])) == COUNT
        assert len(set(captions[epoch * COUNT : (epoch + 1) * COUNT])) == COUNT
    shares = [list(islice(batches(data, rank=r, ranks=2).stream(), COUNT)) for r in (0, 1)]
    for step, (images, texts) in enumerate(alone):
        for rank in (0, 1):
            assert torch.equal(shares[rank][step][0], images[rank::2])
            assert shares[rank][step][1] == texts[rank::2]


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_a_resumed_stream_goes_on_where_it_was_with_workers(tmp_path):
    data = shards(tmp_path)
    unbroken = list(islice(batches(data).stream(), 9))
    resumed = list(islice(batches(data, workers=2).stream(first_step=5), 4))
    for (images, texts), (again, texts_again) in zip(unbroken[5:], resumed, strict=True):
        assert torch.equal(images, again)
        assert texts == texts_again


def test_they_are_split_and_cached_like_a_folder(tmp_path):
    train, held_out = split(read_folder(shards(tmp_path)), 0.2)
    assert held_out and len(train) + len(held_out) == COUNT

    def encode_images(pixels: torch.Tensor) -> torch.Tensor:
        mean = torch.nn.functional.avg_pool2d(pixels.float(), 4).mean(1, keepdim=True) / 64
        return torch.cat([mean, torch.full_like(mean, -18.0)], dim=1)

    def encode_texts(texts: list[str]) -> torch.Tensor:
        return torch.stack([torch.full((3, 2), float(len(text))) for text in texts])

    pairs, identity = train + held_out, {"made": "here"}
    build_cache(pairs, TRANSFORM, encode_images, encode_texts, tmp_path / "cache", identity)
    cache = LatentCache.open(tmp_path / "cache", identity, pairs)
    _, context = cache.batch(torch.arange(COUNT), [torch.Generator()] * COUNT, 0.0)
    lengths = [[float(len(text)) for text in pair.captions] for pair in pairs]
    for value, allowed in zip(context[:, 0, 0].tolist(), lengths, strict=True):
        assert value in allowed


def reasons(folder: Folder) -> dict[str, str]:
    return {str(entry.path).rpartition("/")[2]: entry.reason for entry in folder.unusable}


@pytest.mark.parametrize("where", ["inside a member", "between two members"])
def test_a_truncated_shard_is_named_with_its_member_and_its_good_part_can_be_used(tmp_path, where):
    data = shards(tmp_path)
    shard = tmp_path / "shards" / "001.tar"
    with tarfile.open(shard) as tar:
        entry = tar.getmembers()[5]  # 006.png
        end = tar.getmembers()[6].offset
    content = shard.read_bytes()
    shard.write_bytes(content[: entry.offset_data + 50 if where == "inside a member" else end])
    folder = read_folder(data, allow_missing_captions=True)
    with pytest.raises(ValueError, match=r"1 files .*\n.*001\.tar: is .*cut off .* 006\.png"):
        folder.require_all_usable()
    assert len(folder.pairs) == (9 if where == "inside a member" else 10)


def test_a_file_that_is_no_tar_file(tmp_path):
    data = shards(tmp_path)
    (tmp_path / "shards" / "001.tar").write_bytes(b"not a tar file" * 100)
    with pytest.raises(ValueError, match=r"001\.tar: is damaged or cut off at its beginning"):
        read_folder(data).require_all_usable()


def test_a_shard_that_is_cut_off_while_training(tmp_path):
    made = batches(shards(tmp_path))
    shard = tmp_path / "shards" / "002.tar"
    shard.write_bytes(shard.read_bytes()[:100])
    with pytest.raises(
        UnusableImage, match=r"002\.tar: 0\d\d\.png: .*tar file ends after 100 bytes"
    ):
        list(islice(made.stream(), 3))


def test_broken_images_and_captions_are_named(tmp_path):
    good = sample(tmp_path, 0)["png"]
    members = {
        "a.png": good[:-30],
        "a.txt": b"cut",
        "b.png": good,
        "b.json": b'{"title": "x"}',
        "c.png": good,
        "c.txt": "äpfel".encode("latin-1"),
        "d.png": good,
        "d.jpg": good,
        "d.txt": b"two images",
    }
    write_shard(tmp_path / "one.tar", members)
    found = reasons(read_folder(tmp_path / "one.tar", allow_missing_captions=True))
    assert found.keys() == {"one.tar: a.png", "one.tar: b.json", "one.tar: c.txt", "one.tar: d.jpg"}
    assert "cannot be read" in found["one.tar: a.png"]
    assert "it has title" in found["one.tar: b.json"]
    assert found["one.tar: c.txt"] == "is not UTF-8 text"
    with pytest.raises(ValueError, match=r"(?s)2 of 3 images .* have no caption.*one\.tar: b\.png"):
        read_folder(tmp_path / "one.tar")


def test_names_that_nobody_looks_for(tmp_path):
    write_shard(tmp_path / "one.tar", {"a.input.jpg": b"x", "a.outputs.txt": b"y"})
    with pytest.raises(ValueError, match=r"no images .*there are 1 \.input\.jpg, 1 \.outputs\.txt"):
        read_folder(tmp_path / "one.tar")


def test_folders_within_a_shard_tell_samples_apart(tmp_path):
    members = {}
    for k, place in enumerate(("x", "y")):
        members |= {f"./{place}/a.{kind}": c for kind, c in sample(tmp_path, k).items()}
    write_shard(tmp_path / "one.tar", members)
    pairs = read_folder(tmp_path / "one.tar").pairs
    assert [pair.captions[0] for pair in pairs] == ["picture number 0", "picture number 1"]


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("{root}/shards/{{000..004}}.tar", r"2 of the 5 shards .* not there.*\n.*003\.tar"),
        ("{root}/shards/*.tar.gz", "compressed.*gunzip"),
        ("https://example.org/{{000..099}}.tar", r"not on this machine.*fetch_shards\.py"),
        ("{root}/shards/x*.tar", r"1 of the 1 shards"),
    ],
)
def test_patterns_that_cannot_be_read(tmp_path, pattern, message):
    shards(tmp_path)
    for data in (pattern.format(root=tmp_path), Path(pattern.format(root=tmp_path))):
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            read_folder(data)


def test_patterns(tmp_path):
    assert list(braces("a{08..11}{x,y}")) == [f"a{k:02d}{c}" for k in range(8, 12) for c in "xy"]
    shards(tmp_path)
    shutil.move(tmp_path / "shards" / "002.tar", tmp_path / "002.tar")
    spread = f"{tmp_path}/{{shards/000,shards/001,002}}.tar"
    assert len(read_folder(spread).pairs) == COUNT
    assert len(read_folder(f"{tmp_path}/shards/*.tar").pairs) == 8
    assert len(read_folder(f"{tmp_path}/shards/00[1].tar").pairs) == 4


def test_who_is_held_out_follows_from_the_name_within_the_shards():
    names = {f"{k:03d}.tar/{j:04d}.png": ("x",) for k in range(10) for j in range(50)}
    whole = table(names)
    places = whole.columns["place"]
    part = table({name: ("y",) for name in list(names)[100:200]})
    assert (part.columns["place"] == places[100:200]).all()


def test_a_report_on_shards(tmp_path):
    text = report(read_folder(shards(tmp_path)))
    assert f"images          {COUNT}" in text
    assert "they come from  the .txt, .caption or .json members" in text
    assert "000.tar: 000.png: picture number 0 | another" in text


def test_shards_of_like_folders_are_found_from_the_folder_above(tmp_path):
    """Not from one made of all names that happen to be the same."""
    for part in ("a", "b"):
        (tmp_path / part / "tars").mkdir(parents=True)
        (tmp_path / part / "tars" / "0.tar").touch()
    root, names = expand(tmp_path / "{a,b}" / "tars" / "0.tar")
    assert root == tmp_path and names == ["a/tars/0.tar", "b/tars/0.tar"]
