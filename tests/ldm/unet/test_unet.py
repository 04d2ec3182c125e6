"""The U-Net is diffusers' UNet2DConditionModel: names, shapes, gradients, files, both ways.

That its numbers are, too, is shown by test_parity.
"""

import json
from dataclasses import asdict, replace
from functools import partial

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file

from ldm.denoiser import Conditioning, Denoiser
from ldm.guidance import Guidance, GuidedDenoiser
from ldm.samplers import ddim
from ldm.schedule import ScheduleConfig, make_schedule
from ldm.unet import PRESETS, UNet, UNetConfig
from ldm.unet import io as files
from tests.helpers.peer_settings import ODD_UNETS, PUBLISHED_UNETS, SMALL_UNET
from tests.helpers.sampling import sample

SMALL = UNetConfig(**SMALL_UNET)
EIGHT_CHANNELS = UNetConfig(**ODD_UNETS["linear projection, 8 channels"])
THREE_LEVELS = UNetConfig(**ODD_UNETS["three levels with attention"])
UPSCALER = UNetConfig(**ODD_UNETS["x4 upscaler, narrow"])


def theirs(config: UNetConfig) -> UNet2DConditionModel:
    return UNet2DConditionModel(**asdict(config)).eval()


def inputs(config: UNetConfig, batch: int = 3, size: int = 8):
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(batch, config.in_channels, size, size + 4, generator=generator)
    context = torch.randn(batch, 5, config.cross_attention_dim, generator=generator)
    return latents, context if config.conditional else None


@pytest.mark.parametrize("batch", [2, 16])  # projections are computed differently from 16 on
def test_gradients_equal_diffusers(batch):
    config = THREE_LEVELS
    torch.manual_seed(0)
    peer, unet = theirs(config), UNet(config)
    unet.load_state_dict(peer.state_dict())
    latents, context = inputs(config, batch)
    timesteps = torch.linspace(0, 999, batch)
    peer(latents, timesteps, context, return_dict=False)[0].square().mean().backward()
    unet.gradient_checkpointing = True
    unet(latents, timesteps, context).square().mean().backward()
    expected = dict(peer.named_parameters())
    for name, parameter in unet.named_parameters():
        scale = expected[name].grad.abs().max().item()
        torch.testing.assert_close(
            parameter.grad, expected[name].grad, rtol=0, atol=1e-4 * scale, msg=name
        )


@pytest.mark.parametrize(
    ("preset", "millions", "differs"),
    [
        ("sd15", 859.5, {"cross_attention_dim": 768}),
        (
            "sd21",
            865.9,
            {
                "attention_head_dim": [5, 10, 20, 20],
                "cross_attention_dim": 1024,
                "use_linear_projection": True,
            },
        ),
    ],
)
def test_presets_have_the_size_of_stable_diffusion(preset, millions, differs):
    with torch.device("meta"):
        unet, peer = UNet(PRESETS[preset]), UNet2DConditionModel(**differs)
    shapes = {name: tensor.shape for name, tensor in unet.state_dict().items()}
    assert shapes == {name: tensor.shape for name, tensor in peer.state_dict().items()}
    assert sum(shape.numel() for shape in shapes.values()) / 1e6 == pytest.approx(millions, abs=0.1)


def test_layers_that_start_at_zero():
    """A new U-Net predicts zero, and each of its blocks is the identity."""
    unet = UNet(SMALL)
    latents, context = inputs(SMALL)
    assert not unet(latents, torch.tensor([0, 1, 2]), context).any()
    for name, parameter in unet.named_parameters():
        ends_a_branch = name.startswith("conv_out") or "conv2" in name or "proj_out" in name
        assert ends_a_branch == (not parameter.any()) or name.endswith("bias"), name


def test_a_denoiser_takes_any_function_as_its_network():
    """The example of docs/parity.md: an upscaler with its small picture and noise level."""
    unet, schedule = UNet(UPSCALER).eval(), make_schedule(ScheduleConfig())
    unet.load_state_dict(theirs(UPSCALER).state_dict())
    small = torch.rand(1, 3, 8, 16)

    def network(level, z_t, t, context):
        both = torch.cat([z_t, small.expand(len(z_t), -1, -1, -1)], dim=1)
        return unet(both, t, context, torch.full((len(z_t),), level))

    contexts, noise = torch.randn(2, 1, 5, 24), torch.randn(1, 4, 8, 16)
    drawn = []
    for level in (20, 300):
        denoiser = Denoiser(partial(network, level), schedule, "velocity")
        drawn.append(
            sample(
                ddim,
                GuidedDenoiser(
                    denoiser,
                    [(Conditioning(contexts[0]), 1.0)],
                    Conditioning(contexts[1]),
                    Guidance(scale=9.0),
                ),
                noise,
                schedule,
                2,
            )
        )
    assert drawn[0].shape == noise.shape and not torch.equal(*drawn)


def test_dropout_is_active_in_training_only():
    torch.manual_seed(0)
    unet = UNet(replace(SMALL, dropout=0.5))
    unet.load_state_dict(theirs(SMALL).state_dict())
    latents, context = inputs(SMALL)
    timesteps = torch.tensor([0, 1, 2])
    first, second = (unet(latents, timesteps, context) for _ in range(2))
    assert not torch.equal(first, second)
    unet.eval()
    first, second = (unet(latents, timesteps, context) for _ in range(2))
    assert torch.equal(first, second)


def test_channels_last_changes_no_result_and_no_file(tmp_path):
    unet = UNet(SMALL).eval()
    unet.load_state_dict(theirs(SMALL).state_dict())
    latents, context = inputs(SMALL)
    timesteps = torch.tensor([0, 1, 999])
    expected = unet(latents, timesteps, context)
    unet.to(memory_format=torch.channels_last)
    torch.testing.assert_close(unet(latents, timesteps, context), expected, rtol=0, atol=1e-5)
    unet.save(tmp_path)
    assert torch.equal(UNet.load(tmp_path)(latents, timesteps, context), expected)


@pytest.mark.parametrize("config", [EIGHT_CHANNELS, UPSCALER])
def test_unet_folders_are_exchanged_with_diffusers_both_ways(config, tmp_path):
    peer = theirs(config)
    peer.save_pretrained(tmp_path / "pipeline" / "unet")
    unet = UNet.load(tmp_path / "pipeline")
    assert unet.config == config
    unet.save(tmp_path / "run" / "model" / "unet", {"autoencoder": "abc"})
    again = UNet.load(str(tmp_path / "run"))
    back = UNet2DConditionModel.from_pretrained(tmp_path / "run" / "model" / "unet")
    for name, tensor in peer.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name])
        assert torch.equal(tensor, back.state_dict()[name])
    assert files.read_provenance(tmp_path / "run") == {"autoencoder": "abc"}
    assert files.read_provenance(tmp_path / "pipeline") == {}
    assert sorted(path.name for path in (tmp_path / "run" / "model" / "unet").iterdir()) == [
        "README.md",
        "config.json",
        "diffusion_pytorch_model.safetensors",
        "latentsmith.json",
    ]


@pytest.mark.parametrize("content", PUBLISHED_UNETS.values(), ids=PUBLISHED_UNETS.keys())
def test_published_configs_are_read_and_survive_saving(content, tmp_path):
    UNet2DConditionModel.from_config(content).save_pretrained(tmp_path / "theirs")
    (tmp_path / "theirs" / files.CONFIG).write_text(json.dumps(content))
    unet = UNet.load(tmp_path / "theirs")
    unet.save(tmp_path / "ours")
    assert UNet.load(tmp_path / "ours").config == unet.config
    theirs = UNet2DConditionModel.from_pretrained(tmp_path / "ours").config
    assert theirs.in_channels == content["in_channels"]
    assert theirs.only_cross_attention == content.get("only_cross_attention", False)
    assert theirs.num_class_embeds == content.get("num_class_embeds")


def test_a_loaded_unet_can_be_trained(tmp_path):
    UNet(SMALL).save(tmp_path)
    unet = UNet.load(tmp_path)
    latents, context = inputs(SMALL)
    unet(latents, torch.tensor([1, 2, 3]), context).sum().backward()
    assert unet.conv_out.weight.grad.any()
    assert all(parameter.device.type == "cpu" for parameter in unet.parameters())


def test_half_precision_files_load_as_fp32(tmp_path):
    UNet(SMALL).half().save(tmp_path)
    assert {parameter.dtype for parameter in UNet.load(tmp_path).parameters()} == {torch.float32}


def test_weights_that_do_not_fit_are_refused_in_one_message(tmp_path):
    UNet(SMALL).save(tmp_path)
    path = tmp_path / files.WEIGHTS
    weights = load_file(path)
    weights["conv_in.extra"] = weights.pop("conv_in.bias")
    weights["conv_out.bias"] = torch.zeros(7)
    save_file(weights, path)
    with pytest.raises(ValueError, match=r"conv_in\.bias") as error:
        UNet.load(tmp_path)
    assert "1 unexpected: conv_in.extra" in str(error.value)
    assert "conv_out.bias is (7,), expected (4,)" in str(error.value)


def test_damaged_and_absent_files_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no U-Net in"):
        UNet.load(tmp_path)
    UNet(SMALL).save(tmp_path)
    path = tmp_path / files.WEIGHTS
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match="damaged"):
        UNet.load(tmp_path)
    (tmp_path / files.CONFIG).unlink()
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        UNet.load(tmp_path)


def test_a_failing_save_leaves_the_old_folder(tmp_path):
    UNet(SMALL).save(tmp_path)
    before = (tmp_path / files.WEIGHTS).read_bytes()
    with pytest.raises(TypeError):
        UNet(SMALL).save(tmp_path, {"not JSON": object()})
    assert (tmp_path / files.WEIGHTS).read_bytes() == before
    assert not list(tmp_path.glob(".*.partial"))


@pytest.mark.parametrize(
    ("entry", "match"),
    [
        ({"addition_embed_type": "text_time"}, "addition_embed_type='text_time'"),
        ({"only_cross_attention": [True]}, "only_cross_attention.*2 levels"),
        ({"class_embed_type": "projection"}, "class_embed_type: 'projection'"),
        ({"time_embedding_type": "fourier"}, "fourier"),
        ({"invented": 1}, "invented=1"),
        ({"_class_name": "AutoencoderKL"}, "AutoencoderKL"),
        ({"mid_block_type": "UNetMidBlock2DSimpleCrossAttn"}, "SimpleCrossAttn"),
    ],
)
def test_unsupported_configs_are_refused_by_name(tmp_path, entry, match):
    UNet(SMALL).save(tmp_path)
    path = tmp_path / files.CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | entry))
    with pytest.raises(ValueError, match=match):
        UNet.load(tmp_path)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"block_out_channels": (32, 60)}, "norm_num_groups"),
        ({"attention_head_dim": (2, 7)}, "64 channels do not split into 7 heads"),
        ({"attention_head_dim": (2,)}, "attention_head_dim"),
        ({"up_block_types": ("UpBlock2D",) * 3}, "up_block_types.*2 levels"),
        ({"block_out_channels": ()}, "0 levels"),
        ({"down_block_types": ("DownBlock2D", "KDownBlock2D")}, "KDownBlock2D"),
        ({"addition_embed_type": "image"}, "addition_embed_type: 'image'"),
        (
            {"addition_embed_type": "text", "addition_embed_type_num_heads": 7},
            "width 24 does not split into 7 heads",
        ),
        (
            {
                "addition_embed_type": "text",
                "down_block_types": ("DownBlock2D",) * 2,
                "mid_block_type": "UNetMidBlock2D",
                "up_block_types": ("UpBlock2D",) * 2,
            },
            "no block attends to text",
        ),
    ],
)
def test_impossible_configs_are_refused(change, match):
    with pytest.raises(ValueError, match=match):
        replace(SMALL, **change)


def test_inputs_that_do_not_fit_the_config_are_refused():
    unet, timesteps = UNet(SMALL), torch.zeros(3)
    latents, context = inputs(SMALL)
    with pytest.raises(ValueError, match="multiples of 2"):
        unet(latents[..., :7, :], timesteps, context)
    with pytest.raises(ValueError, match=r"8x6.*multiples of 4"):
        UNet(THREE_LEVELS).check_size(8, 6)
    with pytest.raises(ValueError, match="3 channels"):
        unet(latents[:, :3], timesteps, context)
    with pytest.raises(ValueError, match="no context"):
        unet(latents, timesteps)
    with pytest.raises(ValueError, match="width 20"):
        unet(latents, timesteps, context[..., :20])
    unconditional = UNet(UNetConfig(**ODD_UNETS["no text"]))
    with pytest.raises(ValueError, match="context"):
        unconditional(latents, timesteps, context)
    with pytest.raises(ValueError, match="no classes"):
        unet(latents, timesteps, context, torch.zeros(3).long())
    with pytest.raises(ValueError, match=r"4 channels.*7.* 3 more"):
        UNet(UPSCALER)(latents[..., :8], timesteps, context)
    with pytest.raises(ValueError, match="no class_labels"):
        UNet(UPSCALER)(torch.zeros(3, 7, 8, 8), timesteps, context)
