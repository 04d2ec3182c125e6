"""evaluate.py model: samples that are kept, and what stands beside them."""

import json

import evaluate
from ldm import TextToImage
from stages.evaluation.report import HTML_FILE, JSON_FILE


def test_samples_are_drawn_once_and_measured_again(world, tmp_path, monkeypatch):
    words = ["model", world / "ldm", "--data", world / "data", "--judge", world / "clip"]
    words += ["--samples", 7, "--steps", 1, "--device", "cpu", "--out", tmp_path]
    words = [str(word) for word in words]
    evaluate.main(words)
    content = json.loads((tmp_path / JSON_FILE).read_text())
    assert {"clip_score", "recall@1", "reconstruction_psnr"} <= content["metrics"].keys()
    assert set(content["baselines"]) == {"real images", "autoencoder (ceiling)"}
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
