"""Stage 2 on classes and on images alone: data, training, resuming, and the models."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import evaluate
import sample
import train_ldm
from dataset.folder import read_folder
from dataset.table import PairList, split
from foundation.errors import UserError
from foundation.files import read_json
from ldm import TextToImage
from stages.condition import class_condition
from stages.diffusion import DiffusionTrainer
from stages.lora import apply_lora
from tests.helpers.bad_calls import command, make_world, refusal
from tests.helpers.images import picture
from tests.helpers.random_models import pixels
from tests.helpers.sample_runs import difference_to_diffusers
from tests.helpers.short_runs import killed_in_step, numbers
from training.run import config_differences

CLASSES = ("bag", "boot", "shirt")


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """Untrained models, and class folders with five images each."""
    root = make_world(tmp_path_factory.mktemp("world"))
    for k in range(15):
        picture(folder_of(root, k) / f"{k}.png", seed=k, size=(32, 32))
    return root


def folder_of(root: Path, k: int) -> Path:
    folder = root / "classes" / CLASSES[k % 3]
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def pairs_of(folder: Path) -> PairList:
    return read_folder(folder).pairs


def training(world: Path, out: Path, condition: str, *flags: object) -> list[str]:
    """Arguments of a training of three steps on the class folders."""
    own = ("--data", world / "classes", "--condition", condition, "--steps", 3, "--held-out", 0.2)
    words = command(train_ldm, world, out, *own, "--log-every", 1, *flags)
    place = words.index("--text-encoder")
    return words[:place] + words[place + 2 :]


@pytest.fixture(scope="module")
def runs(world) -> Path:
    """A folder with a finished run of each condition."""
    for condition in ("class", "none"):
        train_ldm.main(training(world, world / "runs" / condition, condition))
    return world / "runs"


def test_classes_are_the_captions_in_alphabetical_order(world):
    pairs = pairs_of(world / "classes")
    condition = class_condition(*split(pairs, 0.2))
    assert condition.classes == CLASSES
    train, held_out = split(pairs, 0.2)
    order = list(dict.fromkeys(pair.captions[0] for pair in [*train, *held_out]))
    assert condition.labels.tolist() == [3, *(CLASSES.index(name) for name in order)]


def test_what_is_no_class_is_refused(world, tmp_path):
    captioned = pairs_of(world / "data")  # each image has a caption of its own
    with pytest.raises(UserError, match=r"12 images have 12 different captions.*--condition text"):
        class_condition(captioned, captioned[:0])
    one = read_folder(world / "classes" / "bag", allow_missing_captions=True).pairs
    with pytest.raises(UserError, match=r"5 images have no class"):
        class_condition(one, one[:0])
    pairs = pairs_of(world / "classes")
    bags = pairs.where(np.array([pair.captions[0] == "bag" for pair in pairs]))
    others = pairs.where(np.array([pair.captions[0] != "bag" for pair in pairs]))
    with pytest.raises(UserError, match=r"one class, 'bag'.*--condition none"):
        class_condition(bags, bags[:0])
    with pytest.raises(UserError, match=r"all images of bag are held out"):
        class_condition(others, bags)


@pytest.mark.parametrize("condition", ["class", "none"])
def test_a_training_is_resumed_exactly_and_its_model_draws(world, runs, tmp_path, condition):
    straight, killed = runs / condition, tmp_path / "killed"
    again = training(world, killed, condition, "--save-every", 2)
    with killed_in_step(DiffusionTrainer, 2):
        train_ldm.main(again)
    train_ldm.main(again)
    weights = [load_file(run / "model/unet/diffusion_pytorch_model.safetensors")
               for run in (straight, killed)]  # fmt: skip
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert numbers(straight) == numbers(killed)
    assert not (straight / "model" / "text_encoder").exists()
    assert not (straight / "cache" / "context.npy").exists()
    model = TextToImage.load(straight)
    assert model.unet.config.down_block_types == ("DownBlock2D", "AttnDownBlock2D")
    assert model.classes == (CLASSES if condition == "class" else ())
    assert model.unet.config.num_class_embeds == (4 if condition == "class" else None)
    prompt = "boot" if condition == "class" else ""
    drawing = [prompt, "--model", straight, "--out", tmp_path / "plain", "--steps", 2]
    sample.main(list(map(str, drawing)))
    drawing[4:5] = [tmp_path / "guided", "--weak-model", killed / "state" / "step-0000002"]
    sample.main(list(map(str, drawing)))
    plain, guided = (tmp_path / name / "00000.png" for name in ("plain", "guided"))
    assert plain.read_bytes() != guided.read_bytes()
    metrics = [line for line in numbers(straight) if "val" in line]
    assert ("val/wrong_class" in metrics[-1]) == (condition == "class")


def test_each_image_is_trained_with_its_class_or_without(world, tmp_path):
    pairs, _ = split(pairs_of(world / "classes"), 0.2)
    seen: list[int] = []

    class Watched(DiffusionTrainer):
        def train_on(self, *arguments):
            *_, labels = arguments
            images = self.order.indices(len(seen) // 4).tolist()
            for label, k in zip(labels.tolist(), images, strict=True):
                assert label == 3 or CLASSES[label] == pairs[k].captions[0]
            seen.extend(labels.tolist())
            return super().train_on(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("commands.train_ldm.DiffusionTrainer", Watched)
        train_ldm.main(training(world, tmp_path / "run", "class", "--caption-dropout", 0.3))
    assert len(seen) == 12 and 3 in seen and len(set(seen)) > 2


@pytest.mark.parametrize(("condition", "prompt"), [("none", ""), ("class", "boot")])
def test_a_lora_of_a_model_without_text_is_applied(world, runs, tmp_path, condition, prompt):
    given = training(world, tmp_path / "lora", condition, "--init-from", runs / condition)
    train_ldm.main([*given, "--lora", "2", "--learning-rate", "0.1", "--warmup", "1"])
    model = TextToImage.load(runs / condition)
    (before,) = model(prompt, steps=2, seed=3)
    apply_lora(model, tmp_path / "lora", scale=100)  # three steps change little
    (after,) = model(prompt, steps=2, seed=3)
    assert model.chunks == 1 and not np.array_equal(pixels(before), pixels(after))


def test_compiled_code_is_refused_where_no_text_is_read(runs, tmp_path, capsys):
    drawing = ["boot", "--model", runs / "class", "--compile", "--out", tmp_path / "out"]
    assert "--compile" in refusal(capsys, sample, [*map(str, drawing), "--device", "cpu"])
    assert not (tmp_path / "out").exists()


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # in diffusers
@pytest.mark.parametrize(("condition", "prompt"), [("none", ""), ("class", "boot")])
def test_models_without_text_draw_the_same_in_diffusers(runs, tmp_path, condition, prompt):
    assert difference_to_diffusers(runs / condition, tmp_path, prompt) <= 1


@pytest.mark.parametrize("condition", ["class", "none"])
def test_models_are_evaluated(world, runs, tmp_path, condition, capsys):
    out = tmp_path / "report"
    given = ("model", runs / condition, "--data", world / "classes", "--held-out", 0.2)
    given += ("--samples", 8, "--steps", 1, "--device", "cpu", "--out", out)
    judged = [*map(str, given), "--judge", str(world / "other_clip")]
    if condition == "class":
        evaluate.main(judged)
        assert "recall@1" in read_json(out / "report.json")["metrics"]
        return
    assert "--judge" in refusal(capsys, evaluate, judged)
    assert "--features" in refusal(capsys, evaluate, [*map(str, given)])
    evaluate.main([*map(str, given), "--features", str(world / "other_clip")])
    report = read_json(out / "report.json")
    assert report["metrics"]["validation_loss"]["value"] > 0
    assert not [name for name in report["metrics"] if name.startswith(("recall@", "clip_score"))]
    assert [name for name in report["metrics"] if name.endswith("/kid")]
    assert "reads no captions" in report["missing"]["CLIP score and recall"]


def test_fine_tuning_continues_a_model_of_the_same_classes_only(world, runs, tmp_path, capsys):
    first = runs / "class"
    train_ldm.main(training(world, tmp_path / "next", "class", "--init-from", first, "--dry-run"))
    wrong = training(world, tmp_path / "wrong", "none", "--init-from", first)
    printed = refusal(capsys, train_ldm, wrong)
    assert "--condition class" in printed and "none" in printed
    for k in range(6):
        folder = tmp_path / "others" / ("cat", "dog")[k % 2]
        folder.mkdir(parents=True, exist_ok=True)
        picture(folder / f"{k}.png", seed=k, size=(32, 32))
    other = training(world, tmp_path / "wrong", "class", "--init-from", first)
    other[other.index(str(world / "classes"))] = str(tmp_path / "others")
    printed = refusal(capsys, train_ldm, other)
    assert "cat" in printed and "boot" in printed


@pytest.mark.parametrize(
    ("condition", "flags", "named"),
    [
        ("none", ("--text-encoder", "clip"), "--text-encoder"),
        ("class", ("--caption-prefix", "a photo of"), "--caption-prefix"),
        ("none", ("--preview-prompts", "a boot"), "--preview-prompts"),
        ("class", ("--preview-prompts", "boots"), "boots"),
        ("text", (), "--text-encoder"),
    ],
)
def test_settings_of_texts_are_refused_without_texts(
    world, tmp_path, capsys, condition, flags, named
):
    printed = refusal(capsys, train_ldm, training(world, tmp_path / "run", condition, *flags))
    assert named in printed
    assert not (tmp_path / "run").exists()


def test_runs_that_are_older_than_the_flag_are_on_texts():
    assert not config_differences({"steps": 2}, {"steps": 2, "condition": "text"})
    assert config_differences({"steps": 2}, {"steps": 2, "condition": "class"})
