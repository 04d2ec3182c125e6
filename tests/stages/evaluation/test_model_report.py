"""evaluate.py model: samples that are kept, and what stands beside them."""

import copy
import json
import shutil
from dataclasses import replace

import pytest
import torch

import evaluate
from commands.flags.evaluate import ModelConfig
from conditioning.clip import PRESETS, Clip
from dataset.folder import read_folder
from dataset.images.transform import ImageTransform
from dataset.loader import read_pixels
from dataset.table import split
from foundation.errors import UserError
from foundation.hashing import generator, generators
from ldm import TextToImage
from ldm.validation import TIMESTEPS
from stages.evaluation.data import chosen_pairs, training_images, unseen_captions
from stages.evaluation.drawing import alignment
from stages.evaluation.report import HTML_FILE, JSON_FILE
from stages.evaluation.validation_loss import losses_by_timestep, timesteps
from stages.flags.data import recorded_choice
from tests.helpers.random_models import make_pipeline


def test_samples_are_drawn_once_and_measured_again(world, tmp_path, monkeypatch):
    words = ["model", world / "ldm", "--data", world / "data", "--judge", world / "clip"]
    words += ["--samples", 7, "--steps", 1, "--device", "cpu", "--out", tmp_path]
    words = [str(word) for word in words]
    evaluate.main(words)
    content = json.loads((tmp_path / JSON_FILE).read_text())
    assert {"clip_score", "recall@1", "reconstruction_psnr"} <= content["metrics"].keys()
    others = {"real images", "autoencoder (ceiling)"}
    others |= {"held-out captions", "real images of held-out captions"}
    assert set(content["baselines"]) == others | {"network that outputs zero"}
    assert all("recall@1" in content["baselines"][other] for other in others)
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


def test_the_judge_sees_real_images_as_small_as_samples(world, tmp_path):
    """Real images have 48 pixels, the model draws 32, and the judge looks at 64."""
    torch.manual_seed(0)
    architecture = copy.deepcopy(PRESETS["tiny-32"])
    architecture["vision_cfg"]["image_size"] = 64
    judge = Clip(architecture).eval()
    judge.save(tmp_path / "judge")
    words = ["model", world / "ldm", "--data", world / "data", "--judge", tmp_path / "judge"]
    words += ["--samples", 5, "--steps", 1, "--device", "cpu", "--out", tmp_path / "out"]
    evaluate.main([str(word) for word in words])
    content = json.loads((tmp_path / "out" / JSON_FILE).read_text())
    assert content["protocol"]["judge"]["size"] == 64
    assert any("--size 32" in remark for remark in content["remarks"])
    pairs = split(read_folder(world / "data").pairs, 0.02)[0]
    order = torch.randperm(len(pairs), generator=generator(0, "captions"))[:5]
    chosen = [pairs[k] for k in order.tolist()]
    small = read_pixels([pair.path for pair in chosen], ImageTransform(32))
    texts = judge.encode_texts([pair.captions[0] for pair in chosen])
    score = 100 * (judge.encode_images(small) * texts).sum(dim=1).mean().item()
    assert abs(content["baselines"]["real images"]["clip_score"]["value"] - score) < 1e-3


def test_a_split_can_be_what_the_training_did_not_see(world, tmp_path):
    """All images lie in train/, three of them with other captions in test/, too."""
    shutil.copytree(world / "data", tmp_path / "data" / "train")
    rows = (tmp_path / "data/train/metadata.jsonl").read_text().splitlines()[:3]
    (tmp_path / "data" / "test").mkdir()
    with (tmp_path / "data/test/metadata.jsonl").open("w") as table:
        for row in map(json.loads, rows):
            source = tmp_path / "data/train" / row["file_name"]
            shutil.copy(source, tmp_path / "data/test" / source.name)
            text = {"file_name": source.name, "text": f"never seen {source.stem}"}
            table.write(json.dumps(text) + "\n")
    config = ModelConfig(
        model=world / "ldm",
        judge=world / "clip",
        data=tmp_path / "data",
        split="train",
        held_out_split="test",
    )
    prompts, held_out = chosen_pairs(config, recorded_choice({}))
    assert len(held_out) == 3 and len(prompts) > 3
    unseen = unseen_captions(config, prompts, held_out, 5)
    assert sorted(pair.captions[0] for pair in unseen.pairs) == sorted(
        pair.captions[0] for pair in held_out
    )
    assert len(training_images(config, prompts, torch.arange(len(prompts))).pairs) == len(prompts)
    alone = replace(config, held_out_split=None)
    assert not len(unseen_captions(alone, prompts, held_out, 5).pairs)
    with pytest.raises(UserError, match=r"held_out_split 'test' .* split 'train'"):
        chosen_pairs(replace(config, split=None), recorded_choice({}))


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


def test_the_right_one_of_a_few_words_is_counted(world, tmp_path):
    lines = (world / "data" / "metadata.jsonl").read_text().splitlines()
    first, *others = sorted({json.loads(line)["text"] for line in lines})
    words = ["model", world / "ldm", "--data", world / "data", "--judge", world / "clip"]
    words += ["--samples", 12, "--steps", 1, "--device", "cpu", "--held-out", 0]
    chosen = ["--attribute-words", first, others[0]]
    evaluate.main([str(word) for word in [*words, "--out", tmp_path / "out", *chosen]])
    content = json.loads((tmp_path / "out" / JSON_FILE).read_text())
    for values in (content["metrics"], *content["baselines"].values()):
        if "recall@1" in values:
            assert 0 <= values["attribute_accuracy"]["value"] <= 1
    rows = content["tables"]["attribute accuracy"]
    assert {row["caption"] for row in rows} <= {first, others[0]}
    assert sum(row["images"] for row in rows) < 12  # captions without these words are left out
    assert "Attribute accuracy" in (tmp_path / "out" / HTML_FILE).read_text()
    with pytest.raises(UserError, match=r"attribute_words .*none of the captions"):
        unknown = ["--out", tmp_path / "none", "--attribute-words", "zebra", "yak"]
        evaluate.main([str(word) for word in [*words, *unknown]])
    assert not (tmp_path / "none").exists()
