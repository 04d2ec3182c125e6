"""The gallery of docs/make_gallery.py, drawn by a tiny model with random weights."""

import re
import shlex
from pathlib import Path

import pytest
from PIL import Image

import sample
from docs import gallery_sections
from docs.gallery_sheets import COLORS, prompt_axis, quoted
from docs.make_gallery import Config, command_of, main, make_gallery, page_text, sheets
from foundation.errors import UserError
from generation.xy_grid import parse_axis
from ldm import TextToImage
from recipes.emoji import LANGUAGES
from tests.helpers.random_models import SIDE, make_pipeline
from training.cli import parse

ROOT = Path(__file__).parents[2]
SECTIONS = gallery_sections.SECTIONS
LARGEST = 3 * 2**20  # bytes of all files of the gallery
SMALL = {  # constants of docs/gallery_sections.py
    "PROMPTS": ("red heart", "three o'clock"),
    "EDITS": ("red", "blue"),
    "STATIONS": ("red", "blue", "red"),
    "UNKNOWN": ("green", "cyan"),
    "THINGS": dict(list(gallery_sections.THINGS.items())[:2]),
    "SCALES": "0,4",
    "STEP_COUNTS": "1,2",
    "STRENGTHS": "0.5,1",
    "FRAMES": 2,
    "UPSCALE": 2,
    "COLUMNS": 2,
}
SHIPPED = {name: getattr(gallery_sections, name) for name in SMALL}
FLAGS = ["--model", "ldm", "--prompts", "prompts.txt", "--words", "prompts.txt", "--steps", "1"]
KNOWING = ["--styles", "flat", "old", "--languages", "de", "zh"]
FRAME_COUNTS = {  # 2 from each picture to the next
    "walk-prompts.gif": 5,
    "walk-styles.gif": 5,
    "walk-noise.gif": 7,
    "walk-free.gif": 9,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return the current folder, which has a tiny model with random weights."""
    root = tmp_path_factory.mktemp("gallery")
    make_pipeline().save(root / "ldm")
    (root / "prompts.txt").write_text("red\nblue\ngreen\n", encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        for name, value in SMALL.items():
            patch.setattr(gallery_sections, name, value)
        yield root


@pytest.fixture(scope="module")
def world(folder):
    """Draw all sections by the tiny model; return the current folder."""
    main([*FLAGS, *KNOWING])
    return folder


def small_gallery(*flags: str) -> gallery_sections.Gallery:
    return make_gallery(parse(Config, [*FLAGS, *flags], None), SIDE)


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def named_in(page: str) -> set[str]:
    """Return the files of the gallery that a page shows or names."""
    return set(re.findall(r"gallery/([\w.-]+\w)", page))


@pytest.mark.slow
def test_every_section_has_its_pictures_and_the_page_shows_them(world):
    page = (world / "docs" / "gallery.md").read_text(encoding="utf-8")
    files = contents(world / "docs" / "gallery")
    assert named_in(page) == set(files)
    for name in SECTIONS:
        drawn = sheets(small_gallery(*KNOWING), name)
        assert drawn and all(f"](gallery/{sheet.name})" in page for sheet in drawn)
        for sheet in drawn:
            with Image.open(world / "docs" / "gallery" / sheet.name) as picture:
                assert picture.mode == "P" and min(picture.size) >= 2 * SIDE
                assert len(picture.convert("RGB").getcolors(COLORS) or ()) > 1
                assert getattr(picture, "n_frames", 1) == FRAME_COUNTS.get(sheet.name, 1)


@pytest.mark.slow
def test_the_same_command_writes_the_same_bytes(world):
    before = contents(world / "docs")
    main([*FLAGS, *KNOWING, "--only", "walks", "inpainting", "words"])
    assert contents(world / "docs") == before


@pytest.mark.slow
@pytest.mark.parametrize("name", ["edits.png", "styles.png", "walk-noise.gif"])
def test_the_commands_on_the_page_draw_the_same(world, tmp_path, name):
    page = (world / "docs" / "gallery.md").read_text(encoding="utf-8")
    [after] = re.findall(rf"\(gallery/{name}\)\n\n((?:    .+\n)+)", page)
    commands = [shlex.split(line) for line in after.splitlines()]
    folders = [tmp_path / str(k) for k in range(len(commands))]
    for words, folder in zip(commands, folders, strict=True):
        assert words[:2] == ["python", "sample.py"] and words[-2] == "--out"
        sample.main([*words[2:-1], str(folder)])
    gallery = small_gallery(*KNOWING)
    found = {sheet.name: sheet for section in SECTIONS for sheet in sheets(gallery, section)}
    assert found[name].finish(folders) == (world / "docs" / "gallery" / name).read_bytes()


def test_styles_and_languages_are_left_out_unless_they_are_asked_for(folder):
    page = page_text(small_gallery(), "")
    assert "got no `--styles`" in page and "got no `--languages` besides English" in page
    assert not {"styles.png", "languages.png", "walk-styles.gif"} & named_in(page)
    with pytest.raises(UserError, match="ask for it by --styles"):
        main([*FLAGS, "--only", "styles"])
    with pytest.raises(UserError, match="guidance"):
        main([*FLAGS, "--only", "guidanc"])


def test_things_are_asked_for_by_their_names_in_each_language(folder):
    [sheet] = sheets(small_gallery(*KNOWING), "languages")
    axes = [call.words[1] for call in sheet.calls]
    assert [parse_axis(axis).values for axis in axes] == [
        ("rocket, flat style", "red heart, flat style"),
        ("rakete, flat style", "rotes herz, flat style"),
        ("火箭, flat style", "红心, flat style"),
    ]
    [plain] = sheets(small_gallery("--languages", "de"), "languages")
    assert plain.calls[1].words[1] == "prompt=rakete,rotes herz"


@pytest.mark.parametrize("language", ["en", *LANGUAGES])
def test_all_things_have_names_in_the_languages_of_the_recipe(language):
    names = make_gallery(Config(), SIDE).names_of_things(language)
    assert len(set(names)) == len(gallery_sections.THINGS)
    assert language != "en" or names == list(gallery_sections.THINGS)


def test_a_language_without_names_is_refused(folder):
    with pytest.raises(UserError, match="no names in the language 'xx'"):
        page_text(small_gallery("--languages", "xx"), "")


def test_words_are_quoted_for_a_shell():
    for word in ("red", "three o'clock", 'prompt="a, b",c', 'it\'s "so"', "a $b", "火箭", ""):
        assert shlex.split(quoted(word)) == [word]
    assert quoted("three o'clock") == '"three o\'clock"'
    assert parse_axis(prompt_axis(["a, b", "c"])).values == ("a, b", "c")


# The page of the shipped weights.


def shipped_config() -> Config:
    """Return the flags that the page says it was written with."""
    page = (ROOT / "docs" / "gallery.md").read_text(encoding="utf-8")
    [command] = re.findall(r"written by `python docs/make_gallery\.py(.*?)`", page)
    return parse(Config, shlex.split(command), None)


def test_the_page_is_what_the_program_writes(monkeypatch):
    monkeypatch.chdir(ROOT)
    for name, value in SHIPPED.items():
        monkeypatch.setattr(gallery_sections, name, value)
    config = shipped_config()
    gallery = make_gallery(config, TextToImage.load(config.model).size)
    page = (ROOT / "docs" / "gallery.md").read_text(encoding="utf-8")
    assert page == page_text(gallery, command_of(config)), (
        "docs/gallery.md is out of date: python docs/make_gallery.py"
    )
    files = contents(ROOT / "docs" / "gallery")
    assert set(files) == named_in(page)
    assert sum(map(len, files.values())) < LARGEST
