"""evaluate.py model --classifier: which samples show what their captions say."""

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import evaluate
from benchmarks import caption_classifier
from evaluation.distances import inception_score
from evaluation.feature_spaces.choice import ChosenSpaces
from evaluation.feature_spaces.files import script_space
from foundation.errors import UserError
from stages.evaluation.classifier import class_accuracy, load_classifier
from stages.evaluation.report import JSON_FILE

CPU = torch.device("cpu")
COLORS = ["a red picture", "a green picture", "a blue picture"]


class Colors(nn.Module):
    def forward(self, images: torch.Tensor, return_features: bool = False) -> torch.Tensor:
        return images.float().mean(dim=(2, 3))


class NoFeatures(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.float().mean(dim=(2, 3))


def classifier_file(folder: Path, captions: list[str], network: nn.Module | None = None) -> Path:
    file = folder / "colors.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated
        torch.jit.script(network or Colors()).save(str(file))
    file.with_suffix(".json").write_text(json.dumps({"captions": captions}))
    return file


def test_accuracy_is_the_share_of_hits_among_images_with_a_class():
    labels = torch.tensor([0, 1, 1, 2, -1])
    right = torch.eye(3)[[0, 1, 1, 2, 0]]
    half = torch.eye(3)[[0, 0, 0, 2, 2]]
    found, table = class_accuracy({"samples": half, "real": right}, labels, COLORS)
    assert found["samples"].value == 0.5 and found["real"].value == 1
    assert found["samples"].low < 0.5 < found["samples"].high
    assert "1 images" in found["samples"].note
    assert [(row["images"], row["samples"], row["real"]) for row in table] == [
        (1, 1, 1),
        (2, 0, 1),
        (1, 1, 1),
    ]


def test_a_network_without_features_is_a_classifier_too(tmp_path):
    classifier = load_classifier(classifier_file(tmp_path, COLORS, NoFeatures()), CPU, 8)
    assert classifier.labels(["a blue picture", "a cat"]).tolist() == [2, -1]
    chosen = classifier.join(ChosenSpaces())
    assert classifier.join(chosen) is chosen and chosen.spaces == [classifier.space]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"captions": COLORS[:2]}, r"3 logits.*colors\.json.*has 2"),
        ({"captions": [*COLORS[:2], COLORS[0]]}, r"3 logits.*has 2"),
        ({"classes": COLORS}, r"colors\.json.*captions"),
    ],
)
def test_captions_that_do_not_go_with_the_logits_are_refused(tmp_path, content, message):
    file = classifier_file(tmp_path, COLORS)
    file.with_suffix(".json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=message):
        load_classifier(file, CPU, 8)


def test_captions_of_other_data_are_refused(tmp_path):
    classifier = load_classifier(classifier_file(tmp_path, COLORS), CPU, 8)
    with pytest.raises(UserError, match=r"a red picture.*a cat"):
        classifier.labels(["a cat", "a dog"])


def test_the_report_has_accuracy_and_a_score_that_is_not_called_inception(world, tmp_path):
    lines = (world / "data" / "metadata.jsonl").read_text().splitlines()
    captions = sorted({json.loads(line)["text"] for line in lines})[:3]
    words = ["model", world / "ldm", "--data", world / "data", "--judge", world / "clip"]
    words += ["--classifier", classifier_file(tmp_path, captions), "--samples", 12, "--steps", 1]
    words += ["--device", "cpu", "--out", tmp_path / "out", "--held-out", 0]
    evaluate.main([str(word) for word in words])
    content = json.loads((tmp_path / "out" / JSON_FILE).read_text())
    real = content["baselines"]["real images"]
    for values in (content["metrics"], content["baselines"]["autoencoder (ceiling)"], real):
        assert {"class_accuracy", "colors.pt/inception_score"} <= values.keys()
        assert "inception_score" not in values
    rows = content["tables"]["class accuracy"]
    assert {row["caption"] for row in rows} <= set(captions)
    assert sum(row["images"] for row in rows) < 12  # other captions are left out


def test_a_classifier_learns_colors_and_names_its_classes(tmp_path, capsys):
    random = np.random.default_rng(0)
    for split, count in (("train", 45), ("test", 15)):
        (tmp_path / split).mkdir()
        with (tmp_path / split / "metadata.jsonl").open("w") as metadata:
            for k in range(count):
                pixels = random.integers(0, 80, (16, 16, 3), dtype=np.uint8)
                pixels[..., k % 3] += 150
                Image.fromarray(pixels).save(tmp_path / split / f"{k}.png")
                row = {"file_name": f"{k}.png", "text": COLORS[k % 3]}
                metadata.write(json.dumps(row) + "\n")
    file = tmp_path / "made" / "network.pt"
    words = ["--data", tmp_path / "train", "--test", tmp_path / "test", "--out", file]
    words += ["--size", 16, "--epochs", 6, "--batch-size", 9]
    caption_classifier.main([str(word) for word in words])
    facts = json.loads(file.with_suffix(".json").read_text())
    assert facts["captions"] == sorted(COLORS) and facts["tested_on"]["value"] == 1
    assert "15 real images" in capsys.readouterr().out
    classifier = load_classifier(file, CPU, 16)
    red = torch.zeros(16, 3, 16, 16, dtype=torch.uint8)
    red[:, 0] = 190
    found = script_space(file, CPU)(red)
    assert found.vectors.shape == (16, caption_classifier.FEATURES)
    assert found.logits.argmax(dim=1).unique().tolist() == [
        classifier.captions.index("a red picture")
    ]
    assert inception_score(found.logits).value == pytest.approx(1, abs=0.01)
