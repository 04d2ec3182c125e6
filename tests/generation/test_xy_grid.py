"""Grids over options: which values an axis takes, which pictures are drawn, and their labels."""

import numpy as np
import pytest
from PIL import Image

from generation.metadata import read_record
from generation.options import GenerationOptions
from generation.prompts import PromptEntry
from generation.xy_grid import (
    VARIED,
    differences,
    labeled_grid,
    parse_axis,
    parse_grid,
    settings_of,
)
from tests.helpers.sample_runs import reproduce, run_sample

ENTRY = PromptEntry("red", GenerationOptions())


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("guidance_scale=1,4.5, 8", (1.0, 4.5, 8.0)),
        ("guidance-scale = 1", (1.0,)),
        ("steps=5,10", (5, 10)),
        ("sampler=ddim, heun", ("ddim", "heun")),
        ("seed=1,5-7", ("1", "5", "6", "7")),
        ("plain_prompts=true,no", (True, False)),
        ("eta=0,1", (0.0, 1.0)),
        ('prompt="red heart, small",blue heart', ("red heart, small", "blue heart")),
    ],
)
def test_values_have_the_type_of_their_option(text, values):
    axis = parse_axis(text)
    assert axis.values == values and len(axis.labels) == len(values)
    assert [type(value) for value in axis.values] == [type(value) for value in values]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "OPTION=VALUE"),
        ("guidance_scale", "OPTION=VALUE"),
        ("guidance=1", "guidance_scale"),
        ("count=1,2", "count"),
        ("init_image=/etc/passwd", "init_image"),
        ("weak_model=/etc", "weak_model"),
        ("steps=1.5", "whole number"),
        ("guidance_scale=nan", "a number"),
        ("guidance_scale=1,,2", "a number"),
        ("guidance_scale=1,1.0", "each of them once"),
        ("plain_prompts=maybe", "true or false"),
        ("seed=3-1", "cannot be read"),
    ],
)
def test_wrong_axes_are_refused(text, words):
    with pytest.raises(ValueError, match=words):
        parse_axis(text)


def test_cells_are_listed_row_by_row_with_the_options_of_both_axes():
    grid = parse_grid("guidance_scale=1,4", "seed=7,9")
    cells = grid.entries(ENTRY)
    found = [(cell.options.seed, cell.options.guidance_scale) for cell in cells]
    assert found == [("7", 1.0), ("7", 4.0), ("9", 1.0), ("9", 4.0)]
    assert all(cell.has_own_seed and cell.prompt == "red" for cell in cells)
    assert grid.caption(3) == "4, 9" and grid.x.labels == ["guidance scale 1", "guidance scale 4"]
    assert parse_grid("", " ") is None


@pytest.mark.parametrize(
    ("x", "y", "entry", "words"),
    [
        ("steps=1", "steps=2", ENTRY, "both axes"),
        ("seed=0-99", "steps=" + ",".join(map(str, range(1, 12))), ENTRY, "100 x 11"),
        ("sampler=ddim,nothing", "", ENTRY, "sampler nothing: .*nothing"),
        ("guidance_scale=1,4", "guidance_rescale=0.5", ENTRY, "guidance scale 1: .*rescale"),
        ("prompt=a,b", "", ENTRY, "leave out 'red'"),
        ("steps=1,2", "", PromptEntry("red", GenerationOptions(count=2)), "one picture"),
        ("steps=1,2", "", PromptEntry("red", GenerationOptions(seed="1,2")), "one picture"),
    ],
)
def test_grids_that_make_no_sense_are_refused(x, y, entry, words):
    with pytest.raises(ValueError, match=words):
        parse_grid(x, y).entries(entry)


def test_every_option_that_can_be_typed_is_offered():
    assert {"prompt", "negative_prompt", "seed", "sampler", "width", "eta", "shift"} <= set(VARIED)
    assert not {"count", "init_image", "mask", "weak_model", "times", "outpaint"} & set(VARIED)


def test_sides_are_labeled_by_what_differs():
    sides = [
        {"model": model, **settings_of(GenerationOptions(steps=5, guidance_scale=scale))}
        for model, scale in (("a", 1.0), ("b", 4.0))
    ]
    assert differences(*sides) == ("a\nguidance scale 1", "b\nguidance scale 4")
    with pytest.raises(ValueError, match="the same"):
        differences(sides[0], sides[0])


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
def test_small_pictures_are_enlarged_without_blur_and_stand_in_order(mode):
    colors = [(250, 0, 0), (0, 250, 0), (0, 0, 250), (250, 250, 0)]
    pictures = [Image.new("RGB", (32, 32), color).convert(mode) for color in colors]
    whole = labeled_grid(pictures, ["x 1", "x 2"], ["y 1", "y 2"], "a title")
    pixels, places = np.asarray(whole), []
    for picture in pictures:
        color = picture.convert("RGB").getpixel((0, 0))
        found = np.argwhere((pixels == color).all(axis=2))
        assert len(found) >= (5 * 32) ** 2
        places.append(tuple(np.median(found, axis=0)))  # the letters may have pixels like it
    (top, left), (_, right), (bottom, _), _ = places
    assert right - left > 160 and bottom - top > 160
    assert np.allclose(places[3], (bottom, right), atol=4)


def test_labels_of_columns_can_stand_below():
    picture = Image.new("RGB", (32, 32), (0, 0, 250))
    sheets = [labeled_grid([picture], ["label"], [""], below=below) for below in (False, True)]
    assert sheets[0].size == sheets[1].size
    for sheet, below in zip(sheets, (False, True), strict=True):
        rows = np.argwhere((np.asarray(sheet) == (0, 0, 250)).all(axis=2))[:, 0]
        ink = np.argwhere((np.asarray(sheet) < 128).all(axis=2))[:, 0]
        assert ink.min() > rows.max() if below else ink.max() < rows.min()


def test_labels_that_are_long_stay_inside():
    pictures = [Image.new("RGB", (48, 64), "red")] * 2
    usual = labeled_grid(pictures, ["a", "b"], ["c"])
    long = labeled_grid(pictures, ["word " * 99, "W" * 999], ["\n\x00" + "row " * 99], "t" * 5000)
    assert long.width > usual.width and long.height < 4 * usual.height


def test_sample_py_draws_a_labeled_grid_and_draws_it_again(world, tmp_path, capsys):
    flags = ("--grid-x", "guidance_scale=1,4", "--grid-y", "steps=1,2", "--seed", 7)
    files = run_sample(world, tmp_path / "out", *flags)
    assert [file.name for file in files] == [*(f"0000{k}.png" for k in range(4)), "grid-0000.png"]
    cells = [read_record(file) for file in files[:4]]
    assert [(c["steps"], c["guidance_scale"]) for c in cells] == [(1, 1), (1, 4), (2, 1), (2, 4)]
    assert {cell["seed"] for cell in cells} == {7}
    record = read_record(files[4])
    assert (record["grid_x"], record["grid_y"]) == (flags[1], flags[3])
    model = ("--model", world / "ldm")
    assert "the same pixels" in reproduce(capsys, files[4], tmp_path / "again", *model)


@pytest.mark.parametrize(
    ("flags", "prompts", "words"),
    [
        (("--grid-x", "steps=1,2"), ("red", "blue"), "one prompt"),
        (("--grid-x", "steps=1,2", "--no-grid"), ("red",), "no-grid"),
        (("--grid-x", "steps=1,2", "--interpolate", 2), ("red",), "interpolate"),
    ],
)
def test_flags_that_do_not_go_with_a_grid(world, tmp_path, flags, prompts, words):
    with pytest.raises(ValueError, match=words):
        run_sample(world, tmp_path / "out", *flags, prompts=prompts)
    assert not (tmp_path / "out").exists()
