"""sample.py beyond a prompt and a picture: files in, files out, and the same picture again."""

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import sample
from generation.metadata import encoded, read_record
from generation.options import Options
from generation.output import plan_names, slug
from generation.prompts import line_of, pictures_of, read_lines
from generation.seeds import parse_seeds
from ldm import TextToImage
from tests.helpers.bad_calls import command, refusal
from tests.helpers.images import picture


def drawn(world: Path, out: Path, *flags: object, prompts: Sequence[str] = ()) -> list[Path]:
    """What lies in the folder then. prompts: after "red"."""
    red, *rest = command(sample, world, out, *flags)
    sample.main([red, *prompts, *rest])
    return sorted(path for path in out.iterdir() if path.is_file())


def draw_again(capsys, out: Path, file: Path, *flags: object) -> Path:
    capsys.readouterr()
    given = ("--from-png", file, "--out", out, "--device", "cpu", *flags)
    sample.main([str(word) for word in given])
    assert f"the same pixels as {file}" in capsys.readouterr().out
    return out / "00000.png"


@pytest.fixture(scope="module")
def given(tmp_path_factory) -> Path:
    return picture(tmp_path_factory.mktemp("given") / "given.png", size=(32, 32))


# The same picture again.


FLAGS = {
    "text": ("--seed", 7, "-n", 2, "--negative-prompt", "café", "--guidance-interval", 0, 0.5),
    "sampler": ("--sampler", "dpmpp_2m_sde", "--steps", 3, "--eta", 0.5, "--spacing", "karras"),
    "times": ("--times", 999, 500.5, 20, "--steps", 25, "--guidance-scale", 1),
    "image": ("--init-image", "GIVEN", "--strength", 0.5, "--steps", 2),
    "style": ("--style-image", "GIVEN", "--source-prompt", "a cat", "--variation", 0.3),
    "window": ("--width", 64, "--window", 32),
    "dtype": ("--dtype", "bf16"),
    "batch size": ("--batch-size", 3, "-n", 2),
    "prompt": ("--negative-prompt", "a (cat:1.5)", "--guidance-parallel", 0, "--steps", 2),
    "caption": ("--plain-prompts", "--negative-prompt", "a (cat", "--guidance-max-norm", 9),
    "weak": ("--weak-model", "WORLD/ldm", "--guidance-momentum", -0.5, "--steps", 2),
}


@pytest.mark.parametrize("kind", FLAGS)
def test_a_picture_is_drawn_again_from_its_file(world, tmp_path, capsys, given, kind):
    places = {"GIVEN": given, "WORLD/ldm": world / "ldm"}
    flags = [places.get(flag, flag) for flag in FLAGS[kind]]
    drawn(world, tmp_path / "first", *flags)
    file = max((tmp_path / "first").glob("0*.png"))
    again = draw_again(capsys, tmp_path / "again", file)
    with Image.open(file) as first, Image.open(again) as second:
        assert first.tobytes() == second.tobytes() and first.text == second.text


def test_another_model_cannot_draw_it_again(world, tmp_path, capsys):
    drawn(world, tmp_path)
    model = TextToImage.load(world / "ldm")
    model.unet.conv_out.bias.data += 1
    model.save(tmp_path / "other" / "model")
    flags = ["--from-png", str(tmp_path / "00000.png"), "--out", str(tmp_path / "again")]
    message = refusal(capsys, sample, [*flags, "--model", str(tmp_path / "other")])
    assert "drawn by another model: its unet has sha256" in message
    assert not (tmp_path / "again").exists()
    assert "leave out --steps" in refusal(capsys, sample, [*flags, "--steps", "3"])
    assert "give no prompts" in refusal(capsys, sample, [*flags, "red"])


def test_a_weak_model_is_known_by_its_hash_wherever_it_lies(world, tmp_path, capsys):
    shutil.copytree(world / "ldm", tmp_path / "weak")
    drawn(world, tmp_path / "first", *FLAGS["weak"][2:], "--weak-model", tmp_path / "weak")
    file = tmp_path / "first" / "00000.png"
    moved = (tmp_path / "weak").rename(tmp_path / "moved")
    draw_again(capsys, tmp_path / "again", file, "--weak-model", moved)
    other = TextToImage.load(moved)
    other.unet.conv_out.bias.data += 1
    other.save(moved / "model")
    flags = ["--out", str(tmp_path / "third"), "--device", "cpu", "--weak-model", str(moved)]
    message = refusal(capsys, sample, [*flags, "--from-png", str(file)])
    assert re.search("its weak_model has sha256 .*Name the right one by --weak-model", message)
    drawn(world, tmp_path / "alone")
    message = refusal(capsys, sample, [*flags, "--from-png", str(tmp_path / "alone" / "00000.png")])
    assert "drawn without a weaker model; leave out --weak-model" in message
    assert not (tmp_path / "third").exists()


def test_what_is_not_the_same_ends_with_an_error(world, tmp_path, capsys):
    file = tmp_path / "00000.png"
    drawn(world, tmp_path)
    with Image.open(file) as image:
        changed, record = np.asarray(image).copy(), read_record(file)
    changed[0, 0, 0] ^= 1
    file.write_bytes(encoded(Image.fromarray(changed), record))
    flags = ["--from-png", str(file), "--out", str(tmp_path / "again"), "--device", "cpu"]
    assert "the pixels differ from those of" in refusal(capsys, sample, flags)


def test_files_it_was_made_from_are_checked(world, tmp_path, capsys):
    start = picture(tmp_path / "start.png", size=(32, 32))
    drawn(world, tmp_path / "first", "--init-image", start)
    picture(start, seed=1, size=(32, 32))
    flags = ["--from-png", str(tmp_path / "first" / "00000.png"), "--out", str(tmp_path / "again")]
    assert "was made from" in refusal(capsys, sample, flags)
    start.unlink()
    assert "cannot be read" in refusal(capsys, sample, flags)


def test_a_picture_from_elsewhere_says_nothing(tmp_path, capsys, given):
    flags = ["--from-png", str(given), "--out", str(tmp_path / "out")]
    assert "does not say how it was made" in refusal(capsys, sample, flags)


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_metadata_in_every_format(tmp_path, kind):
    record = {"prompt": "ein café 🎈", "seed": 2**63 - 1, "times": [999, 0.5], "hashes": {"a": "b"}}
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8))
    file = tmp_path / "picture"
    file.write_bytes(encoded(image, record, kind))
    assert read_record(file) == record
    with Image.open(file) as again:
        assert again.format == kind.upper() and not again.getexif().get(0x0112)


def test_formats_of_files(world, tmp_path, capsys):
    files = drawn(world, tmp_path, "--format", "webp", "-n", 2, "--quality", 80)
    assert [file.name for file in files] == ["00000.webp", "00001.webp", "grid-0000.webp"]
    assert tmp_path / "00000.jpg" in drawn(world, tmp_path, "--format", "jpeg")
    flags = ("--from-png", tmp_path / "00000.jpg", "--out", tmp_path / "again", "--device", "cpu")
    sample.main([str(flag) for flag in flags])
    assert "not compared" in capsys.readouterr().out
    with pytest.raises(ValueError, match="JPEG has no RGBA pictures"):
        encoded(Image.new("RGBA", (8, 8)), {}, "jpeg")


# Prompt files.


def write(folder: Path, name: str, text: str) -> Path:
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


def test_lines_have_options_of_their_own(world, tmp_path):
    lines = [
        {"prompt": "red", "steps": 2, "seed": 40, "count": 2},
        {"prompt": "green"},
        {"prompt": "blue", "seed": "5,9", "guidance_scale": 1, "height": 40, "spacing": "linspace"},
    ]
    file = write(tmp_path, "p.jsonl", "\n\n".join(json.dumps(line) for line in lines) + "\n")
    arguments = command(sample, world, tmp_path / "out", "--prompts", file, "--seed", 3)
    arguments.remove("red")
    sample.main(arguments)
    records = []
    for path in sorted((tmp_path / "out").glob("0*.png")):
        with Image.open(path) as image:
            records.append(json.loads(image.text["latentsmith"]))
            assert image.height == (40 if records[-1]["prompt"] == "blue" else 32)
    told = [(r["prompt"], r["seed"], r["steps"], r["guidance_scale"]) for r in records]
    assert told == [
        ("red", 40, 2, 4.0),
        ("red", 41, 2, 4.0),
        ("green", 5, 1, 4.0),  # the third picture of the call
        ("blue", 5, 1, 1.0),
        ("blue", 9, 1, 1.0),
    ]
    assert records[-1]["spacing"] == "linspace"


BROKEN = {
    '{"prompt": "red"': "this is not JSON",
    '["red"]': "a line must be an object such as",
    '{"prompt": 3}': "a line must be an object such as",
    '{"prompt": "red", "step": 3}': "no option 'step'. Did you mean 'steps'",
    '{"prompt": "red", "steps": "many"}': 'steps is "many", which is not of the kind whole number',
    '{"prompt": "red", "steps": 0}': "a sampler takes 1 to 1000 steps, not 0",
    '{"prompt": "red", "steps": true}': "steps is true",
    '{"prompt": "red", "strength": 2, "init_image": "x.png"}': "--strength is 2.0; it must be from",
    '{"prompt": "red", "outpaint": [1, 2]}': "outpaint is [1, 2], which is not of the kind list",
    '{"prompt": "red", "sampler": "magic"}': "no sampler is called 'magic'",
    '{"prompt": "red", "seed": "5-1"}': "--seed 5-1 is not understood",
    '{"prompt": "red", "mask": "m.png"}': "--mask is for --init-image, which is not given",
}


@pytest.mark.parametrize("line", BROKEN)
def test_a_broken_line_is_named(tmp_path, line):
    file = write(tmp_path, "p.jsonl", '{"prompt": "good"}\n\n' + line + "\n")
    with pytest.raises(ValueError) as refused:
        read_lines(file, Options())
    assert str(refused.value).startswith(f"{file}, line 3: ")
    assert BROKEN[line] in str(refused.value)


def test_a_line_of_text_is_never_json(tmp_path):
    file = write(tmp_path, "p.txt", '{"prompt": "red"}\n')
    assert read_lines(file, Options())[0].prompt == '{"prompt": "red"}'


def test_what_is_recorded_is_a_line():
    options = Options(height=64, guidance_interval=(0.1, 0.9), init_image=Path("a.png"), count=1)
    record = {k: str(v) if isinstance(v, Path) else v for k, v in options.changed().items()}
    line = line_of(json.loads(json.dumps({"prompt": "red", "seed": 3, **record})), Options())
    (one,) = pictures_of([line])
    assert one.seed == 3 and one.options == options


# Seeds.


def test_seeds():
    assert parse_seeds("7", 3) == (7,)
    assert parse_seeds("1,5, 10-12", 1) == (1, 5, 10, 11, 12)
    for text in ("", "a", "1,,2", "-1", "3-1", str(2**63), "1.5", "1;2"):
        with pytest.raises(ValueError, match="is not understood at"):
            parse_seeds(text, 1)
    with pytest.raises(ValueError, match="leave out --count 2"):
        parse_seeds("1,2", 2)
    with pytest.raises(ValueError, match="more than 100000 pictures"):
        parse_seeds("0-9999999999", 1)


def test_a_list_of_seeds_is_drawn_for_every_prompt(world, tmp_path):
    flags = ("--seed", "4,8-9", "--name", "{prompt}-{seed}", "--no-grid")
    names = [path.stem for path in drawn(world, tmp_path, *flags, prompts=["green"])]
    assert names == ["green-4", "green-8", "green-9", "red-4", "red-8", "red-9"]


# Names.


def test_names(tmp_path):
    pictures = [{"seed": 5, "prompt": "a/b: c?", "sampler": "ddim", "steps": 7}] * 2
    paths = plan_names(tmp_path, "{prompt}-{seed:04d}-{number}", [".png"], pictures)
    assert [path.name for path in paths] == ["a-b-c-0005-0", "a-b-c-0005-1"]
    write(tmp_path, "x-0041.png", "")
    write(tmp_path, "x-0050.jpg", "")
    (path,) = plan_names(tmp_path, "x-{number:04d}", [".png", ".st"], pictures[:1])
    assert path.name == "x-0042"
    assert slug("") == "no-prompt" and slug("../..") == "no-prompt"
    for pattern, message in {
        "same": "same would be that of several pictures",
        "{nonsense}": "with any of {number}, {seed}",
        "a/{number}": "without a folder",
        "{number": "is not a pattern",
        "{prompt:d}": "cannot be filled in",
    }.items():
        with pytest.raises(ValueError, match=message):
            plan_names(tmp_path, pattern, [".png"], pictures)
    with pytest.raises(ValueError, match="x-0041 is there already"):
        plan_names(tmp_path, "x-0041", [".png"], pictures[:1])


# What is written besides.


def test_latents_are_those_of_the_picture(world, tmp_path):
    drawn(world, tmp_path, "--save-latents")
    latents = load_file(tmp_path / "00000.safetensors")["latents"]
    image = TextToImage.load(world / "ldm").to_picture(latents)
    with Image.open(tmp_path / "00000.png") as written:
        assert image.tobytes() == written.tobytes()


def test_previews_are_asked_for(world, tmp_path):
    drawn(world, tmp_path, "-n", 2, "--steps", 4, "--preview-every", 2)
    names = sorted(path.name for path in (tmp_path / "previews").iterdir())
    assert names == [f"0000{k}-00{call}.png" for k in (0, 1) for call in (2, 4)]
    last, final = tmp_path / "previews" / "00001-004.png", tmp_path / "00001.png"
    with Image.open(last) as preview, Image.open(final) as result:
        assert preview.tobytes() == result.tobytes()  # the last call gives the result
    drawn(world, tmp_path / "none")
    assert not (tmp_path / "none" / "previews").exists()


# When it goes wrong.


@pytest.mark.parametrize("weak", [False, True])
def test_not_a_number_in_half_precision_is_drawn_once_more_in_fp32(
    world, tmp_path, capsys, monkeypatch, weak
):
    forward, flags = torch.nn.Module.__call__, ("--weak-model", world / "ldm") * weak
    (exact,) = drawn(world, tmp_path / "exact", *flags)

    def overflows(self, *args, **kwargs):
        output = forward(self, *args, **kwargs)
        if type(self).__name__ == "UNet" and output.dtype != torch.float32:
            return output * float("nan")
        return output

    monkeypatch.setattr(torch.nn.Module, "__call__", overflows)
    (again,) = drawn(world, tmp_path / "half", "--dtype", "bf16", *flags)
    assert "Now once more in fp32" in capsys.readouterr().err
    assert again.read_bytes() == exact.read_bytes()


def test_not_a_number_is_an_error_and_no_picture(world, tmp_path, capsys):
    for part in ("unet", "autoencoder"):
        broken = TextToImage.load(world / "ldm")
        module = broken.unet.conv_out if part == "unet" else broken.autoencoder.decoder.conv_out
        module.bias.data.fill_(float("nan"))
        broken.save(tmp_path / part / "model")
        arguments = command(sample, world, tmp_path / "out", "--model", tmp_path / part)
        assert "not finite" in refusal(capsys, sample, arguments)
    assert not list((tmp_path / "out").glob("*.png"))


def test_pictures_to_begin_with(world, given, tmp_path):
    pipeline = TextToImage.load(world / "ldm")
    text = write(tmp_path, "text.png", "no picture")
    tiny = picture(tmp_path / "tiny.png", size=(2, 2))
    odd = picture(tmp_path / "odd.png", size=(37, 32))
    small = picture(tmp_path / "small.png", size=(16, 32))
    black = tmp_path / "black.png"
    Image.new("L", (32, 32)).save(black)
    for pattern, options in {
        "text.png: is not an image": {"init_image": text},
        "nowhere.png: cannot be read": {"style_image": tmp_path / "nowhere.png"},
        "2x2 pixels; both sides must be at least 8": {"init_image": tiny},
        "37x32 pixels.*multiples of 8.*40x32": {"init_image": odd},
        "mask is 16x32, the picture 32x32": {"init_image": given, "mask": small},
        "the mask is all black": {"init_image": given, "mask": black},
        "37x32.*multiples of 8": {"init_image": given, "outpaint": (0, 0, 5, 0)},
        "cannot grow": {"init_image": given, "outpaint": (0, 0, 0, 0)},
        "enlarged 2 times or more": {"init_image": given, "upscale": 1},
        "32000x32000 is asked for.*1024 million": {"init_image": given, "upscale": 1000},
        "32x320000032 is asked for": {"init_image": given, "outpaint": (0, 0, 0, 320000000)},
        "800000x320 is asked for": {"init_image": given, "width": 800000, "height": 320},
    }.items():
        with pytest.raises(ValueError, match=pattern):
            Options(**options).task(pipeline)
    resized = Options(init_image=odd, width=40, height=64).task(pipeline)
    assert resized.size == (64, 40)


def test_options_that_make_no_sense(refused, given):
    """All refused before a model is opened."""
    init = ("--init-image", given)
    for pattern, flags in {
        "--strength is 1.5; it must be from 0 to 1": (*init, "--strength", 1.5),
        "--strength is nan": (*init, "--strength", "nan"),
        "--strength is for --init-image or --style-image": ("--strength", 0.5),
        "--mask is for --init-image": ("--mask", given),
        "--mask and --upscale do not go together": (*init, "--mask", given, "--upscale", 2),
        "--init-image and --style-image do not": (*init, "--style-image", given),
        "--resample is for --mask": ("--resample", 2),
        "goes with the sampler ddpm": (*init, "--mask", given, "--resample", 2),
        "--source-prompt is for --style-image": ("--source-prompt", "x"),
        "steps, not 1001": ("--steps", 1001),
        "the sampler dpmpp_2m has no eta": ("--eta", 0.5),
        "--times are all steps there are": ("--times", 999, 500),
        "--negative-prompt is for guided": ("--guidance-scale", 1, "--negative-prompt", "x"),
        "--guidance-rescale is for guided": ("--guidance-scale", 0, "--guidance-rescale", 0.5),
        "--quality is 101; it must be from 1 to 100": ("--quality", 101),
        "--quality is for --format jpeg and webp": ("--quality", 80),
        "--lora-scale is for --lora, which is not given": ("--lora-scale", 0.5),
        "--seed 3-1 is not understood": ("--seed", "3-1"),
    }.items():
        refused(sample, pattern, *flags)
