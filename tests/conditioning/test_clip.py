"""A CLIP trained here equals open_clip's, opens in open_clip, and learns."""

import copy
import json
import math
from pathlib import Path

import open_clip
import pytest
import torch
from PIL import Image, ImageDraw
from transformers import CLIPTextModel, CLIPTokenizer

import train_clip
from conditioning import TextEncoder
from conditioning.clip import PRESETS, Clip
from conditioning.clip_loss import (
    ContrastiveLoss,
    SyncBatchNorm2d,
    clamp_logit_scale,
    convert_sync_batch_norm,
    parameter_groups,
    shift_images,
)
from foundation.errors import MissingFileError, UserError
from stages.clip import ClipTrainingConfig, build_clip

CAPTIONS = ["a red circle", "", "a long caption about a blue square on the left, and more", "tree"]


@pytest.fixture(scope="module")
def clip() -> Clip:
    torch.manual_seed(0)
    return Clip(PRESETS["tiny-32"]).eval().requires_grad_(False)


def random_images(count: int, size: int = 32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, 3, size, size), generator=generator).to(torch.uint8)


def test_leaving_out_the_padding_changes_no_text_feature(clip):
    ids = clip.tokenizer(CAPTIONS * 3)
    expected = clip.network.encode_text(ids, normalize=True)
    assert torch.allclose(clip.text_features(ids), expected, atol=1e-6)
    assert torch.allclose(clip.encode_texts(CAPTIONS[:1]), expected[:1], atol=1e-6)
    assert clip.encode_texts(CAPTIONS).norm(dim=1) == pytest.approx(torch.ones(4))


def test_what_was_saved_opens_in_open_clip_with_equal_features(clip, tmp_path):
    clip.save(tmp_path / "clip")
    theirs, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{tmp_path / 'clip'}")
    images = random_images(3)
    preprocessed = torch.stack(
        [preprocess(Image.fromarray(image.permute(1, 2, 0).numpy())) for image in images]
    )
    tokenizer = open_clip.get_tokenizer(f"local-dir:{tmp_path / 'clip'}")
    with torch.no_grad():
        theirs.eval()
        image_features = theirs.encode_image(preprocessed, normalize=True)
        text_features = theirs.encode_text(tokenizer(CAPTIONS), normalize=True)
    assert torch.allclose(clip.encode_images(images), image_features, atol=1e-5)
    assert torch.allclose(clip.encode_texts(CAPTIONS), text_features, atol=1e-5)

    again = Clip.load(tmp_path)
    assert torch.equal(again.encode_images(images), clip.encode_images(images))
    assert not again.training and not any(w.requires_grad for w in again.parameters())


def test_the_text_encoder_is_the_text_tower(clip, tmp_path):
    """Its state at the end token, projected, is the CLIP's own text feature."""
    encoder = clip.text_encoder()
    ids = encoder.tokenize(CAPTIONS)
    ends = encoder(CAPTIONS)[torch.arange(len(ids)), ids.argmax(dim=1)]
    features = torch.nn.functional.normalize(ends @ clip.network.text_projection, dim=-1)
    assert torch.allclose(features, clip.encode_texts(CAPTIONS), atol=1e-5)
    assert (encoder.tokens, encoder.width) == (24, 64)

    encoder.save(tmp_path)
    theirs = CLIPTextModel.from_pretrained(tmp_path / "text_encoder").eval()
    their_ids = CLIPTokenizer.from_pretrained(tmp_path / "tokenizer")(
        CAPTIONS, padding="max_length", truncation=True, return_tensors="pt"
    ).input_ids
    with torch.no_grad():
        states = theirs(input_ids=their_ids).last_hidden_state
    assert torch.equal(their_ids, ids)
    assert torch.allclose(encoder(CAPTIONS), states, atol=1e-5)


def test_pictures_of_another_size_are_resized(clip):
    large = random_images(2).repeat_interleave(4, dim=2).repeat_interleave(4, dim=3)
    features = clip.encode_images(large)
    assert features.shape == (2, 64)
    likeness = (features * clip.encode_images(random_images(2))).sum(dim=1)
    assert (likeness > 0.9).all()


def test_the_loss_is_cross_entropy_both_ways(clip):
    images, ids = random_images(4), clip.tokenizer(CAPTIONS)
    logits = clip.logit_scale * clip.encode_images(images) @ clip.encode_texts(CAPTIONS).T
    right = torch.arange(4)
    both = [torch.nn.functional.cross_entropy(each, right) for each in (logits, logits.T)]
    expected = (sum(both) / 2).item()
    assert ContrastiveLoss(clip)(images, ids).item() == pytest.approx(expected, abs=1e-4)


def test_both_towers_and_the_temperature_get_a_gradient(clip):
    trained = copy.deepcopy(clip).requires_grad_(True).train()
    loss = ContrastiveLoss(trained)(random_images(4), trained.tokenizer(CAPTIONS))
    loss.backward()
    without = [name for name, weight in trained.named_parameters() if weight.grad is None]
    assert without == []
    assert all(weight.grad.isfinite().all() for weight in trained.parameters())


def test_no_decay_for_embeddings_norms_and_temperature(clip):
    decay, no_decay = (group["params"] for group in parameter_groups(clip, 0.1))
    assert len(decay) + len(no_decay) == len(list(clip.parameters()))
    ids = {id(weight) for weight in no_decay}
    assert id(clip.network.token_embedding.weight) in ids
    assert id(clip.network.logit_scale) in ids
    assert all(weight.ndim >= 2 for weight in decay)


def test_the_temperature_is_bounded(clip):
    trained = copy.deepcopy(clip)
    trained.network.logit_scale.fill_(9.0)
    clamp_logit_scale(trained)
    assert trained.logit_scale.item() == pytest.approx(100)


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_builds_and_has_a_recipe(preset):
    with torch.device("meta"):
        open_clip.CLIP(**copy.deepcopy(PRESETS[preset]))
    assert preset in train_clip.PRESETS


def test_images_are_moved_and_not_softened():
    images = random_images(3, size=8)
    offsets = torch.tensor([[0, 0], [2, 0], [-1, 2]])
    moved = shift_images(images, offsets, 2)
    assert torch.equal(moved[0], images[0])
    assert torch.equal(moved[1, :, 2:], images[1, :, :-2])
    assert torch.equal(moved[1, :, :2], images[1, :, :1].expand(-1, 2, -1))
    assert torch.equal(moved[2, :, :-1, 2:], images[2, :, 1:, :-2])


@pytest.mark.parametrize("size", [32, 34, 46, 48, 62, 64, 66, 96])
def test_a_judge_is_built_for_the_size_of_a_model(size):
    flags = {"data": Path("d"), "out": Path("o"), "preset": "judge", "size": size}
    with torch.device("meta"):
        judge = build_clip(ClipTrainingConfig(**flags))
        assert judge.size == size
        features = judge.image_features(torch.zeros(2, 3, size, size, dtype=torch.uint8))
    assert features.shape == (2, 192)
    assert PRESETS["judge"]["vision_cfg"]["image_size"] == 64  # the preset itself is as it was


def test_a_folder_without_both_towers_is_named(clip, tmp_path):
    with pytest.raises(MissingFileError, match=r"open_clip_config\.json"):
        Clip.load(tmp_path)
    clip.save(tmp_path)
    other = {**PRESETS["tiny-32"], "embed_dim": 32}
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": other}))
    with pytest.raises(UserError, match=r"open_clip_model\.safetensors"):
        Clip.load(tmp_path)


def test_synchronized_batch_norms_replace_ordinary_ones_and_share_their_weights(clip):
    """New layers, the same parameters and keys; PyTorch's own conversion works alike."""
    converted = copy.deepcopy(clip).train()
    before = dict(converted.named_modules())
    parameters = [id(parameter) for parameter in converted.parameters()]
    convert_sync_batch_norm(converted)
    after = dict(converted.named_modules())
    replaced = [name for name in before if type(before[name]) is torch.nn.BatchNorm2d]
    assert replaced and all(type(after[name]) is SyncBatchNorm2d for name in replaced)
    assert all(type(before[name]) is torch.nn.BatchNorm2d for name in replaced)
    assert [id(parameter) for parameter in converted.parameters()] == parameters
    assert list(converted.state_dict()) == list(clip.state_dict())


@pytest.mark.parametrize("training", [True, False])
def test_a_synchronized_batch_norm_of_one_process_is_an_ordinary_one(training):
    torch.manual_seed(0)
    plain = torch.nn.Sequential(torch.nn.BatchNorm2d(3)).train(training)
    torch.nn.init.normal_(plain[0].weight)
    torch.nn.init.normal_(plain[0].bias)
    sync = copy.deepcopy(plain)
    convert_sync_batch_norm(sync)
    images = torch.randn(4, 3, 5, 6)
    torch.testing.assert_close(sync(images), plain(images))
    for key, value in plain.state_dict().items():
        torch.testing.assert_close(sync.state_dict()[key], value, msg=key)


COLORS = {"red": (220, 30, 30), "green": (30, 160, 60), "blue": (40, 60, 220), "black": (0, 0, 0)}


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    """Colored circles and squares of several sizes, each with its caption."""
    folder = tmp_path_factory.mktemp("shapes")
    rows = []
    for color, rgb in COLORS.items():
        for shape in ("circle", "square"):
            for size in range(6, 15):
                image = Image.new("RGB", (32, 32), "white")
                draw = ImageDraw.Draw(image)
                box = (16 - size, 16 - size, 16 + size, 16 + size)
                (draw.ellipse if shape == "circle" else draw.rectangle)(box, fill=rgb)
                name = f"{color}-{shape}-{size}.png"
                image.save(folder / name)
                rows.append({"file_name": name, "text": f"a {color} {shape}"})
    lines = "\n".join(json.dumps(row) for row in rows)
    (folder / "metadata.jsonl").write_text(lines + "\n")
    return folder


def command(shapes, out, *flags: str) -> list[str]:
    return [
        *("--data", str(shapes), "--out", str(out), "--preset", "tiny-32", "--device", "cpu"),
        *("--batch-size", "24", "--steps", "60", "--save-every", "30", "--held-out", "0.1", *flags),
    ]


@pytest.fixture(scope="module")
def run(shapes, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "clip"
    train_clip.main(command(shapes, out))
    return out


def test_training_learns_which_text_belongs_to_which_image(run):
    """The test images have sizes between those of the training set, half a pixel off the middle."""
    trained = Clip.load(run)
    texts = [f"a {color} {shape}" for color in COLORS for shape in ("circle", "square")]
    pictures = []
    for rgb in COLORS.values():
        for shape in ("ellipse", "rectangle"):
            image = Image.new("RGB", (32, 32), "white")
            getattr(ImageDraw.Draw(image), shape)((5, 5, 26, 26), fill=rgb)
            pictures.append(torch.tensor(list(image.tobytes())).view(32, 32, 3).permute(2, 0, 1))
    features = trained.encode_images(torch.stack(pictures).to(torch.uint8))
    best = (features @ trained.encode_texts(texts).T).argmax(dim=1)
    assert (best // 2 == torch.arange(8) // 2).all()  # the color
    assert (best == torch.arange(8)).sum() >= 6  # the shape too; chance is 1 of 8


def test_the_run_folder_opens_as_text_encoder(run):
    encoder = TextEncoder.load(run)
    assert encoder(["a red circle"]).shape == (1, 24, 64)
    assert encoder.sha256 == Clip.load(run).text_encoder().sha256
    numbers = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in numbers if "loss" in line]
    assert math.log(24) + 1 > losses[0] > 1.3 * losses[-1]  # equal captions limit how far it falls
    assert numbers[-1]["step"] == 60 and numbers[-1]["train_recall@1"] > 0.8
    assert 0 <= numbers[-1]["held_out_recall@10"] <= 1


def test_the_plan_warns_of_captions_that_are_cut(shapes, tmp_path, capsys):
    train_clip.main(command(shapes, tmp_path / "clip", "--context-length", "4", "--dry-run"))
    output = capsys.readouterr().out
    assert "captions have more than 4 tokens and lose their end" in output
    assert not (tmp_path / "clip").exists()


@pytest.mark.parametrize("flags", [["--batch-size", "1000"], ["--context-length", "2"]])
def test_bad_flags_leave_nothing_behind(shapes, tmp_path, flags):
    with pytest.raises(ValueError):
        train_clip.main(command(shapes, tmp_path / "clip", *flags))
    assert not (tmp_path / "clip").exists()
