"""What the page offers: models, LoRAs and weak models of its runs; what it draws with them."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from generation.metadata import read_record
from generation.options import GenerationOptions
from generation.prompts import PromptEntry
from tests.helpers.page.runs import make_page_runs
from tests.helpers.sample_runs import run_sample
from web.drawing import DrawCall, images_of
from web.model_facts import ModelFacts, look_at
from web.model_lists import find_loras, find_models, find_weak_models
from web.open_models import ModelChoice, OpenModels

HOSTILE = [
    "/etc/passwd",
    "..",
    ".",
    "runs/../style",
    "style",
    "a\0b",
    "x" * 5000,
    "%2e%2e/outside",
    "~",
    "https://other.example/lora.safetensors",
]


@pytest.fixture(scope="module")
def place(world, tmp_path_factory):
    folder = tmp_path_factory.mktemp("lists")
    make_page_runs(world, folder / "runs", folder / "outside")
    return folder


@pytest.fixture
def models(world, place):
    return OpenModels([world / "ldm"], place / "runs", torch.device("cpu"))


def last_parts(names, runs):
    return [Path(name).relative_to(runs).as_posix() for name in names]


def test_runs_are_listed_by_what_they_hold(models, place):
    runs = place / "runs"
    kinds = ["classes", "inpaint", "plain", "restore", "smaller", "unconditional", "upscale"]
    assert last_parts(find_models([], runs), runs) == kinds
    assert last_parts(find_loras(runs), runs) == ["style", "files/other.safetensors"]
    weak = ["earlier/state/step-0000007", *kinds]
    assert sorted(last_parts(find_weak_models(runs), runs)) == sorted(weak)
    assert not find_loras(place / "nowhere") and not find_weak_models(place / "nowhere")


@pytest.mark.parametrize("name", HOSTILE)
def test_no_other_names_are_opened(models, name):
    model = models.names()[0]
    with pytest.raises(ValueError, match="there is no LoRA"):
        models.open(ModelChoice(model, name))
    with pytest.raises(ValueError, match="there is no weak model"):
        models.weak_model(name)
    with pytest.raises(ValueError, match="there is no model"):
        models.open(ModelChoice(name))
    assert not models.opened


def test_paths_of_what_lies_elsewhere_or_behind_links_are_not_opened(models, place):
    paths = [place / "outside" / "style", place / "outside" / "style" / "model"]
    runs = place / "runs"
    paths += [runs / "linked", runs / "half-linked", runs / "files" / "linked.safetensors"]
    paths += [runs / "style" / "model" / ".." / ".." / "style", runs / "files"]
    for path in paths:
        with pytest.raises(ValueError, match="there is no LoRA"):
            models.open(ModelChoice(models.names()[0], path.as_posix()))
    for run in (place / "outside" / "earlier", runs / "linked-too", runs / "half-linked"):
        for path in (run, run / "state" / "step-0000007"):
            with pytest.raises(ValueError, match="there is no weak model"):
                models.weak_model(path.as_posix())


@pytest.mark.parametrize("scale", [None, float("nan"), float("inf"), 1e9])
def test_the_scale_of_a_lora_is_a_number_within_bounds(scale):
    with pytest.raises(ValueError, match="scale of the LoRA"):
        ModelChoice.of("a", "b", scale)
    assert ModelChoice.of("a", "", scale) == ModelChoice("a")


def draw(models, choice, folder, **options):
    call = DrawCall(
        models.open(choice), images_of(PromptEntry("red", GenerationOptions(**options))), folder
    )
    *_, last = call
    [file] = last.files
    return file


def check_that_forms_are_filled(models, folder, lora, weak):
    """Pictures fill the form with the names of the list, if it has them."""
    pytest.importorskip("gradio")
    from web.option_form import call_of_picture, lora_of, values_of

    names = ["steps", "lora", "lora_scale", "weak_model"]
    expected = {"plain": ["", 1.0, ""], "lora": [lora, 0.5, ""], "weak": ["", 1.0, weak]}
    for case, values in expected.items():
        entry, call = call_of_picture(folder / case / "00000.png", models)
        assert values_of(entry.options, names, lora_of(call, models)) == [2, *values]
    nothing = OpenModels([], folder / "no-runs", torch.device("cpu"))
    assert lora_of(call_of_picture(folder / "lora" / "00000.png", nothing)[1], nothing).lora == ""
    with pytest.raises(ValueError, match="0 of this name"):
        call_of_picture(folder / "weak" / "00000.png", nothing)


@pytest.mark.slow  # gradio takes many seconds to load
def test_the_page_draws_with_a_lora_and_a_weak_model_as_sample_py_does(
    models, world, place, tmp_path
):
    lora, weak = models.lora_names()[0], place / "runs" / "earlier" / "state" / "step-0000007"
    name = (place / "runs" / "plain").as_posix()
    cases = {
        "plain": (ModelChoice(name), {}, ()),
        "lora": (ModelChoice(name, lora, 0.5), {}, ("--lora", lora, "--lora-scale", 0.5)),
        "weak": (
            ModelChoice(name),
            {"weak_model": models.weak_model(weak.as_posix())},
            ("--weak-model", weak),
        ),
    }
    pixels = set()
    for case, (choice, options, flags) in cases.items():
        file = draw(models, choice, tmp_path / case, steps=2, **options)
        [expected] = run_sample(
            world, tmp_path / f"{case}-s", "--model", name, "--steps", 2, *flags
        )
        assert Image.open(file).tobytes() == Image.open(expected).tobytes(), case
        assert read_record(file) == read_record(expected), case
        pixels.add(Image.open(file).tobytes())
    assert len(pixels) == 3
    check_that_forms_are_filled(models, tmp_path, lora, weak.as_posix())
    record = read_record(tmp_path / "lora" / "00000.png")
    # One with the LoRA alone is open, too; what it added is no part of the model.
    assert models.has_drawn(name, record["model"], record["hashes"])


def test_the_configuration_tells_what_a_model_does(world, place):
    runs, found = place / "runs", {}
    for name in ("restore", "inpaint", "upscale", "smaller", "classes", "unconditional"):
        facts = look_at(runs / name)
        found[name] = (facts.kind, facts.reads, facts.factor)
    assert found == {
        "restore": ("restore", "texts", None),
        "inpaint": ("inpaint", "texts", None),
        "upscale": ("upscale", "texts", 4),
        "smaller": ("draw", "texts", None),
        "classes": ("draw", "classes", None),
        "unconditional": ("draw", "nothing", None),
    }
    assert look_at(world / "ldm").note == ""
    assert "enlarges pictures 4 times" in look_at(runs / "upscale").note
    assert "no prompt" in look_at(runs / "unconditional").note
    for path in (
        runs / "nowhere",
        runs / "style",
        world / "vae",
        runs / "files" / "other.safetensors",
    ):
        assert look_at(path) == ModelFacts()
