"""LoRA: what is trained here does in diffusers what it does here, and the other way round."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

import sample
import train_ldm
from conditioning.clip import PRESETS as CLIPS
from foundation.errors import MissingFileError
from foundation.files import read_json
from interop.lora import WEIGHTS, LowRankUpdate, read_lora
from ldm import TextToImage
from ldm.unet import UNet
from stages.diffusion import DiffusionTrainer
from stages.flags.diffusion import LORA_TARGETS
from stages.lora import add_adapter, apply_lora, low_rank_changes, save_lora
from tests.helpers.images import captioned
from tests.helpers.random_models import make_pipeline
from tests.helpers.short_runs import killed_in_step
from training.cli import run_main

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
FAST = ("--preset", "tiny-32", "--batch-size", 4, "--device", "cpu", "--warmup", 1,
        "--held-out", 0, "--learning-rate", 0.01)  # fmt: skip
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """A whole model with random weights."""
    folder = tmp_path_factory.mktemp("base") / "model"
    make_pipeline().save(folder)
    return folder


def inputs(unet: UNet) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    shapes = (2, 4, 8, 8), (2, 7, unet.config.cross_attention_dim)
    latents, context = (torch.randn(shape, generator=generator) for shape in shapes)
    return latents, torch.tensor([500, 20]), context


@torch.no_grad()
def output(unet: UNet) -> Tensor:
    return unet(*inputs(unet))


def randomize(unet: torch.nn.Module) -> None:
    """Both halves of every change, as a training would; the second begins as zeros."""
    torch.manual_seed(3)
    for name, weight in unet.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(weight.data, std=0.1)


def learned(base: Path, folder: Path, *more: str) -> tuple[Path, Tensor]:
    """A LoRA as it is saved, and what the U-Net gives that learned it."""
    unet = UNet.load(base).eval()
    add_adapter(unet, rank=3, alpha=6.0, targets=(*LORA_TARGETS, *more))
    randomize(unet)
    save_lora(unet, folder, {"config": {"init_sha256": "abc"}})
    return folder, output(unet)


@pytest.fixture(scope="module")
def trained(base, tmp_path_factory) -> tuple[Path, Tensor]:
    return learned(base, tmp_path_factory.mktemp("lora"))


def test_a_low_rank_change_is_a_scaled_product():
    down, up = torch.randn(2, 5), torch.randn(4, 2)
    assert torch.equal(LowRankUpdate(down, up).delta(), up @ down)
    torch.testing.assert_close(LowRankUpdate(down, up, alpha=6.0).delta(), 3 * up @ down)


def test_a_new_adapter_changes_nothing_and_is_trained_alone(base):
    unet = UNet.load(base).eval()
    before = output(unet)
    add_adapter(unet, rank=2, alpha=2.0, targets=LORA_TARGETS)
    assert torch.equal(output(unet), before)
    learning = {name for name, weight in unet.named_parameters() if weight.requires_grad}
    assert learning and all("lora_" in name for name in learning)
    assert len(learning) == 2 * len(low_rank_changes(unet)) == 2 * len(LORA_TARGETS) * 2 * 4


def test_a_saved_lora_gives_the_trained_network(base, trained):
    folder, expected = trained
    pipeline = TextToImage.load(base)
    before = output(pipeline.unet)
    apply_lora(pipeline, folder)
    torch.testing.assert_close(output(pipeline.unet), expected, rtol=0, atol=TOLERANCE)
    assert (expected - before).abs().max() > 100 * TOLERANCE
    apply_lora(pipeline, folder / WEIGHTS, scale=-1.0)
    torch.testing.assert_close(output(pipeline.unet), before, rtol=0, atol=TOLERANCE)


def peer(base: Path):
    """The same model in diffusers."""
    from diffusers import StableDiffusionPipeline

    return StableDiffusionPipeline.from_pretrained(base)


@torch.no_grad()
def theirs(unet) -> Tensor:
    latents, t, context = inputs(unet)
    return unet(latents, t, context).sample


@pytest.mark.parametrize("scale", [1.0, 0.6])
def test_diffusers_loads_a_lora_trained_here(base, tmp_path, scale):
    """Convolutions and feed-forward layers, too."""
    folder, expected = learned(base, tmp_path, "ff.net.0.proj", "conv1")
    their, ours = peer(base), TextToImage.load(base)
    their.load_lora_weights(folder, adapter_name="a")
    their.set_adapters("a", scale)
    apply_lora(ours, folder, scale)
    torch.testing.assert_close(theirs(their.unet), output(ours.unet), rtol=0, atol=TOLERANCE)
    if scale == 1:
        torch.testing.assert_close(theirs(their.unet), expected, rtol=0, atol=TOLERANCE)


def test_pictures_with_a_lora_are_those_of_diffusers(base, trained):
    folder, _ = trained
    their, ours = peer(base), TextToImage.load(base)
    their.load_lora_weights(folder)
    apply_lora(ours, folder)
    assert their.scheduler.config.use_flow_sigmas
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(5))
    their.set_progress_bar_config(disable=True)
    drawn = their("a cat", num_inference_steps=3, guidance_scale=3.0, latents=noise, height=32,
                  width=32, output_type="np").images[0]  # fmt: skip
    picture = ours(["a cat"], steps=3, guidance_scale=3.0, seed=5)[0]
    assert np.abs(drawn * 255 - np.asarray(picture)).max() < 1


def theirs_trained(base: Path, folder: Path, save: Callable) -> Tensor:
    """A LoRA on U-Net and text encoder, made and saved by diffusers."""
    import peft

    their = peer(base)
    config = peft.LoraConfig(r=3, lora_alpha=5, target_modules=list(LORA_TARGETS))
    their.unet.add_adapter(config)
    randomize(their.unet)
    save(their, folder)
    return theirs(their.unet)


def test_a_lora_trained_by_diffusers_is_applied(base, tmp_path):
    from diffusers import StableDiffusionPipeline
    from diffusers.training_utils import _collate_lora_metadata
    from diffusers.utils import convert_state_dict_to_diffusers
    from peft import get_peft_model_state_dict

    def save(their, folder):
        layers = convert_state_dict_to_diffusers(get_peft_model_state_dict(their.unet))
        metadata = _collate_lora_metadata({"unet": their.unet})
        StableDiffusionPipeline.save_lora_weights(folder, unet_lora_layers=layers, **metadata)

    expected = theirs_trained(base, tmp_path, save)
    ours = TextToImage.load(base)
    apply_lora(ours, tmp_path)
    torch.testing.assert_close(output(ours.unet), expected, rtol=0, atol=TOLERANCE)


@torch.no_grad()
def test_files_of_kohyas_scripts_change_unet_and_text_encoder_alike(base, trained, tmp_path):
    ours, their = TextToImage.load(base), peer(base)
    tensors = {}
    for name, low_rank in read_lora(trained[0])["unet"].items():
        module = "lora_unet_" + name.replace(".", "_")
        tensors[f"{module}.lora_down.weight"] = low_rank.down
        tensors[f"{module}.lora_up.weight"] = low_rank.up
        tensors[f"{module}.alpha"] = torch.tensor(2.0)
    save_file(tensors, tmp_path / "unet.safetensors")
    their.load_lora_weights(tmp_path, weight_name="unet.safetensors")
    generator = torch.Generator().manual_seed(2)
    for name, module in their.text_encoder.named_modules():
        if name.endswith(("q_proj", "v_proj", "out_proj", "fc1")):
            path = "text_model." + name.removeprefix("text_model.")
            place = "lora_te_" + path.replace(".", "_")
            down = torch.randn(2, module.in_features, generator=generator) / 8
            up = torch.randn(module.out_features, 2, generator=generator) / 8
            tensors |= {f"{place}.lora_down.weight": down, f"{place}.lora_up.weight": up}
            tensors[f"{place}.alpha"] = torch.tensor(1.0)
            module.weight += up @ down / 2  # not by diffusers, which fails with transformers 5
    save_file(tensors, tmp_path / "both.safetensors")
    before = ours.text_encoder(["a cat"])
    apply_lora(ours, tmp_path / "both.safetensors")
    torch.testing.assert_close(theirs(their.unet), output(ours.unet), rtol=0, atol=TOLERANCE)
    expected, after = their.encode_prompt("a cat", "cpu", 1, False)[0], ours.text_encoder(["a cat"])
    torch.testing.assert_close(after, expected, rtol=0, atol=TOLERANCE)
    assert (after - before).abs().max() > 100 * TOLERANCE


def change_of_text_encoder(module: str) -> dict[str, Tensor]:
    """A change of one matrix, which fits for the modules that there are."""
    width = CLIPS["tiny-32"]["text_cfg"]["width"]
    place = f"text_encoder.text_model.encoder.layers.0.mlp.{module}"
    down, up = torch.ones(1, width), torch.ones(4 * width, 1)
    return {f"{place}.lora_A.weight": down, f"{place}.lora_B.weight": up}


def test_a_change_of_the_text_encoder_alone_is_applied(base, tmp_path):
    save_file(change_of_text_encoder("fc1"), tmp_path / WEIGHTS)
    pipeline = TextToImage.load(base)
    before = pipeline.text_encoder(["a cat"])
    apply_lora(pipeline, tmp_path)
    assert not torch.equal(pipeline.text_encoder(["a cat"]), before)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"unet.conv_in.dora_scale": torch.ones(1)}, "dora_scale"),
        ({"unet.conv_in.lora_A.weight": torch.ones(1, 2)}, "conv_in"),
        ({"unet.nowhere.lora_A.weight": torch.ones(1, 2), "unet.nowhere.lora_B.weight":
          torch.ones(2, 1)}, r"\bnowhere\b"),
        ({"unet.time_embedding.linear_1.lora_A.weight": torch.ones(1, 2),
          "unet.time_embedding.linear_1.lora_B.weight": torch.ones(2, 1)},
         r"\(2, 2\).*time_embedding\.linear_1\b.*\(128, 32\)"),
        (change_of_text_encoder("fc1") | {"unet.nowhere.lora_A.weight": torch.ones(1, 2),
          "unet.nowhere.lora_B.weight": torch.ones(2, 1)}, r"\bnowhere\b"),
        (change_of_text_encoder("fc1") | change_of_text_encoder("fc9"), r"\bfc9\b"),
    ],
)  # fmt: skip
def test_a_lora_that_does_not_fit_is_refused_and_changes_nothing(
    base, trained, tmp_path, change, message
):
    save_file(load_file(trained[0] / WEIGHTS) | change, tmp_path / WEIGHTS)
    pipeline = TextToImage.load(base)
    before, read = output(pipeline.unet), pipeline.text_encoder(["a cat"])
    with pytest.raises(ValueError, match=message):
        apply_lora(pipeline, tmp_path)
    assert torch.equal(output(pipeline.unet), before)
    assert torch.equal(pipeline.text_encoder(["a cat"]), read)
    with pytest.raises(MissingFileError, match=str(base)):
        apply_lora(pipeline, base)


# From the command lines


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return captioned(tmp_path_factory.mktemp("data"), 8)


def train(data: Path, base: Path, out: Path, *flags: object, steps: int = 4) -> None:
    parts = ("--vae", base, "--text-encoder", base, "--init-from", base, "--lora", 2)
    given = ("--data", data, "--out", out, *parts, "--steps", steps, "--save-every", 1, *FAST)
    given += ("--preview-prompts", "a cat", *flags)
    train_ldm.main([str(word) for word in given])


def test_a_lora_run_resumes_exactly_and_samples(data, base, tmp_path, capsys):
    train(data, base, tmp_path / "whole")
    with killed_in_step(DiffusionTrainer, 2):
        train(data, base, tmp_path / "parts")
    train(data, base, tmp_path / "parts")
    whole, parts = (load_file(tmp_path / x / "model" / WEIGHTS) for x in ("whole", "parts"))
    assert whole.keys() == parts.keys() and all(torch.equal(whole[k], parts[k]) for k in whole)
    assert any(weight.any() for name, weight in whole.items() if "lora_B" in name)
    with pytest.raises(MissingFileError, match=str(tmp_path / "whole")):
        TextToImage.load(tmp_path / "whole")
    state = tmp_path / "whole" / "state" / "step-0000004" / "unet.safetensors"
    assert state.stat().st_size < 0.2 * (base / "unet" / "diffusion_pytorch_model.safetensors"
                                         ).stat().st_size  # fmt: skip
    sha = read_json(tmp_path / "whole" / "config.json")["init_sha256"]
    assert sha in (tmp_path / "whole" / "model" / "README.md").read_text()

    pictures = {}
    for name, flags in {
        "without": (),
        "with": ("--lora", tmp_path / "whole", "--lora-scale", 20),
        "none": ("--lora", tmp_path / "whole", "--lora-scale", 0),
    }.items():
        given = ("a cat", "--model", base, "--steps", 2, "--out", tmp_path / name, *flags)
        sample.main([str(word) for word in given])
        with Image.open(tmp_path / name / "00000.png") as image:
            pictures[name] = np.asarray(image)
    assert (pictures["without"] == pictures["none"]).all()
    assert (pictures["without"] != pictures["with"]).any()
    with Image.open(tmp_path / "with" / "00000.png") as image:
        assert json.loads(image.text["latentsmith"])["lora_scale"] == 20


def test_mistakes_end_with_one_message(data, base, tmp_path, capsys, monkeypatch):
    def message(*flags: object) -> str:
        with pytest.raises(SystemExit):
            run_main(lambda: train(data, base, tmp_path / "run", *flags))
        assert not (tmp_path / "run").exists()
        return capsys.readouterr().err

    assert "to_x" in message("--lora-targets", "to_q", "to_x")
    assert "proj_in" in message("--lora-targets", "proj_in")
    monkeypatch.setitem(sys.modules, "peft", None)
    assert "pip install peft" in message()
