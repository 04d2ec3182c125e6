"""Remote shards give the same pairs as local ones; faults of the network are mended or named."""

import io
import os
import re
import shutil
import time
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dataset.ahead import SHARE, Ahead
from dataset.folder import read_folder
from dataset.images.transform import ImageTransform
from dataset.loader import ImageBatches
from dataset.source import Member
from dataset.stores import backends, blocks
from dataset.stores.backends import StoreError, Stores, file_info, without_secrets
from dataset.stores.remote import RemoteFile, parse_url
from dataset.tabular import group_cache
from dataset.tabular.arrow_files import open_columnar
from foundation.errors import MissingFileError, UserError
from tests.helpers.data.servers import BUCKET, CREDENTIALS, WebFolder, serve_ranges, serve_s3
from tests.helpers.shards import SAMPLES, make_shards

pytest.importorskip("aiohttp")
PATTERN = "{000..002}.tar"


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """Give each test a cache and an index of its own, and short pauses."""
    monkeypatch.setenv("LATENTSMITH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("LATENTSMITH_INDEX", str(tmp_path / "index"))
    monkeypatch.setattr(backends, "FIRST_WAIT", 0.01)
    forget()
    yield
    forget()


def forget() -> None:
    """Begin anew, as another process would."""
    backends.STORES = Stores()
    blocks.CACHE = None
    group_cache.forget()


@pytest.fixture
def web(tmp_path):
    make_shards(tmp_path)
    with serve_ranges(tmp_path / "shards") as folder:
        yield folder


def content_of(data: str) -> list:
    return [(pair.captions, pair.path.read_bytes()) for pair in read_folder(data).pairs]


def big_file(web: WebFolder, size: int = 3 * blocks.BLOCK + 99) -> tuple[RemoteFile, bytes]:
    content = os.urandom(size)
    (web.folder / "big.tar").write_bytes(content)
    return RemoteFile(f"{web.address}/big.tar"), content


def test_remote_shards_are_those_on_the_disk(tmp_path, web):
    local = content_of(f"{tmp_path}/shards/{PATTERN}")
    folder = read_folder(f"{web.address}/{PATTERN}")
    assert [(pair.captions, pair.path.read_bytes()) for pair in folder.pairs] == local
    assert len(local) == SAMPLES
    assert str(folder.pairs[0].path) == f"{web.address}/000.tar: 000.png"
    # As the command lines give it, which take a path.
    assert content_of(Path(f"{web.address}/{PATTERN}")) == local
    # Another process finds index and blocks: it asks for sizes alone.
    forget()
    web.requests.clear()
    assert content_of(f"{web.address}/{PATTERN}") == local
    assert all("bytes=0-0" in request for request in web.requests)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.filterwarnings("ignore:This process")
def test_a_remote_file_is_a_binary_file(web):
    """Type checkers ask the first file they see for all attributes, and believe it of the rest."""
    file, content = big_file(web)
    with file.open() as stream:
        assert (stream.name, stream.mode) == (str(file), "rb")
        assert stream.read() == content


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_a_remote_stream_continues_with_workers(tmp_path, web):
    def batches(data: str, workers: int) -> ImageBatches:
        pairs = read_folder(data).pairs
        return ImageBatches(pairs, ImageTransform(8), 4, seed=1, workers=workers, in_memory=0)

    straight = list(islice(batches(f"{tmp_path}/shards/{PATTERN}", 0).stream(), 9))
    resumed = list(islice(batches(f"{web.address}/{PATTERN}", 2).stream(first_step=5), 4))
    for (images, texts), (again, texts_again) in zip(straight[5:], resumed, strict=True):
        assert torch.equal(images, again)
        assert texts == texts_again


@pytest.mark.parametrize("fault", [503, 429, 500, "cut", "slow", "drop"])
def test_a_fault_that_passes_is_mended(web, fault):
    file, content = big_file(web)
    file.info()
    web.faults += [fault, fault]
    assert file.read_bytes() == content


@pytest.mark.parametrize("fault", [503, "cut", "drop"])
def test_a_fault_that_stays_is_named(web, fault):
    file, _ = big_file(web)
    file.info()
    web.faults += [fault] * 100
    with pytest.raises(StoreError, match=r"big\.tar.*tries: 6"):
        file.read_bytes()
    web.faults.clear()


@pytest.mark.parametrize("status", [401, 403])
def test_a_refusal_is_not_repeated(web, status):
    file, _ = big_file(web)
    web.faults += [status] * 3
    with pytest.raises(StoreError, match=rf"big\.tar.*{status}.*tries: 1\b"):
        file.info()
    web.faults.clear()


def test_a_server_without_ranges_is_refused(web):
    web.has_ranges = False
    with pytest.raises(StoreError, match=r"000\.tar.*200"):
        read_folder(f"{web.address}/000.tar")


def test_a_file_that_changes_under_way_is_refused(web):
    file, content = big_file(web)
    assert file.read_range(0, 10) == content[:10]
    (web.folder / "big.tar").write_bytes(content[::-1])
    with pytest.raises(StoreError, match=r"big\.tar has changed"):
        file.read_range(2 * blocks.BLOCK, 2 * blocks.BLOCK + 9)
    pinned = file.pinned(file_info(file.url).version)
    forget()
    with pytest.raises(StoreError, match=r"big\.tar has changed"):
        pinned.read_range(0, 10)
    (web.folder / "big.tar").unlink()
    forget()
    with pytest.raises(StoreError, match=r"big\.tar"):
        pinned.read_range(0, 10)


def test_a_failure_of_the_network_does_not_enter_the_index(web, monkeypatch):
    monkeypatch.setattr(backends, "TRIES", 1)
    read = backends.fetch

    def failing(url, *rest):
        if "001" in url:
            raise StoreError(f"{url} cannot be read")
        return read(url, *rest)

    monkeypatch.setattr(backends, "fetch", failing)
    with pytest.raises(StoreError, match=r"001\.tar"):
        read_folder(f"{web.address}/{PATTERN}")
    monkeypatch.setattr(backends, "fetch", read)
    assert len(read_folder(f"{web.address}/{PATTERN}").pairs) == SAMPLES


def test_missing_files_are_named(web):
    with pytest.raises(MissingFileError, match=r"2 of the 5 .*003\.tar"):
        read_folder(f"{web.address}/{{000..004}}.tar")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("https://user:secret-word@example.org/a.tar", r"example\.org/a\.tar"),
        ("https://user:pass@secret-word@example.org/a.tar", r"example\.org/a\.tar"),
        ("https://example.org/a.tar?sig=secret-word", r"example\.org/a\.tar"),
        ("ftp://example.org/a.tar", r"ftp://.*s3://"),
        ("https://example.org/*.tar", r"\*\.tar.*000\.\.099"),
        ("s3://bucket/a.tar.gz", "gunzip"),
    ],
)
def test_urls_that_cannot_be_read_are_refused(url, message):
    for data in (url, Path(url)):
        with pytest.raises(UserError, match=message) as caught:
            read_folder(data)
        assert "secret-word" not in str(caught.value)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(backends.PACKAGES, "gs", "no_such_package")
    with pytest.raises(UserError, match=r"pip install fsspec no_such_package"):
        read_folder("gs://bucket/a.tar")


def test_messages_lose_their_secrets(monkeypatch):
    monkeypatch.setenv("AZURE_STORAGE_KEY", "secret-word")
    text = without_secrets("at https://user:other@host/a.tar?sig=third: key secret-word is wrong")
    assert "host/a.tar" in text
    assert not re.search("secret-word|other|third", text)


# The cache


def test_a_range_is_fetched_once(web):
    file, content = big_file(web)
    for start, end in ((5, 9), (blocks.BLOCK - 3, blocks.BLOCK + 3), (0, 10**9), (7, 7)):
        assert file.read_range(start, end) == content[start:end]
    forget()
    web.requests.clear()
    assert file.read_bytes() == content
    with file.open("rb") as stream:
        stream.seek(-50, os.SEEK_END)
        assert stream.read() == content[-50:]
    assert all("bytes=0-0" in request for request in web.requests)


def test_a_damaged_block_is_fetched_again(web):
    file, content = big_file(web)
    file.read_bytes()
    for path in blocks.cache_folder().rglob("*"):
        if path.is_file():
            path.write_bytes(bytes(path.stat().st_size))
    forget()
    assert file.read_bytes() == content


def test_the_cache_is_bounded_and_the_oldest_goes(web, monkeypatch):
    monkeypatch.setenv("LATENTSMITH_CACHE_GB", "0.05")
    file, content = big_file(web, 2 * 10**6)
    file.read_bytes()
    own = blocks.cache()
    own.limit = 10**6
    old = own.path(file.url, file.info(), 0)
    os.utime(old, (1, 1))
    own.remove_oldest()
    kept = [path for path in own.folder.rglob("*") if path.is_file()]
    assert 0 < sum(path.stat().st_size for path in kept) <= 10**6
    assert old not in kept
    own.recent.clear()
    assert file.read_bytes() == content


@pytest.mark.parametrize("size", ["x", "0", "-1", "nan", "1e99"])
def test_a_size_of_the_cache_that_is_none_is_refused(web, monkeypatch, size):
    monkeypatch.setenv("LATENTSMITH_CACHE_GB", size)
    file, _ = big_file(web)
    with pytest.raises(UserError, match="LATENTSMITH_CACHE_GB"):
        file.read_bytes()


def test_a_full_disk_only_costs_time(web, monkeypatch):
    file, content = big_file(web)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    assert file.read_bytes() == content


def test_coming_steps_are_fetched_in_advance(web):
    pairs = read_folder(f"{web.address}/{PATTERN}").pairs
    shutil.rmtree(blocks.cache_folder())
    forget()
    batches = ImageBatches(pairs, ImageTransform(8), 4, seed=1, in_memory=0)
    stream = batches.stream()
    next(stream)
    wait_for_blocks(3)
    web.faults += [404] * 50  # nothing more is needed
    list(islice(stream, 5))
    stream.close()
    assert web.faults.count(404) == 50


def test_parquet_in_a_store_is_that_on_the_disk(tmp_path, web):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    images = [(tmp_path / "images" / f"{k:03d}.png").read_bytes() for k in range(SAMPLES)]
    table = pyarrow.table({"image": images, "text": [f"picture {k}" for k in range(SAMPLES)]})
    parquet.write_table(table, web.folder / "a.parquet", row_group_size=4)
    local = content_of(str(web.folder / "a.parquet"))
    assert len(local) == SAMPLES
    folder = read_folder(f"{web.address}/a.parquet")
    assert [(pair.captions, pair.path.read_bytes()) for pair in folder.pairs] == local
    parquet.write_table(table.slice(1), web.folder / "a.parquet", row_group_size=4)
    forget()
    with pytest.raises(StoreError, match=r"a\.parquet has changed"):
        folder.pairs[0].path.read_bytes()


def noise_table(count: int, paths: bool = False) -> Any:
    """Return a table of pictures that each take a third of a block."""
    pyarrow = pytest.importorskip("pyarrow")
    random = np.random.default_rng(0)
    files = []
    for _ in range(count):
        file = io.BytesIO()
        pixels = random.integers(0, 256, (170, 170, 3), np.uint8)
        Image.fromarray(pixels).save(file, "PNG", compress_level=1)
        files.append({"bytes": None if paths else file.getvalue(), "path": f"{len(files)}.png"})
    image = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    texts = [f"picture {k}" for k in range(count)]
    return pyarrow.table({"image": pyarrow.array(files, image), "text": texts})


@pytest.fixture
def noise(web):
    """Yield a parquet file in a store, of six row groups that each take a block."""
    from pyarrow import parquet

    parquet.write_table(noise_table(18), web.folder / "n.parquet", row_group_size=3)
    yield f"{web.address}/n.parquet"


def kept_blocks() -> int:
    return sum(path.is_file() for path in blocks.cache_folder().rglob("*"))


def wait_for_blocks(count: int) -> None:
    for _ in range(500):
        if kept_blocks() == count:
            return
        time.sleep(0.02)
    raise AssertionError(f"{kept_blocks()} blocks, and {count} are needed")


@pytest.mark.filterwarnings("ignore:This process")
def test_row_groups_that_come_next_are_fetched_in_advance(web, noise, monkeypatch):
    monkeypatch.setattr(blocks, "AHEAD", 0)  # not because the file is read from front to back
    pairs = read_folder(noise).pairs
    shutil.rmtree(blocks.cache_folder())
    forget()
    stream = ImageBatches(pairs, ImageTransform(8), 1, seed=1, in_memory=0).stream()
    next(stream)
    wait_for_blocks(-(-(web.folder / "n.parquet").stat().st_size // blocks.BLOCK))
    web.faults += [404] * 50  # nothing more is needed
    list(islice(stream, 40))
    stream.close()
    assert web.faults.count(404) == 50
    web.faults.clear()


def test_captions_of_the_next_row_groups_are_fetched_in_advance(web, noise, monkeypatch):
    monkeypatch.setattr(blocks, "AHEAD", 0)
    file = open_columnar(RemoteFile(noise))
    text = next(column for column in file.columns if column.name == "text")
    image = next(column for column in file.columns if column.name == "image")
    before = kept_blocks()
    next(file.rows(image, text))
    wait_for_blocks(max(before + 1, -(-(web.folder / "n.parquet").stat().st_size // blocks.BLOCK)))


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.filterwarnings("ignore:This process")
@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_of_a_remote_table_continues(web, noise, workers):
    def batches(data: str, workers: int) -> ImageBatches:
        pairs = read_folder(data).pairs
        return ImageBatches(pairs, ImageTransform(8), 4, seed=1, workers=workers, in_memory=0)

    straight = list(islice(batches(str(web.folder / "n.parquet"), 0).stream(), 9))
    resumed = list(islice(batches(noise, workers).stream(first_step=5), 4))
    for (images, texts), (again, texts_again) in zip(straight[5:], resumed, strict=True):
        assert torch.equal(images, again)
        assert texts == texts_again


def test_what_waits_to_be_read_takes_a_share_of_the_cache(web, monkeypatch):
    big_file(web, 12 * blocks.BLOCK)
    monkeypatch.setattr(RemoteFile, "fetch_ahead", lambda self, *part: fetched.append(part))
    fetched: list[tuple[int, int]] = []
    shard = RemoteFile(f"{web.address}/big.tar")
    steps = [[Member(shard, "x", k * blocks.BLOCK, blocks.BLOCK)] * 2 for k in range(12)]
    blocks.cache().limit = int(3 * blocks.BLOCK / SHARE)

    def wait_for(count: int) -> None:
        for _ in range(500):
            if len(fetched) >= count:
                break
            time.sleep(0.01)
        time.sleep(0.05)
        assert len(fetched) == count  # each range once, and not more

    with Ahead(steps) as ahead:
        wait_for(3)
        for k in range(4):
            ahead.advance()
            wait_for(4 + k)


def test_tables_in_stores_that_name_files_are_refused(web):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    names = pyarrow.table({"file_name": ["000.png", "001.png"], "text": ["a", "b"]})
    parquet.write_table(names, web.folder / "names.parquet")
    parquet.write_table(noise_table(3, paths=True), web.folder / "structs.parquet")
    (web.folder / "t.csv").write_text("file_name,text\n000.png,a\n")
    for name, message in (
        ("names.parquet", r"'file_name' of .*names\.parquet names files"),
        ("structs.parquet", r"'image' of .*structs\.parquet names files"),
        ("t.csv", r"t\.csv.*parquet"),
    ):
        with pytest.raises(UserError, match=message):
            read_folder(f"{web.address}/{name}")
    some = pyarrow.concat_tables([noise_table(2), noise_table(1, paths=True)])
    parquet.write_table(some, web.folder / "some.parquet")
    folder = read_folder(f"{web.address}/some.parquet")
    assert len(folder.pairs) == 2
    assert ["row 2" in str(entry) for entry in folder.unusable] == [True]


# S3


@pytest.fixture(scope="module")
def bucket(tmp_path_factory):
    pytest.importorskip("s3fs")
    pytest.importorskip("moto")
    root = tmp_path_factory.mktemp("s3")
    make_shards(root)
    with serve_s3(root / "shards") as url:
        yield root, url


@pytest.mark.filterwarnings("ignore")
def test_shards_in_a_bucket_are_those_on_the_disk(bucket, tmp_path):
    root, url = bucket
    local = content_of(f"{root}/shards/{PATTERN}")
    assert content_of(f"{url}/{PATTERN}") == local
    assert content_of(f"{url}/*.tar") == local
    with pytest.raises(MissingFileError, match=r"1 of the 4 .*003\.tar"):
        read_folder(f"{url}/{{000..003}}.tar")
    written = b"".join(p.read_bytes() for p in tmp_path.rglob("*") if p.is_file())
    assert not any(value.encode() in written for value in CREDENTIALS.values())


@pytest.mark.filterwarnings("ignore")
def test_an_object_that_changes_is_refused(bucket):
    import boto3

    client = boto3.client("s3")
    content = os.urandom(3 * blocks.BLOCK)
    client.put_object(Bucket=BUCKET, Key="big.tar", Body=content)
    file = RemoteFile(f"{bucket[1]}/big.tar")
    assert file.read_range(0, 9) == content[:9]
    client.put_object(Bucket=BUCKET, Key="big.tar", Body=content[::-1])
    with pytest.raises(StoreError, match=r"big\.tar has changed"):
        file.read_range(2 * blocks.BLOCK, 2 * blocks.BLOCK + 9)


def test_urls_survive_a_path():
    assert parse_url(Path("S3://bucket/a b/{0..9}.tar")) == "s3://bucket/a b/{0..9}.tar"
