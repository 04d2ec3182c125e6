"""export.py: other tools open what it writes, and exporting that again gives the same bytes."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import CLIPTextModel

import export
import sample
import train_ldm
import train_vae
from autoencoder import PRESETS as AUTOENCODERS
from autoencoder import Autoencoder
from commands.export import DTYPES
from conditioning import TextEncoder
from foundation.errors import UserError
from interop.single_file.reader import HEADER
from interop.single_file.writer import header_only_settings
from ldm import TextToImage
from ldm.schedule import ScheduleConfig
from ldm.unet import UNet, UNetConfig
from tests.helpers import compvis_files as compvis
from tests.helpers.bad_calls import command
from tests.helpers.peer_settings import SMALL_UNET
from tests.helpers.random_models import make_pipeline, pixels
from training.cli import run_main

FORMATS = {"diffusers": "model", "single-file": "model.safetensors"}
VARIANCE_PRESERVING = ScheduleConfig()
PROVENANCE = {"steps": 7, "autoencoder": {"steps": 5}}


def make_model(schedule: ScheduleConfig = VARIANCE_PRESERVING, prediction="noise") -> TextToImage:
    """Make a model like SD 2.x, with gelu in the text encoder, and with a scale of 0.3."""
    model = make_pipeline(schedule, prediction)
    model.autoencoder.config = replace(model.autoencoder.config, scaling_factor=0.3)
    return model


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    make_model().save(folder / "model", PROVENANCE)
    return folder


def exported(source: Path, target: Path, format: str, *flags: str) -> Path:
    target.parent.mkdir(exist_ok=True)
    out = target / FORMATS[format] if target.is_dir() or not target.suffix else target
    export.main([str(source), str(out), "--format", format, *flags])
    return out


def contents(path: Path) -> dict[str, bytes]:
    if path.is_file():
        return {"": path.read_bytes()}
    files = [file for file in sorted(path.rglob("*")) if file.is_file()]
    return {str(file.relative_to(path)): file.read_bytes() for file in files}


def read_header(file: Path) -> dict:
    with safe_open(file, framework="pt") as stored:
        return json.loads(stored.metadata()[HEADER])


# Round trips


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("format", FORMATS)
def test_a_second_export_has_the_same_bytes(run, format, dtype, tmp_path):
    one = exported(run, tmp_path / "one", format, "--dtype", dtype)
    other = exported(one, tmp_path / "other", format, "--dtype", dtype)
    assert contents(one) == contents(other)
    assert sorted(p.name for p in (tmp_path / "one").iterdir()) == [FORMATS[format]]


@pytest.mark.parametrize("part", ["vae", "unet", "text-encoder"])
@pytest.mark.parametrize("format", FORMATS)
def test_one_part_is_exported_alone(run, format, part, tmp_path):
    one = exported(run, tmp_path / "one", format, "--part", part)
    other = exported(one, tmp_path / "other", format, "--part", part)
    assert contents(one) == contents(other)
    kind = {"vae": Autoencoder, "unet": UNet, "text-encoder": TextEncoder}[part]
    ours, found = (kind.load(source).state_dict() for source in (run, one))
    if (format, part) != ("single-file", "vae"):  # there the scale is folded in
        assert all(torch.equal(found[name], value) for name, value in ours.items())
    whole = exported(run, tmp_path / "whole", format)
    last = exported(whole, tmp_path / "last", format, "--part", part)
    assert all(
        torch.equal(value, found[name]) for name, value in kind.load(last).state_dict().items()
    )


def test_a_file_and_a_folder_are_converted_into_each_other(run, tmp_path):
    file = exported(run, tmp_path / "1", "single-file")
    folder = exported(file, tmp_path / "2", "diffusers")
    assert contents(exported(folder, tmp_path / "3", "single-file")) == contents(file)
    assert contents(exported(file, tmp_path / "4", "diffusers")) == contents(folder)
    one, other = TextToImage.load(file), TextToImage.load(folder)
    assert one.schedule_config == other.schedule_config
    assert one.unet.config == other.unet.config
    assert one.text_encoder.tokenizer == other.text_encoder.tokenizer
    images = [x(["a cat"], steps=2)[0].tobytes() for x in (one, other)]
    assert images[0] == images[1]
    assert json.loads((folder / "latentsmith.json").read_text())["provenance"] == PROVENANCE


def test_a_foreign_file_is_written_as_it_was(tmp_path):
    """Names and values stay those of Stable Diffusion; only the header changes."""
    tensors = compvis.compvis_autoencoder(compvis.make_autoencoder())
    source = compvis.written(tmp_path, compvis.with_prefix(compvis.AUTOENCODER, tensors))
    written = load_file(exported(source, tmp_path / "again", "single-file", "--part", "vae"))
    expected = load_file(source)
    assert written.keys() == expected.keys()
    assert all(torch.equal(written[name], value) for name, value in expected.items())


# Other tools


def open_in_diffusers(folder: Path, **options) -> diffusers.StableDiffusionPipeline:
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(
        folder, low_cpu_mem_usage=False, **options
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def diffusers_image(theirs: diffusers.StableDiffusionPipeline, ours: TextToImage) -> np.ndarray:
    shape = ours.latent_shape(32, 32)
    latents = torch.randn(1, *shape, generator=torch.Generator().manual_seed(3))
    options = {"num_inference_steps": 5, "guidance_scale": 4.0, "height": 32, "width": 32}
    return theirs("a red heart", latents=latents, output_type="np", **options).images[0] * 255


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # in diffusers
def test_diffusers_opens_a_half_precision_folder_and_draws_the_same(run, tmp_path):
    folder = exported(run, tmp_path / "out", "diffusers", "--dtype", "fp16")
    for file in folder.rglob("*.safetensors"):
        assert {value.dtype for value in load_file(file).values()} == {torch.float16}, file
    # diffusers loads the other components in float32 by default; one precision for all runs.
    assert CLIPTextModel.from_pretrained(folder / "text_encoder").dtype == torch.float32
    theirs, ours = open_in_diffusers(folder), TextToImage.load(folder)
    mine = ours(["a red heart"], steps=5, guidance_scale=4.0, sampler="ddim", seed=3)[0]
    assert np.abs(pixels(mine) - diffusers_image(theirs, ours)).max() <= 1


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # in diffusers
def test_diffusers_opens_a_single_file_and_draws_the_same(run, tmp_path):
    """The weights come from the file, the configs from a folder made of it."""
    file = exported(run, tmp_path / "1", "single-file")
    folder = exported(file, tmp_path / "2", "diffusers")
    configs = tmp_path / "configs"
    shutil.copytree(folder, configs, ignore=shutil.ignore_patterns("*.safetensors"))
    theirs = diffusers.StableDiffusionPipeline.from_single_file(
        str(file), config=str(configs), local_files_only=True
    )
    theirs.set_progress_bar_config(disable=True)
    assert theirs.vae.config.scaling_factor == 0.18215
    ours = TextToImage.load(run)
    mine = ours(["a red heart"], steps=5, guidance_scale=4.0, sampler="ddim", seed=3)[0]
    assert np.abs(pixels(mine) - diffusers_image(theirs, ours)).max() <= 1


@torch.no_grad()
def test_a_single_file_has_the_scale_that_tools_assume(run, tmp_path):
    file = exported(run, tmp_path / "out", "single-file", "--part", "vae")
    ours, theirs = Autoencoder.load(run), Autoencoder.load(file)
    assert (ours.config.scaling_factor, theirs.config.scaling_factor) == (0.3, 0.18215)
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    latents = ours.encode(images).mode()
    raw = theirs.quant_conv(theirs.encoder(images)).chunk(2, dim=1)[0]
    torch.testing.assert_close(raw * 0.18215, latents, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(theirs.encode(images).std, ours.encode(images).std)
    torch.testing.assert_close(theirs.decode(latents), ours.decode(latents), rtol=1e-4, atol=1e-5)


# What is printed


def test_settings_that_only_the_header_contains_are_counted(run, tmp_path, capsys):
    make_pipeline().save(tmp_path / "flow")
    file = exported(tmp_path / "flow", tmp_path / "out", "single-file")
    printed = capsys.readouterr().out
    assert "U-Net, autoencoder, text encoder" in printed
    settings = ("rectified flow", "unet: .*heads", "vae: norm_num_groups .*8", "<.endoftext.>.*!")
    for expected in settings:
        assert any(re.search(expected, line) for line in header_only_settings(file)), expected
    assert f"{len(header_only_settings(file))} of its settings" in printed
    assert f"python export.py {tmp_path / 'flow'} FOLDER --format diffusers" in printed
    assert TextToImage.load(file).denoiser.prediction == "flow"


def test_pooled_text_is_kept_in_a_single_file_and_reported(tmp_path):
    sd15 = {"cross_attention_dim": 768, "attention_head_dim": 8}
    unet = UNet(UNetConfig(**SMALL_UNET | sd15, addition_embed_type="text"))
    unet.save(tmp_path / "unet")
    file = exported(tmp_path / "unet", tmp_path / "out", "single-file", "--part", "unet")
    expected = "unet: addition_embed_type is text, and other tools would assume None"
    assert expected in header_only_settings(file)
    again = UNet.load(file)
    assert again.config == unet.config
    for name, weight in unet.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name]), name


def test_nothing_is_printed_about_a_file_that_every_tool_reads(tmp_path):
    tensors = compvis.compvis_unet(compvis.make_unet("SD 2.x"))
    source = compvis.written(tmp_path, tensors)
    assert not header_only_settings(
        exported(source, tmp_path / "again", "single-file", "--part", "unet")
    )


def test_the_header_contains_the_prediction_type(tmp_path):
    make_model(ScheduleConfig(zero_terminal_snr=True), "velocity").save(tmp_path / "model")
    file = exported(tmp_path, tmp_path / "out", "single-file")
    with safe_open(file, framework="pt") as stored:
        assert stored.metadata()["modelspec.prediction_type"] == "v"
    assert read_header(file)["scheduler"]["rescale_betas_zero_snr"]
    again = TextToImage.load(file)
    assert again.schedule_config == ScheduleConfig(zero_terminal_snr=True)
    assert again.denoiser.prediction == "velocity"


# Refusals


@pytest.mark.parametrize(
    ("flags", "match"),
    [
        (("{run}", "{here}", "--format", "diffusers"), "^error: {here} "),
        (("{run}", "{here}/x.ckpt", "--format", "single-file"), r"\*\.safetensors.* x\.ckpt"),
        (("{run}", "{here}/x.safetensors", "--format", "diffusers"), r"folder.* x\.safetensors"),
        (("{run}", "{here}/x", "--format", "diffusers", "--part", "vae", "--ema"), "--ema"),
        (("{run}", "{here}/x", "--format", "diffusers", "--ema"), "^error: {run}.*single file"),
        (("{here}", "{here}/x", "--format", "diffusers"), "model_index.json"),
        (("{run}/model/vae", "{here}/x", "--format", "diffusers"), "AutoencoderKL"),
    ],
)
def test_mistakes_end_with_one_message_and_nothing_is_written(run, flags, match, tmp_path, capsys):
    words = [word.format(run=run, here=tmp_path) for word in flags]
    with pytest.raises(SystemExit) as stopped:
        run_main(lambda: export.main(words))
    assert stopped.value.code == 2
    pattern = match.format(run=run, here=tmp_path)
    assert re.search(pattern, capsys.readouterr().err)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("format", FORMATS)
def test_values_that_fp16_cannot_hold_are_refused(format, tmp_path):
    autoencoder = Autoencoder(AUTOENCODERS["tiny-32"])
    autoencoder.encoder.conv_in.bias.data[0] = 1e5
    autoencoder.save(tmp_path / "vae")
    with pytest.raises(UserError, match=r"conv_in\.bias .*100000.*float16.*--dtype bf16"):
        exported(tmp_path / "vae", tmp_path, format, "--part", "vae", "--dtype", "fp16")
    assert [path.name for path in tmp_path.iterdir()] == ["vae"]


def test_a_full_disk_leaves_nothing(run, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("interop.safetensors_io.save_file", full)
    for format in FORMATS:
        with pytest.raises(OSError, match="No space"):
            exported(run, tmp_path, format)
        assert not list(tmp_path.iterdir())


def test_text_encoders_that_a_single_file_cannot_express_are_refused(run, tmp_path):
    encoder = TextEncoder.load(run, layer="penultimate", final_norm=False)
    encoder.save(tmp_path / "xl")
    with pytest.raises(UserError, match=r"penultimate layer.*--format diffusers"):
        exported(tmp_path / "xl", tmp_path, "single-file", "--part", "text-encoder")
    shutil.copytree(run / "model", tmp_path / "own")
    vocabulary = tmp_path / "own" / "tokenizer" / "vocab.json"
    content = json.loads(vocabulary.read_text())
    content["cat</w>"], content["dog</w>"] = content["dog</w>"], content["cat</w>"]
    vocabulary.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"vocabulary.*--format diffusers"):
        exported(tmp_path / "own", tmp_path, "single-file", "--part", "text-encoder")


# Exports as input


def test_every_script_reads_a_single_file(world, tmp_path, capsys):
    file = exported(world / "ldm", tmp_path / "out", "single-file")
    sample.main(command(sample, world, tmp_path / "1", "--model", str(file)))
    sample.main(command(sample, world, tmp_path / "2"))
    one, other = (Image.open(tmp_path / name / "00000.png") for name in "12")
    assert (pixels(one) - pixels(other)).max() <= 1  # the scale is folded in
    parts = ("--vae", str(file), "--text-encoder", str(file))
    for out in (tmp_path / "3", tmp_path / "3"):  # the second run is finished already
        train_ldm.main(command(train_ldm, world, out, *parts))
    assert "is finished" in capsys.readouterr().out
    train_vae.main([*command(train_vae, world, tmp_path / "4"), "--init-from", str(file)])
    with pytest.raises(UserError, match="model_ema"):
        sample.main([*command(sample, world, tmp_path / "5", "--model", str(file)), "--ema"])
