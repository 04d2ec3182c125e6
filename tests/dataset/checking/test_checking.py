"""The parts of check.py: the account of all files, similar pictures, the sheet, the plan."""

import os
import re
import tempfile
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from dataset.checking.accounting import account_for
from dataset.checking.caption_statistics import count_captions
from dataset.checking.contact_sheet import write_contact_sheet
from dataset.checking.near_duplicates import (
    MOST_BITS,
    near_duplicates,
    perceptual_hashes,
    similar_hashes,
)
from dataset.checking.planned_run import PlannedRun, judge, judge_batch, judge_captions, size_loss
from dataset.folder import Folder, read_folder
from dataset.options import ReadOptions
from dataset.parallel import no_progress
from dataset.table import ImageFacts, TableBuilder
from foundation.errors import UserError
from tests.helpers.images import captioned, picture, truncated, write_metadata

posix = pytest.mark.skipif(os.name != "posix", reason="needs links and pipes")


# Accounting

NAMES = st.one_of(
    st.sampled_from(["a", "b", "a b", ".hidden", "ä", "a\u0308", "x\ny", "README", "metadata"]),
    st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), max_size=5),
)
ENDINGS = st.sampled_from(["", ".png", ".PNG", ".jpg", ".txt", ".caption", ".heic", ".md", ".gif"])
FOLDERS = st.lists(st.sampled_from(["", "one", "One", ".cache", "__MACOSX", "10_cat", "x y"]))
CONTENTS = st.sampled_from(["red", "blue", "text", "cut", "link", "loop", "folder link", "pipe"])
TREES = st.lists(st.tuples(FOLDERS, NAMES, ENDINGS, CONTENTS), max_size=12)


def make_entry(root: Path, content: str, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if content in ("red", "blue"):
        Image.new("RGB", (8, 8), content).save(path, format="PNG")
    elif content == "text":
        path.write_text("a caption")
    elif content == "cut":
        truncated(path)
    elif content == "link":
        path.symlink_to("nowhere" if len(path.name) % 2 else root / "good.png")
    elif content == "loop":
        path.symlink_to(path.name)
    elif content == "folder link":
        path.symlink_to(root, target_is_directory=True)
    else:
        os.mkfifo(path)


def count_files(root: Path) -> int:
    """Count what is no folder; a folder that is linked twice counts once."""
    visited, total, queue = set(), 0, [root]
    while queue:
        folder = queue.pop()
        if folder.resolve() not in visited:
            visited.add(folder.resolve())
            for entry in folder.iterdir():
                try:
                    is_folder = entry.is_dir()
                except OSError:
                    is_folder = False
                queue += [entry] if is_folder else []
                total += not is_folder
    return total


@posix
@settings(
    deadline=None,
    max_examples=25,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
@given(TREES)
def test_the_account_of_any_tree_is_the_number_of_its_files(tree):
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary) / "data"
        root.mkdir()
        Image.new("RGB", (8, 8), "green").save(root / "good.png")
        for folders, name, ending, content in tree:
            try:
                make_entry(root, content, root.joinpath(*filter(None, folders), name + ending))
            except (OSError, ValueError):  # a name that is taken, or none
                continue
        count = count_files(root)
        try:
            folder = read_folder(root, allow_missing_captions=True)
        except UserError:
            return  # captions would be guessed
        account = account_for(folder)
        assert account.total == account.files == count
        assert account.used + len(account.duplicates) == len(folder.pairs)


@posix
def test_every_kind_of_file_is_named(tmp_path):
    captioned(tmp_path, 3)
    (tmp_path / "copy.png").write_bytes((tmp_path / "000.png").read_bytes())
    rows = [{"file_name": f"00{k}.png", "text": f"{k}"} for k in range(3)]
    write_metadata(tmp_path, [*rows, {"file_name": "copy.png", "text": "copy"}])
    truncated(tmp_path / "cut.jpg")
    (tmp_path / "photo.heic").write_bytes(b"")
    (tmp_path / "loop.png").symlink_to("loop.png")
    (tmp_path / "notes.md").write_text("")
    (tmp_path / "more.md").write_text("")
    (tmp_path / ".DS_Store").write_text("")
    (tmp_path / b"bad\xff.png".decode(errors="surrogateescape")).write_bytes(b"")
    folder = read_folder(tmp_path)
    account = account_for(read_folder(tmp_path))
    assert account == account_for(folder)
    assert (account.used, account.captions, account.hidden) == (3, 1, 1)
    assert account.duplicates == {"copy.png": "000.png"}
    assert account.broken.keys() == {"cut.jpg", "photo.heic", "loop.png", r"bad\udcff.png"}
    assert account.not_read[".md"].count == 2 and account.not_read[".md"].example == "more.md"
    assert account.total == account.files == 3 + 1 + 1 + 4 + 2 + 1


def test_images_of_other_splits_are_not_read(tmp_path):
    for part in ("train", "test"):
        captioned(tmp_path / part, 2)
    folder = read_folder(tmp_path, options=ReadOptions(split="train"))
    account = account_for(folder, "train")
    assert account.used + len(account.duplicates) == 2 and account.captions == 1
    assert {ending: kind.count for ending, kind in account.not_read.items()} == {
        ".png": 2,
        ".jsonl": 1,
    }
    assert account.total == account.files


# Pictures that look the same


def scene(seed: int, side: int = 96) -> Image.Image:
    """Draw a picture of smooth colors."""
    colors = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    return Image.fromarray(colors).resize((side, side), Image.Resampling.BICUBIC)


def test_scaled_and_compressed_copies_are_found_and_other_pictures_are_not(tmp_path):
    for k in range(40):
        scene(k).save(tmp_path / f"{k:02}.png")
    scene(3, 64).save(tmp_path / "scaled.png")
    scene(5).save(tmp_path / "saved again.jpg", quality=50)
    brighter = np.minimum(np.asarray(scene(7), np.int64) + 4, 255).astype(np.uint8)
    Image.fromarray(brighter).save(tmp_path / "brighter.webp", lossless=True)
    for k, color in enumerate(("red", "green", "white")):  # no frequencies: their hashes are equal
        Image.new("RGB", (64, 64), color).save(tmp_path / f"flat {k}.png")
    (tmp_path / "text.png").write_text("no picture")
    paths = sorted(tmp_path.iterdir())
    found = near_duplicates(paths, no_progress)
    assert {(paths[a].stem, paths[b].stem) for a, b in found} == {
        ("03", "scaled"),
        ("05", "saved again"),
        ("07", "brighter"),
    }


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**32), st.integers(2, 60))
def test_similar_hashes_are_those_that_differ_in_few_bits(seed, count):
    rng = np.random.default_rng(seed)
    hashes = rng.integers(0, 2**64, count, dtype=np.uint64)
    for k in range(1, count):  # turn some bits of an earlier one
        if rng.random() < 0.7:
            bits = rng.choice(64, rng.integers(0, 12), replace=False)
            hashes[k] = hashes[rng.integers(k)] ^ np.uint64(sum(1 << int(b) for b in bits))
    firsts = {int(h): k for k, h in reversed(list(enumerate(hashes)))}
    expected = {(firsts[int(h)], k) for k, h in enumerate(hashes) if firsts[int(h)] != k}
    distinct = list(firsts.items())
    expected |= {
        (min(j, k), max(j, k))
        for n, (a, j) in enumerate(distinct)
        for b, k in distinct[:n]
        if (a ^ b).bit_count() <= MOST_BITS
    }
    assert {(int(a), int(b)) for a, b in similar_hashes(hashes)} == expected


def test_many_hashes_take_seconds():
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 2**64, 60_000, dtype=np.uint64)
    hashes[30_000:] = hashes[0]  # many equal ones are no quadratic number of pairs
    begin = time.process_time()
    assert len(similar_hashes(hashes)) == 30_000
    assert time.process_time() - begin < 30


def test_a_hash_does_not_depend_on_brightness():
    gray = np.random.default_rng(0).uniform(0, 200, (3, 32, 32)).astype(np.float32)
    assert (perceptual_hashes(gray) == perceptual_hashes(gray * 0.5 + 20)).all()


# The sheet


def test_the_sheet_shows_pairs_of_the_whole_folder(tmp_path):
    for k in range(40):
        picture(tmp_path / f"{k:02}.png", size=(30 + k, 30))
        (tmp_path / f"{k:02}.txt").write_text(f"picture {k} \x1b[31m" + "long " * 300)
    pairs = read_folder(tmp_path).pairs
    assert write_contact_sheet(pairs, tmp_path / "sheet.png") == 24
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width > sheet.height > 600
        assert len(np.unique(np.asarray(sheet.convert("RGB")).reshape(-1, 3), axis=0)) > 24
    assert write_contact_sheet(pairs[:1], tmp_path / "sheet.png") == 1
    with pytest.raises(UserError, match=r"sheet\.jpg"):
        write_contact_sheet(pairs, tmp_path / "sheet.jpg")


# Captions and the plan

FACTS = ImageFacts(size=1, mtime_ns=0, shard=-1, offset=0, width=32, height=32, sha256=bytes(32))


def test_captions_are_counted(tmp_path):
    for k in range(4):
        picture(tmp_path / f"{k}.png")
        (tmp_path / f"{k}.txt").write_text(["", "A red cat", "A red cat", "blue\na dog"][k])
    folder = read_folder(tmp_path, allow_missing_captions=True)
    found = count_captions(folder, room=3, count_tokens=lambda text: len(text.split()) + 1)
    assert (found.captions, found.distinct, found.without) == (4, 3, 1)
    assert found.cut == 2 and found.lengths == {2: 1, 3: 1, 4: 2} and not judge_captions(found)
    assert found.words == {"a": 3, "red": 2, "cat": 2, "blue": 1, "dog": 1}
    assert found.equal == {"A red cat": 2}
    cut = count_captions(folder, room=1, count_tokens=lambda text: len(text.split()) + 1)
    assert cut.all_cut and len(judge_captions(cut)) == 1


@settings(max_examples=30)
@given(st.lists(st.sampled_from(["a", "a b", "b b a", "c, d", "d c e f"]), min_size=1))
def test_captions_are_counted_as_by_a_list_of_all_of_them(texts):
    builder = TableBuilder()
    for text in texts:
        builder.add("x.png", [text], FACTS, "RGB")
    folder = Folder(Path("."), "", builder.build(Path(".")).pairs)
    found = count_captions(folder, 2, lambda text: len(text.split()))
    distinct = Counter(texts)
    words = Counter(word for text in texts for word in set(re.findall(r"\w", text)))
    assert found.distinct == len(distinct) and found.captions == len(texts)
    assert found.lengths == Counter(len(text.split()) for text in texts)
    assert found.words == words
    shared = {text: count for text, count in distinct.most_common(3) if count > 1}
    assert list(found.equal.items()) == list(shared.items())


def test_more_words_than_are_counted_keep_the_frequent_ones(tmp_path, monkeypatch):
    monkeypatch.setattr("dataset.checking.caption_statistics.MOST_WORDS", 20)
    builder = TableBuilder()
    for k in range(200):
        builder.add("x.png", [f"red cat number{k}"], FACTS, "RGB")
    found = count_captions(Folder(tmp_path, "", builder.build(tmp_path).pairs), 77, None)
    assert (found.words["red"], found.words["cat"], found.distinct) == (200, 200, 200)


def test_a_run_of_thousands_of_epochs_is_remarked_on():
    run = PlannedRun("train_ldm.py", steps=10_000, batch_size=32, size=64)
    (remark,) = judge(run, 59)
    assert "5,424" in remark and "59" in remark
    assert not judge(run, 4000)
    assert not judge_batch("train_ldm.py", 32, 32)
    (problem,) = judge_batch("train_ldm.py", 32, 31, held_out=1)
    assert "31" in problem and "train_ldm.py" in problem and "1 of 32 held out" in problem


RUN = PlannedRun("train_ldm.py", steps=2000, batch_size=10, warmup=100, cooldown=0.5,
                 ema_halflife=400, save_every=500, caption_dropout=0.1)  # fmt: skip


def test_settings_of_presets_are_not_remarked_on():
    assert not judge(RUN, 1000)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"warmup": 2000}, ["warm-up of 2,000", "run of 2,000"]),
        ({"warmup": 1001}, ["step 1,000", "1,001"]),
        ({"ema_halflife": 20_001}, ["20,001 images", "20,000", "200"]),
        ({"save_every": 2001}, ["2,001"]),
        ({"caption_dropout": 0.9}, ["caption_dropout 0.9"]),
        ({"steps": 90, "warmup": 1, "save_every": 1}, ["900 of 1,000", "100 steps"]),
        ({"steps": 10_848_000}, ["108,480"]),
    ],
)
def test_settings_that_make_no_sense_are_remarked_on(changes, words):
    (remark,) = judge(replace(RUN, **changes), 1000)
    assert all(word in remark for word in words)


def test_a_cosine_schedule_may_follow_a_warm_up():
    assert not judge(replace(RUN, cooldown=1.0, warmup=500), 1000)


def test_what_a_size_loses(tmp_path):
    picture(tmp_path / "a.png", size=(200, 100))
    picture(tmp_path / "b.png", size=(50, 50))
    loss = size_loss(read_folder(tmp_path, allow_missing_captions=True), 64)
    assert loss.cropped[1.0] == pytest.approx(0.25) and loss.cropped[2.0] < 0.1
    assert loss.enlarged == 1 and loss.reduced == pytest.approx((1 + (100 / 64) ** 2) / 2)
