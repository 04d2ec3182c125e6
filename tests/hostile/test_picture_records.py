"""Pictures that somebody else made, given to `sample.py --reproduce`: their records choose nothing.

No file is opened because a record names it, but for a model in the working folder; every entry has
its type and bounds.
"""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from generation.metadata import encode_image
from tests.helpers.hostile import HostileCase, check_case, in_ci, refused, script

GOOD = {"prompt": "red", "seed": 3, "steps": 1, "model": "ldm", "hashes": {"unet": "0" * 64}}
MODEL = ("--model", "world/ldm")


def write(record: object, folder: Path, name: str = "in.png") -> None:
    """Write a picture with this record; a text is the JSON itself."""
    text = record if isinstance(record, str) else json.dumps(record)
    info = Image.new("RGB", (32, 32))
    kind = {"png": "png", "jpg": "jpeg", "webp": "webp"}[name.split(".")[-1]]
    (folder / name).write_bytes(with_text(encode_image(info, {**GOOD}, kind), text, kind))


def with_text(content: bytes, text: str, kind: str) -> bytes:
    """Put a text in place of the record."""
    from io import BytesIO

    from PIL.PngImagePlugin import PngInfo

    from generation.metadata import UNICODE, USER_COMMENT

    out, image = BytesIO(), Image.open(BytesIO(content))
    if kind == "png":
        info = PngInfo()
        info.add_itxt("latentsmith", text)
        image.save(out, "PNG", pnginfo=info)
    else:
        exif = Image.Exif()
        exif.get_ifd(0x8769)[USER_COMMENT] = UNICODE + text.encode("utf-16-be", "surrogatepass")
        image.save(out, kind.upper(), exif=exif.tobytes())
    return out.getvalue()


def changed(pattern: str, name: str = "", **entries: Any) -> HostileCase:
    """The record with other entries."""
    shown = json.dumps(entries)[:80]
    return HostileCase(
        name or shown, partial(write, {**GOOD, **entries}), reproduce(), refused(pattern)
    )


def text(name: str, content: str, pattern: str = r"in\.png.*record") -> HostileCase:
    """A record that is not what it should be."""
    return HostileCase(name, partial(write, content), reproduce(), refused(pattern))


def reproduce(*flags: str, file: str = "in.png") -> Any:
    return script("sample", "--reproduce", file, "--out", "out", "--device", "cpu", *MODEL, *flags)


HUGE = 10**30
CASES = [
    changed("162624|unet", name="another model"),
    changed("compile.*no", compile="no"),
    changed("compile.*1", compile=1),
    changed("ema.*true", ema="true"),
    changed("dtype.*fp7", dtype="fp7"),
    changed("dtype.*5", dtype=5),
    changed("count", count=1000000000),
    changed("count", count=1),
    changed("seed", seed="1-100000"),
    changed("seed", seed=-1),
    changed("seed", seed=2**63),
    changed("seed", seed=HUGE),
    changed("seed", seed=1.5),
    changed("seed", seed=True),
    changed("seed", seed=None),
    changed("seed", seed=[1]),
    changed("record", prompt=5),
    changed("record", prompt=None),
    changed("1,000,000", name="a long prompt", prompt="x" * 1_000_000),
    changed("record|prompt", prompt=["a"]),
    changed("height.*too large", height=HUGE),
    changed("width.*65536", width=-5),
    changed("12992|unet", width=12992, height=12992),
    changed("width.*x", width="x"),
    changed("steps", steps=HUGE),
    changed("steps", steps=0),
    changed("steps.*many", steps="many"),
    changed("steps", steps=1e308),
    changed("guidance.scale.*1000", guidance_scale=1e30),
    changed("guidance.scale", guidance_scale="NaN"),
    changed("guidance.interval", guidance_interval=[0, 1, 2]),
    changed("guidance.interval", guidance_interval=5),
    changed("sampler.*evil", sampler="evil"),
    changed("sampler", sampler=["ddim"]),
    changed("times", times="999"),
    changed("timesteps|times", name="a million times", times=[999.0] * 1_000_000),
    changed("batch.size.*4096", batch_size=10**9),
    changed("batch.size", batch_size=0),
    changed("batch.size", batch_size="4"),
    changed("interpolate.*100000", interpolate=10**9, stations=[{"seed": 1}, {"seed": 2}]),
    changed("interpolate", interpolate=-1),
    changed("fps", fps=0, interpolate=2, stations=[{"seed": 1}, {"seed": 2}]),
    changed("fps", fps="fast"),
    changed("video.*avi", video="avi"),
    changed("stations", stations={}),
    changed("stations", stations=[]),
    changed("stations", stations=["x"]),
    changed("model", stations=[{"seed": 1, "model": "/etc"}]),
    changed("10,000|stations", name="many stations", stations=[{"seed": 1}] * 20_000),
    changed("hashes", hashes=[]),
    changed("hashes", hashes={"unet": 5}),
    changed("unet", hashes={"unet": "x" * 100_000}),
    changed("files", files=["/etc/passwd"]),
    changed("files", files={"/etc/passwd": 1}),
    changed("--init-image.*passwd", init_image="/etc/passwd", files={"/etc/passwd": "0" * 64}),
    changed("--init-image", init_image="/dev/zero"),
    changed("init.image", init_image=5),
    changed("--mask.*x", init_image=None, mask="x"),
    changed("--style-image", style_image="../../x.png"),
    changed("--weak-model", weak_model="/tmp"),
    changed("x.*--lora", lora="../../x", lora_scale=1.0),
    changed("lora.scale", lora_scale="big"),
    changed("lora.scale.*1000", lora_scale=1e300),
    changed("--init-image", init_image="x", upscale=10**9),
    changed("resample|--mask", resample=10**9),
    changed("__class__", __class__="os.system"),
    changed("there is no option", name="a long name", **{"x" * 100_000: 1}),
    changed("there is no option", name="an escape", **{"\x1b[31m": 1}),
    changed("negative.prompt", negative_prompt=5),
    changed("character", negative_prompt="\ud800"),
    changed("character", prompt="a\udcffb"),
    changed("32", name="many parts", prompt=" AND ".join("x" * 500)),
    changed(r"\)|bracket", prompt="(((red"),
    text("no JSON", "{"),
    text("a list", "[]"),
    text("a number", "5"),
    text("null", "null"),
    text("empty", ""),
    text("nested", "[" * 100_000),
    text("nested objects", '{"prompt": "x", "a":' * 5000 + "1" + "}" * 5000),
    text("a long number", '{"prompt": "red", "seed": ' + "9" * 5000 + "}"),
    text("not a number", '{"prompt": "red", "seed": NaN}', r"in\.png.*record.*NaN"),
    text("infinity", '{"prompt": "red", "guidance_scale": 1e999}', r"in\.png.*record.*1e999"),
    text("an escape alone", "\x1b[31mred"),
    text("large", '{"prompt": "red", "a": "' + "x" * 17_000_000 + '"}', r"in\.png.*16"),
    HostileCase(
        "a model outside the working folder",
        partial(write, {**GOOD, "model": "/etc/ldm"}),
        script("sample", "--reproduce", "in.png", "--out", "out"),
        refused("--model.*0000"),
    ),
    HostileCase(
        "a model above the working folder",
        partial(write, {**GOOD, "model": "../world/ldm"}),
        script("sample", "--reproduce", "in.png", "--out", "out"),
        refused("--model.*0000"),
    ),
    HostileCase(
        "a model behind a link",
        partial(write, {**GOOD, "model": "world/ldm"}),
        script("sample", "--reproduce", "in.png", "--out", "out"),
        refused("--model.*0000"),
    ),
    *(
        HostileCase(
            f"a model named {name[:20]!a}",
            partial(write, {**GOOD, "model": name}),
            script("sample", "--reproduce", "in.png", "--out", "out"),
            refused("--model"),
        )
        for name in ("", ".", "..", "/", "\0", "x" * 100_000, "\x1b[31m", "a/../..", "C:\\x")
    ),
    *(
        HostileCase(
            f"compile of {name}",
            partial(write, {**GOOD, "compile": "no"}, name=name),
            reproduce(file=name),
            refused("compile.*no"),
        )
        for name in ("in.jpg", "in.webp")
    ),
]


@pytest.mark.parametrize("case", in_ci(CASES, 10))
def test_a_record_is_refused_or_obeyed_within_bounds(case, world, tmp_path):
    check_case(case, world, tmp_path)
