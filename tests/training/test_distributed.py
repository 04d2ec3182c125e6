"""The same gradients and the same training on one rank, on two ranks, and in parts of a batch."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from foundation import collectives
from foundation.errors import UserError
from tests.helpers import short_runs as runs
from tests.helpers.data.shapes_dataset import make_shapes
from tests.helpers.processes import on_ranks
from training import distributed

ROOT = Path(__file__).parents[2]


def gradients_of_stage_1(parts: int) -> dict[str, torch.Tensor]:
    """Compute gradients of both networks and the learned variance, in float64, with the adaptive
    weight."""
    from autoencoder import PRESETS, Autoencoder
    from autoencoder.training.discriminator import Discriminator, DiscriminatorConfig
    from autoencoder.training.loss import AutoencoderLoss, LossConfig
    from autoencoder.training.step import AutoencoderTraining

    torch.manual_seed(0)
    starts = {"discriminator_start": 0, "adversarial_start": 0, "adversarial_ramp": 0}
    config = LossConfig(reconstruction="l2", perceptual="none", learned_logvar=True, **starts)
    training = AutoencoderTraining(
        Autoencoder(PRESETS["tiny-32"]).double(),
        Discriminator(DiscriminatorConfig(width=16, layers=2)).double(),
        AutoencoderLoss(config, 10).double(),
        parallel=distributed.data_parallel,
    )
    images = torch.rand(8, 3, 32, 32, dtype=torch.float64) * 2 - 1
    noise = torch.randn(8, 4, 8, 8, dtype=torch.float64)
    own = torch.tensor(collectives.rank_share(0, 8))
    metrics = collectives.mean_metrics(training.backward(images[own], noise[own], 0, parts))
    return metrics | gradients_in(training.networks)


def gradients_in(networks: dict[str, nn.Module]) -> dict[str, torch.Tensor]:
    """Return the gradients that the weights hold, by name."""
    return {
        f"{name}.{key}": weight.grad
        for name, network in networks.items()
        for key, weight in network.named_parameters()
    }


def gradients_of_stage_0() -> dict[str, torch.Tensor]:
    """Compute gradients of what depends on the whole batch: batch norms and the contrastive loss,
    in float64."""
    from conditioning.clip_loss import contrastive_loss, convert_sync_batch_norm

    torch.manual_seed(0)
    tower = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 6), nn.BatchNorm2d(5)
    ).double()
    scale = nn.Parameter(torch.tensor(3.0).double())
    texts = nn.Parameter(torch.randn(8, 5).double())
    images = torch.randn(8, 3, 8, 8).double()
    if collectives.world_size() > 1:
        convert_sync_batch_norm(tower)
    own = torch.tensor(collectives.rank_share(0, 8))
    parallel = distributed.data_parallel(tower)  # averages gradients as long as it exists
    features = F.normalize(parallel(images[own]).flatten(1), dim=-1)
    loss = contrastive_loss(features, F.normalize(texts[own], dim=-1), scale)
    loss.backward()
    rest = {"loss": loss.detach(), "scale": scale.grad, "texts": texts.grad}
    rest = {name: collectives.mean(value) for name, value in rest.items()}
    return rest | dict(tower.named_buffers()) | gradients_in({"tower": tower})


def compare(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """Compare gradients tightly and losses loosely, which are computed in float32.

    Gradients have a dot in their names.
    """
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        close = {"rtol": 1e-9, "atol": 1e-12} if "." in name else {"rtol": 1e-6, "atol": 1e-6}
        torch.testing.assert_close(found[name].double(), value.double(), **close, msg=name)


@pytest.mark.parametrize("parts", [1, 2])
def test_gradients_of_stage_1_are_those_of_the_whole_batch(parts):
    whole = gradients_of_stage_1(1)
    for found in on_ranks(gradients_of_stage_1, parts):
        compare(found, whole)
    if parts > 1:
        compare(gradients_of_stage_1(parts), whole)


def test_gradients_of_stage_0_are_those_of_the_whole_batch():
    whole = gradients_of_stage_0()
    for found in on_ranks(gradients_of_stage_0):
        compare(found, whole)


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> Path:
    """Train the three stages: as `two` on two ranks that torchrun starts, and as `one` here."""
    root = tmp_path_factory.mktemp("demo")
    make_shapes(root / "data", count=30)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [
        "--nproc-per-node",
        "2",
        "-m",
        "tests.helpers.short_runs",
        str(root),
        str(root / "two"),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("a fresh run in") == 3, "rank 0 alone prints"
    runs.clip(root, root / "one")
    runs.vae(root, root / "one")
    runs.ldm(root, root / "one", root / "two")  # of equal latents and contexts
    return root


def same_numbers(run: Path, other: Path) -> None:
    """Compare metrics loosely: rounding has grown for some steps.

    It grows most in the KL of a channel and in the adaptive weight, which is a ratio of two norms.
    Gradients are compared tightly, in float64, above.
    """
    ours, theirs = runs.numbers(run), runs.numbers(other)
    assert len(ours) == len(theirs)
    for line, expected in zip(ours, theirs, strict=True):
        assert line.keys() == expected.keys()
        for name in line:
            bound = 5e-2 if name.startswith(("kl/", "adaptive")) else 2e-2
            assert line[name] == pytest.approx(expected[name], rel=bound, abs=1e-3), name


WEIGHTS = {
    "clip": "model/clip/open_clip_model.safetensors",
    "vae": "model/diffusion_pytorch_model.safetensors",
    "ldm": "model/unet/diffusion_pytorch_model.safetensors",
}


@pytest.mark.parametrize("stage", WEIGHTS)
def test_two_ranks_train_as_one_does(demo, stage):
    same_numbers(demo / "two" / stage, demo / "one" / stage)
    runs.same_weights(demo / "two" / stage / WEIGHTS[stage], demo / "one" / stage / WEIGHTS[stage])


def test_previews_are_the_same(demo):
    for stage in ("vae", "ldm"):
        ours, theirs = (
            torch.frombuffer(bytearray(Image.open(file).tobytes()), dtype=torch.uint8).float()
            for file in sorted(demo.glob(f"*/{stage}/previews/step-0000003.png"))
        )
        assert (ours - theirs).abs().mean() < 0.5  # gray levels


def test_a_model_trained_on_two_ranks_draws(demo, tmp_path):
    from ldm import TextToImage

    (picture,) = TextToImage.load(demo / "two" / "ldm")(["a red circle"], steps=2)
    assert picture.size == (32, 32)


TEXT = ("--text-encoder", "two/clip")
KINDS = {
    "class": ("--condition", "class"),
    "none": ("--condition", "none"),
    "inpaint": ("--task", "inpaint", *TEXT),
    "upscale": ("--task", "upscale", "--upscale-factor", "2", *TEXT),
    "restore": ("--task", "restore", *TEXT),
}


def train_kind(root: Path, out: Path, kind: str) -> None:
    """Train stage 2 without texts or for a task, on the autoencoder of the two ranks."""
    import train_ldm

    inputs = ("--vae", str(root / "two" / "vae"), "--out", str(out / "ldm"))
    flags = [str(root / flag) if flag in TEXT[1:] else flag for flag in KINDS[kind]]
    train_ldm.main([*runs.common_flags(root), *inputs, *flags])


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_models_of_every_kind_are_trained_alike_by_two_ranks(demo, tmp_path, kind):
    on_ranks(train_kind, demo, tmp_path / "two", kind)
    train_kind(demo, tmp_path / "one", kind)
    same_numbers(tmp_path / "two" / "ldm", tmp_path / "one" / "ldm")
    runs.same_weights(*(tmp_path / count / "ldm" / WEIGHTS["ldm"] for count in ("two", "one")))


def train_until_signal(root: Path, out: Path, *flags: str) -> str:
    """Train stage 2, send SIGTERM to rank 1 in its second step, and return the message."""
    from stages.diffusion import DiffusionTrainer

    unchanged = DiffusionTrainer.step

    def step(self, step: int):
        if step == 1 and collectives.rank() == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return unchanged(self, step)

    DiffusionTrainer.step = step
    try:
        runs.ldm(root, out, root / "two", *flags)
    except KeyboardInterrupt as stop:
        return str(stop)
    return "finished"


@pytest.fixture(scope="module")
def sharded(demo, tmp_path_factory) -> Path:
    """Train two of three steps of stage 2, with its weights sharded over two ranks."""
    root = tmp_path_factory.mktemp("sharded")
    messages = on_ranks(train_until_signal, demo, root, "--shard")
    assert all("step 2" in message for message in messages)
    state = root / "ldm" / "state" / "step-0000002"
    assert len(list((state / "unet").glob("*.safetensors"))) == 2  # each rank wrote its pieces
    return root


@pytest.mark.parametrize("count", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_sharded_weights_train_alike_and_resume_on_any_number_of_ranks(
    demo, sharded, tmp_path, count
):
    shutil.copytree(sharded / "ldm", tmp_path / "ldm")
    if count == 1:
        runs.ldm(demo, tmp_path, demo / "two")
    else:
        on_ranks(runs.ldm, demo, tmp_path, demo / "two", "--shard")
    same_numbers(tmp_path / "ldm", demo / "one" / "ldm")
    runs.same_weights(tmp_path / "ldm" / WEIGHTS["ldm"], demo / "one" / "ldm" / WEIGHTS["ldm"])


def test_a_state_of_whole_weights_is_loaded_into_sharded_ones(tmp_path):
    from training.checkpoint import save_state

    torch.manual_seed(0)
    network = nn.Linear(3, 5)
    folder = save_state(tmp_path, 1, {"network": network})
    for found in on_ranks(shard_and_load, folder):
        assert torch.equal(found, network.weight)


def shard_and_load(folder: Path) -> torch.Tensor:
    from training.checkpoint import load_state
    from training.distributed import full_tensor, shard

    network = nn.Linear(3, 5)
    shard(network, [])
    load_state(folder, {"network": network})
    return full_tensor(network.weight.detach())


def test_sharding_without_torchrun_is_refused(demo, tmp_path):
    with pytest.raises(UserError, match="torchrun --nproc-per-node"):
        runs.ldm(demo, tmp_path, demo / "two", "--shard")
