"""Data folders: which rule finds the captions, and which mistakes are named in messages."""

import json
import os
import unicodedata

import pytest

from dataset.folder import Folder, read_folder
from dataset.options import ReadOptions
from dataset.table import NO_CAPTION, Pair
from foundation.errors import MissingFileError, UserError
from tests.helpers.images import captioned, picture, truncated, write_metadata


def captions(folder: Folder) -> dict[str, tuple[str, ...]]:
    return {pair.path.relative_to(folder.root).as_posix(): pair.captions for pair in folder.pairs}


def test_metadata_jsonl_is_the_first_rule(tmp_path):
    picture(tmp_path / "red_apple.png")
    (tmp_path / "red_apple.txt").write_text("from the text file")
    (tmp_path / "captions.json").write_text('{"red_apple.png": "from captions.json"}')
    write_metadata(tmp_path, [{"file_name": "red_apple.png", "text": "from metadata"}])
    folder = read_folder(tmp_path)
    assert folder.rule == "metadata.jsonl"
    assert captions(folder) == {"red_apple.png": ("from metadata",)}


def test_text_files_are_used_before_captions_json(tmp_path):
    picture(tmp_path / "red_apple.png")
    (tmp_path / "red_apple.txt").write_text("from the text file\n")
    (tmp_path / "captions.json").write_text('{"red_apple.png": "from captions.json"}')
    folder = read_folder(tmp_path)
    assert ".txt" in folder.rule
    assert captions(folder) == {"red_apple.png": ("from the text file",)}


def test_captions_json_is_used_before_names(tmp_path):
    picture(tmp_path / "fruit" / "red_apple.png")
    picture(tmp_path / "tools" / "hammer.png")
    table = {"fruit/red_apple.png": "an apple", "tools/hammer.png": ["a hammer", "a tool"]}
    (tmp_path / "captions.json").write_text(json.dumps(table))
    folder = read_folder(tmp_path)
    assert folder.rule == "captions.json"
    assert captions(folder) == {
        "fruit/red_apple.png": ("an apple",),
        "tools/hammer.png": ("a hammer", "a tool"),
    }


def test_class_folders_are_used_before_file_names(tmp_path):
    picture(tmp_path / "red_fruit" / "apple.png")
    picture(tmp_path / "tools" / "hammer.png")
    folder = read_folder(tmp_path)
    assert "class folder" in folder.rule
    assert set(captions(folder).values()) == {("red fruit",), ("tools",)}


def test_repeat_counts_of_class_folders_are_dropped(tmp_path):
    picture(tmp_path / "10_cat" / "a.png")
    picture(tmp_path / "5_dog" / "b.png")
    assert set(captions(read_folder(tmp_path)).values()) == {("cat",), ("dog",)}


def test_a_single_folder_with_a_repeat_count_is_a_class(tmp_path):
    picture(tmp_path / "img" / "10_sks 1girl" / "blue sky.png")
    assert read_folder(tmp_path).pairs[0].captions == ("sks 1girl",)
    assert read_folder(tmp_path / "img" / "10_sks 1girl").pairs[0].captions == ("sks 1girl",)
    picture(tmp_path / "2024_cats" / "blue sky.png")
    assert read_folder(tmp_path / "2024_cats").pairs[0].captions == ("blue sky",)


def test_file_names_are_the_last_rule(tmp_path):
    picture(tmp_path / "images" / "red_apple-tree_003.png")  # a single folder is not a class
    folder = read_folder(tmp_path)
    assert folder.rule == "the name of the image file"
    assert folder.pairs[0].captions == ("red apple tree",)


@pytest.mark.parametrize("name", ["0001", "IMG_2041", "DSC00012", "1F469-200D", "a8f3c2d1"])
def test_names_without_words_are_not_captions(tmp_path, name):
    picture(tmp_path / f"{name}.png")
    with pytest.raises(UserError, match=r"1 of 1 images"):
        read_folder(tmp_path)


def test_metadata_csv_with_commas_and_several_rows_per_image(tmp_path):
    picture(tmp_path / "a.png")
    table = 'file_name,text\na.png,"red, and round"\na.png,an apple\n'
    (tmp_path / "metadata.csv").write_text("\ufeff" + table, encoding="utf-8")
    folder = read_folder(tmp_path)
    assert folder.rule == "metadata.csv"
    assert captions(folder) == {"a.png": ("red, and round", "an apple")}


def test_a_comma_outside_quotes_is_refused(tmp_path):
    picture(tmp_path / "a.png")
    (tmp_path / "metadata.csv").write_text("file_name,text\na.png,red, and round\n")
    with pytest.raises(UserError, match=r"metadata\.csv line 2"):
        read_folder(tmp_path)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ('file_name,text\n0.png,"a 12 inch\n1.png,a dog\n', r"line 2.*inch"),
        ('file_name,text\n0.png,"two\nlines"\n1.png,"a ""b\n2.png,c\n', r"line 4"),
        ('file_name,text\n0.png,"a 12 inch\n' + "1.png,a dog\n" * 20_000, r"line 2"),
        ('file_name,text\n0.png,"a" b\n', r"line 2"),
        ("file_name;text\n0.png;a\n", r"line 1.*semicolons"),
        ("file_name\ttext\n0.png\ta\n", r"line 1.*tabs"),
        ("file_name,words\n0.png,a\n", r"line 1.*words"),
        ("file_name,text,text\n0.png,a,b\n", r"line 1.*'text'"),
        ("file_name,text\n0.png\n", r"line 2.*fewer"),
        ("file_name,text\n0.png," + "x" * 2_000_000, r"line 2"),
        ("", r"empty"),
    ],
)
def test_csv_is_strict_and_names_the_line(tmp_path, table, message):
    picture(tmp_path / "0.png")
    (tmp_path / "metadata.csv").write_text(table)
    with pytest.raises(UserError, match=rf"(?s)metadata\.csv.*{message}") as error:
        read_folder(tmp_path)
    assert len(str(error.value)) < 1000


def test_a_column_or_field_named_caption_is_read(tmp_path):
    picture(tmp_path / "a.png")
    (tmp_path / "metadata.csv").write_text("file_name,caption\na.png,an apple\n")
    assert captions(read_folder(tmp_path)) == {"a.png": ("an apple",)}
    (tmp_path / "metadata.jsonl").write_text('{"caption": "a pear", "file_name": "a.png"}')
    assert captions(read_folder(tmp_path)) == {"a.png": ("a pear",)}
    write_metadata(tmp_path, [{"file_name": "a.png", "caption": "a plum", "text": "a fig"}])
    assert captions(read_folder(tmp_path)) == {"a.png": ("a fig",)}


def test_absolute_paths_and_backslashes_name_images_below_the_folder(tmp_path):
    root = tmp_path / "data"
    for k in range(5):
        picture(root / "part" / f"{k}.png")
    (tmp_path / "link").symlink_to(root)
    names = ["part\\0.png", str(root / "part" / "1.png"), "./part/x/../2.png"]
    names += [str(tmp_path / "link" / "part" / "3.png"), ".\\part\\4.png"]
    write_metadata(root, [{"file_name": name, "text": f"{k}"} for k, name in enumerate(names)])
    expected = {f"part/{k}.png": (f"{k}",) for k in range(5)}
    assert captions(read_folder(tmp_path / "link")) == expected


def test_rows_without_an_image_are_named_before_missing_captions(tmp_path):
    picture(tmp_path / "a.png")
    write_metadata(tmp_path, [{"file_name": "D:\\set\\a.png", "text": "an apple"}])
    with pytest.raises(UserError, match=r"(?s)line 1, but there is no such.*1 of 1 images"):
        read_folder(tmp_path)


@pytest.mark.parametrize(
    ("image", "caption"),
    [
        ("a b.jpg", "a b.jpg.txt"),
        ("a b.JPG", "A B.txt"),
        ("a b.png", "a b.PNG.caption"),
        ("Sub/a b.png", "sub/A B.TXT"),
    ],
)
def test_caption_files_may_keep_the_ending_and_differ_in_capitals(tmp_path, image, caption):
    picture(tmp_path / image)
    (tmp_path / caption).parent.mkdir(exist_ok=True)
    (tmp_path / caption).write_text("a caption")
    folder = read_folder(tmp_path)
    assert captions(folder) == {image: ("a caption",)} and not folder.unusable


def test_matches_but_for_capitals_must_be_unique(tmp_path):
    for name in ("a.png", "A.jpg", "b.png"):
        picture(tmp_path / name)
    for name in ("b.txt", "B.txt", "a.TXT", "A.jpg.txt"):
        (tmp_path / name).write_text(name)
    folder = read_folder(tmp_path)
    assert captions(folder) == {"a.png": ("a.TXT",), "A.jpg": ("A.jpg.txt",), "b.png": ("b.txt",)}
    assert [file.path.name for file in folder.unusable] == ["B.txt"]
    (tmp_path / "c.png").symlink_to("a.png")
    (tmp_path / "C.webp").symlink_to("a.png")
    (tmp_path / "c.TXT").write_text("c")
    folder = read_folder(tmp_path, allow_missing_captions=True)
    assert captions(folder)["c.png"] == ("c",) and captions(folder)["C.webp"] == NO_CAPTION


def test_images_of_the_same_name_share_a_caption_file_or_have_their_own(tmp_path):
    for name in ("a.png", "a.webp", "b.png"):
        picture(tmp_path / name)
    (tmp_path / "a.txt").write_text("shared")
    (tmp_path / "a.webp.txt").write_text("own")
    (tmp_path / "b.txt").write_text("first")
    (tmp_path / "b.caption").write_text("second")
    folder = read_folder(tmp_path)
    assert captions(folder) == {"a.png": ("shared",), "a.webp": ("own",), "b.png": ("first",)}
    assert len(folder.notes) == 1 and "b.caption" in folder.notes[0]


@pytest.mark.parametrize(
    "name",
    ["captions/red apple.txt", "a.tsv", "data/train.parquet", "meta_cap.json", "x.yaml", "l.xlsx"],
)
def test_nothing_is_guessed_while_a_file_may_hold_captions(tmp_path, name):
    picture(tmp_path / "images" / "red apple.png")
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("{}")
    with pytest.raises(UserError, match=rf"(?s)found .*{name}.*guessed"):
        read_folder(tmp_path)
    (tmp_path / name).rename(tmp_path / "README.txt")
    assert read_folder(tmp_path).rule == "the name of the image file"


def test_metadata_in_subfolders_is_relative_to_them(tmp_path):
    for part in ("one", "two"):
        picture(tmp_path / part / "images" / "a.png")
        write_metadata(tmp_path / part, [{"file_name": "images/a.png", "text": part}])
    folder = read_folder(tmp_path)
    assert folder.rule == "metadata.jsonl (2 files)"
    assert captions(folder) == {"one/images/a.png": ("one",), "two/images/a.png": ("two",)}


def test_repeated_and_empty_captions_are_dropped(tmp_path):
    picture(tmp_path / "a.png")
    write_metadata(tmp_path, [{"file_name": "a.png", "text": ["one", " two ", "", "one"]}])
    assert captions(read_folder(tmp_path)) == {"a.png": ("one", "two")}


def test_every_line_of_a_text_file_is_a_caption(tmp_path):
    picture(tmp_path / "a.png")
    (tmp_path / "a.txt").write_bytes("eins\r\nzwei äpfel\r\n\r\n".encode())
    assert captions(read_folder(tmp_path)) == {"a.png": ("eins", "zwei äpfel")}


def test_caption_files_and_upper_case_extensions(tmp_path):
    picture(tmp_path / "A.PNG")
    picture(tmp_path / "b.JPEG")
    (tmp_path / "A.TXT").write_text("upper")
    (tmp_path / "b.caption").write_text("lower")
    assert captions(read_folder(tmp_path)) == {"A.PNG": ("upper",), "b.JPEG": ("lower",)}


def test_unicode_names_in_either_form(tmp_path):
    """macOS stores names decomposed; a metadata file written elsewhere has them composed."""
    composed, decomposed = (unicodedata.normalize(form, "äpfel 猫.png") for form in ("NFC", "NFD"))
    assert composed != decomposed
    picture(tmp_path / decomposed)
    write_metadata(tmp_path, [{"file_name": composed, "text": "猫 und Äpfel"}])
    assert read_folder(tmp_path).pairs[0].captions == ("猫 und Äpfel",)


def test_names_that_differ_only_in_unicode_form_are_both_read_and_named(tmp_path):
    forms = [unicodedata.normalize(form, "\u00e4pfel.png") for form in ("NFC", "NFD")]
    for k, name in enumerate(forms):
        picture(tmp_path / name, size=(8 + k, 8))
        (tmp_path / name).with_suffix(".txt").write_text(f"picture {k}")
    folder = read_folder(tmp_path)
    assert captions(folder) == {forms[0]: ("picture 0",), forms[1]: ("picture 1",)}
    assert any(forms[0] in note for note in folder.notes)


@pytest.mark.skipif(os.name != "posix", reason="needs links and pipes")
def test_pipes_devices_and_links_to_themselves_are_named(tmp_path):
    captioned(tmp_path, 1)
    (tmp_path / "loop.png").symlink_to("loop.png")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    (tmp_path / "loop").symlink_to("loop")
    os.mkfifo(tmp_path / "pipe.png")
    reasons = {entry.path.name: entry.reason for entry in read_folder(tmp_path).unusable}
    assert reasons.keys() == {"loop.png", "zero.png", "pipe.png"}
    assert "itself" in reasons["loop.png"] and "pipe" in reasons["pipe.png"]
    (tmp_path / "metadata.jsonl").unlink()
    os.mkfifo(tmp_path / "metadata.jsonl")
    with pytest.raises(UserError, match=r"metadata\.jsonl is a pipe"):
        read_folder(tmp_path)


def test_what_steers_a_terminal_does_not_reach_it(tmp_path):
    picture(tmp_path / "\x1b[31mred\n.png")
    truncated(tmp_path / "cut\x07.png")
    folder = read_folder(tmp_path, allow_missing_captions=True)
    with pytest.raises(UserError) as error:
        folder.require_all_usable()
    assert r"cut\x07.png" in str(error.value)
    assert not set("\x1b\x07") & set(str(error.value))


def test_unicode_separators_inside_a_caption_do_not_end_the_line(tmp_path):
    picture(tmp_path / "a.png")
    write_metadata(tmp_path, [{"file_name": "a.png", "text": "one\u2028two"}])
    assert captions(read_folder(tmp_path)) == {"a.png": ("one\u2028two",)}


def test_links_are_followed_and_loops_end(tmp_path):
    outside = picture(tmp_path / "elsewhere" / "red apple.png")
    root = tmp_path / "data"
    root.mkdir()
    (root / "green pear.png").symlink_to(outside)
    (root / "fruit").symlink_to(outside.parent, target_is_directory=True)
    (outside.parent / "loop").symlink_to(root, target_is_directory=True)
    assert set(captions(read_folder(root))) == {"green pear.png", "fruit/red apple.png"}


def test_hidden_files_are_ignored(tmp_path):
    picture(tmp_path / "red apple.png")
    (tmp_path / "._red apple.png").write_bytes(b"\0\1")
    picture(tmp_path / ".cache" / "thumb.png")
    picture(tmp_path / "__MACOSX" / "thumb.png")
    assert set(captions(read_folder(tmp_path))) == {"red apple.png"}


def test_unusable_files_are_named_with_their_reason(tmp_path):
    captioned(tmp_path, 3)
    truncated(tmp_path / "cut.jpg")
    (tmp_path / "text.png").write_text("not an image")
    (tmp_path / "photo.heic").write_bytes(b"ftypheic")
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere.png")
    with (tmp_path / "metadata.jsonl").open("a") as metadata:
        for name in ("cut.jpg", "text.png", "lost.png"):
            metadata.write(json.dumps({"file_name": name, "text": "a caption"}) + "\n")
    folder = read_folder(tmp_path)
    reasons = {unusable.path.name: unusable.reason for unusable in folder.unusable}
    assert len(folder.pairs) == folder.sizes.total() == folder.modes.total() == 3
    assert reasons.keys() == {"cut.jpg", "text.png", "photo.heic", "gone.png", "lost.png"}
    assert "truncated" in reasons["cut.jpg"]
    assert "not an image" in reasons["text.png"]
    assert "convert" in reasons["photo.heic"]
    assert "broken link" in reasons["gone.png"]
    assert "metadata.jsonl line 6" in reasons["lost.png"]
    with pytest.raises(UserError, match=r"(?s)5 files.*cut\.jpg.*skip_unusable"):
        folder.require_all_usable()


def test_a_text_file_that_is_not_utf8_is_named(tmp_path):
    picture(tmp_path / "a.png")
    picture(tmp_path / "b.png")
    (tmp_path / "a.txt").write_bytes("äpfel".encode("latin-1"))
    (tmp_path / "b.txt").write_text("pears")
    folder = read_folder(tmp_path, allow_missing_captions=True)
    assert "UTF-8" in folder.unusable[0].reason
    assert captions(folder) == {"a.png": NO_CAPTION, "b.png": ("pears",)}


def test_captions_without_images_are_named(tmp_path):
    picture(tmp_path / "a.png")
    for name in ("a", "b", "README"):
        (tmp_path / f"{name}.txt").write_text("a caption")
    unusable = read_folder(tmp_path).unusable
    assert [file.path.name for file in unusable] == ["b.txt"]
    (tmp_path / "a.png").unlink()
    with pytest.raises(UserError, match=r"3 \.txt"):
        read_folder(tmp_path)


def test_missing_captions_are_refused_unless_allowed(tmp_path):
    for k in range(8):
        picture(tmp_path / f"{k}.png")
    (tmp_path / "0.txt").write_text("zero")
    (tmp_path / "1.txt").write_text("  \n")
    with pytest.raises(UserError, match=r"(?s)7 of 8 .*1\.png.* 2 .*allow_missing_captions"):
        read_folder(tmp_path)
    folder = read_folder(tmp_path, allow_missing_captions=True)
    assert len(folder.pairs) == 8
    assert len(folder.without_caption) == 7
    assert folder.without_caption[0] == Pair(tmp_path / "1.png", ("",))


@pytest.mark.parametrize(
    ("file", "intended"),
    [
        ("metadata.json", "metadata.jsonl"),
        ("metadata.json1", "metadata.jsonl"),
        ("Metadata.CSV", "metadata.csv"),
        ("caption.json", "captions.json"),
    ],
)
def test_files_that_look_like_captions_are_named(tmp_path, file, intended):
    picture(tmp_path / "red apple.png")
    (tmp_path / file).write_text("{}")
    with pytest.raises(UserError, match=f"(?s){file}.* {intended}"):
        read_folder(tmp_path)
    (tmp_path / "red apple.txt").write_text("an apple")  # now captions are not guessed
    assert len(read_folder(tmp_path).notes) == 1


def test_captions_with_another_extension_are_named(tmp_path):
    picture(tmp_path / "red apple.png")
    (tmp_path / "red apple.json").write_text("{}")
    with pytest.raises(UserError, match=r"1 \.json"):
        read_folder(tmp_path)


def test_the_image_folder_inside_a_data_folder_is_refused(tmp_path):
    picture(tmp_path / "images" / "red apple.png")
    write_metadata(tmp_path, [{"file_name": "images/red apple.png", "text": "an apple"}])
    with pytest.raises(UserError, match=rf" {tmp_path}\?"):
        read_folder(tmp_path / "images")


def test_a_folder_of_training_and_test_images_is_refused(tmp_path):
    for part in ("train", "test"):
        captioned(tmp_path / part, 2)
    with pytest.raises(UserError, match=r"(?s)train/ and test/.*split='train'"):
        read_folder(tmp_path)
    assert len(read_folder(tmp_path / "train").pairs) == 2


@pytest.mark.parametrize("above", ["", "images/"])
def test_a_split_is_read_alone_and_with_its_own_captions(tmp_path, above):
    for name in ("train/a", "train/b", "Val2017/c", "test/d"):
        picture(tmp_path / f"{above}{name}.png")
    rows = [{"file_name": f"{above}{name}.png", "text": name} for name in ("train/a", "train/b")]
    rows += [{"file_name": f"{above}Val2017/c.png", "text": "c"}]
    rows += [{"file_name": f"{above}test/d.png", "text": "d"}]
    write_metadata(tmp_path, rows)
    for split, names in (("train", "ab"), ("validation", "c"), ("val", "c"), ("test", "d")):
        folder = read_folder(tmp_path, options=ReadOptions(split=split))
        assert [pair.path.stem for pair in folder.pairs] == list(names)
        assert not folder.unusable
    with pytest.raises(UserError, match=r"'dev2'.*train/.*Val2017/.*test/"):
        read_folder(tmp_path, options=ReadOptions(split="dev2"))
    with pytest.raises(UserError, match=r"train/ and .*Val2017/ and .*test/"):
        read_folder(tmp_path)


def test_a_folder_without_splits_has_none_to_choose(tmp_path):
    captioned(tmp_path, 2)
    with pytest.raises(UserError, match=r"no split 'train'"):
        read_folder(tmp_path, options=ReadOptions(split="train"))
    picture(tmp_path / "test tubes" / "a.png")  # a class, as is train-station
    picture(tmp_path / "train-station" / "a.png")
    assert len(read_folder(tmp_path, allow_missing_captions=True).pairs) == 4


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('{"image": "a.png", "caption": "x"}', "file_name.*image, caption"),
        ('{"file_name": "a.png", "text": 3}', "a.png.* 3"),
        ('{"file_name": "a.png", "text": false}', "a.png.* False"),
        ('{"file_name": "a.png", "text": 0}', "a.png.* 0"),
        ('{"file_name": "a.png", "text": {}}', "a.png.* {}"),
        ('{"file_name": "a.png", "text": ["x", null]}', "a.png.*None"),
        ('{"file_name": "a.png", "text": "x", "text": "y"}', "line 1.*'text'"),
        (r'{"file_name": "a.png", "text": "\ud800"}', r"line 1.*ud800"),
        (r'{"file_name": "a\udfff.png", "text": "x"}', r"line 1.*udfff"),
        (r'{"file_name": "a.png", "text": "x\u0000"}', r"line 1.*zero"),
        ('["a.png", "x"]', "file_name.*a.png"),
        ('{"file_name": "a.png",', "line 1 .*JSON"),
        ("[" * 100_000, "line 1 .*nested"),
        ('{"file_name": "a.png", "text": 1' + "0" * 5000 + "}", "line 1 .*JSON"),
    ],
)
def test_a_row_without_the_right_fields_is_refused(tmp_path, row, message):
    picture(tmp_path / "a.png")
    (tmp_path / "metadata.jsonl").write_text(row + "\n")
    with pytest.raises(UserError, match=message):
        read_folder(tmp_path)


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(UserError):
        read_folder(tmp_path)


def test_a_missing_folder_is_refused_with_the_most_similar_name(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(MissingFileError, match=rf"emtpy .*{tmp_path / 'empty'}"):
        read_folder(tmp_path / "emtpy")


def test_a_file_in_place_of_a_folder_is_refused(tmp_path):
    (tmp_path / "data.zip").write_bytes(b"")
    with pytest.raises(UserError, match=r"data\.zip"):
        read_folder(tmp_path / "data.zip")


def test_a_folder_of_tar_files_is_refused_with_the_pattern_to_use(tmp_path):
    (tmp_path / "000.tar").write_bytes(b"")
    with pytest.raises(UserError, match=rf"'{tmp_path}/\*\.tar'"):
        read_folder(tmp_path)


def test_a_folder_with_only_damaged_images_is_refused(tmp_path):
    truncated(tmp_path / "red apple.jpg")
    with pytest.raises(UserError, match=r"red apple\.jpg: .*truncated"):
        read_folder(tmp_path)
