"""evaluate.py model: samples that are kept, and what stands beside them."""

import json

import torch

import evaluate
from foundation.hashing import generators
from ldm import TextToImage
from stages.evaluation.drawing import alignment
from stages.evaluation.report import HTML_FILE, JSON_FILE
from stages.evaluation.validation_loss import TIMESTEPS, losses_by_timestep, timesteps
from tests.helpers.random_models import make_pipeline


def test_samples_are_drawn_once_and_measured_again(world, tmp_path, monkeypatch):
    words = ["model", world / "ldm", "--data", world / "data", "--judge", world / "clip"]
    words += ["--samples", 7, "--steps", 1, "--device", "cpu", "--out", tmp_path]
    words = [str(word) for word in words]
    evaluate.main(words)
    content = json.loads((tmp_path / JSON_FILE).read_text())
    assert {"clip_score", "recall@1", "reconstruction_psnr"} <= content["metrics"].keys()
    others = {"real images", "autoencoder (ceiling)", "held-out captions"}
    assert set(content["baselines"]) == others | {"network that outputs zero"}
    rows = content["tables"]["validation loss by timestep"]
    assert len(rows) == TIMESTEPS
    mean = sum(row["loss"] for row in rows) / TIMESTEPS
    assert abs(mean - content["metrics"]["validation_loss"]["value"]) < 1e-5
    unseen = content["baselines"]["held-out captions"]
    assert {"clip_score", "recall@1", "recall@10"} == unseen.keys() - {"recall@5"}
    assert 0 < content["protocol"]["held_out_captions"]["count"] <= 7
    assert content["protocol"]["images"]["images"] == 7
    assert content["protocol"]["sampling"]["steps"] == "1"

    def never(*_, **__):
        raise AssertionError("samples are drawn again")

    monkeypatch.setattr(TextToImage, "__call__", never)
    evaluate.main([*words, "--features", str(world / "clip")])
    more = json.loads((tmp_path / JSON_FILE).read_text())
    assert more["metrics"]["recall@1"] == content["metrics"]["recall@1"]
    for values in (more["metrics"], more["baselines"]["autoencoder (ceiling)"]):
        assert {"clip/kid", "clip/frechet", "clip/precision", "clip/cmmd"} <= values.keys()
    assert "copying score" in content["missing"] and "copying score" not in more["missing"]
    assert "training images" in more["metrics"]["clip/copying_score"]["note"]
    assert "Nearest training images" in (tmp_path / HTML_FILE).read_text()


def test_recall_of_some_has_all_captions_as_candidates():
    """The first two of four images are measured; a wrong candidate is any of the four captions."""
    texts = torch.eye(4)
    images = torch.stack([texts[0], texts[3], texts[2], texts[1]])
    found = alignment(images, texts, ["a", "b", "c", "d"], count=2)
    assert found["recall@1"].value == 0.5 and found["clip_score"].value == 50
    assert alignment(images, texts, ["a", "b", "c", "b"], count=2)["recall@1"].value == 1


def test_the_loss_by_timestep_is_that_of_training():
    """Of a network that outputs zero it is the mean square of the target, in closed form."""
    pipeline = make_pipeline()
    shape = pipeline.latent_shape(32, 32)
    latents = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
    captions = ["a cat", "a dog", "a heart"]
    rows = losses_by_timestep(pipeline, latents, captions, range(3), seed=4)
    again = losses_by_timestep(pipeline, latents[2:], captions[2:], range(2, 3), seed=4)
    for name, values in rows.items():
        assert values.shape == (3, TIMESTEPS)
        torch.testing.assert_close(again[name][0], values[2])
    k, denoiser = 4, pipeline.denoiser
    t = torch.full((3,), timesteps(pipeline)[k])
    noise = [
        torch.randn(shape, generator=one) for one in generators(4, "validation noise", range(3))
    ]
    target = denoiser.target(latents, torch.stack(noise), t)
    torch.testing.assert_close(rows["loss of zero"][:, k], target.square().mean(dim=(1, 2, 3)))
