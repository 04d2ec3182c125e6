"""Sweeps of evaluate.py model over guidance scale, steps and sampler."""

import json
import shutil

import pytest

import evaluate
from autoencoder import Autoencoder
from foundation.errors import UserError
from ldm import TextToImage
from ldm.guidance import Guidance
from ldm.pipeline.sampling import Sampling
from stages.evaluation.report import HTML_FILE, JSON_FILE
from stages.evaluation.sweep_points import make_axes

GUIDANCE = "sweep over guidance scale"


@pytest.fixture
def drawn(monkeypatch) -> list[Sampling]:
    """The sampling of each picture that is drawn."""
    calls: list[Sampling] = []
    draw = TextToImage.__call__

    def counted(self, prompts, *, sampling, **others):
        calls.extend([sampling] * len(prompts))
        return draw(self, prompts, sampling=sampling, **others)

    monkeypatch.setattr(TextToImage, "__call__", counted)
    return calls


def test_a_sweep_draws_each_point_once_and_its_own_point_not_again(world, tmp_path, drawn):
    words = ["model", world / "ldm", "--data", world / "data", "--judge", world / "clip"]
    words += ["--samples", 7, "--steps", 1, "--features", world / "clip", "--device", "cpu"]
    words += ["--sweep-guidance", 4, 1, "--sweep-samples", 6]
    words = [str(word) for word in words]

    def report(out, *more) -> dict:
        drawn.clear()
        evaluate.main([*words, "--out", str(out), *map(str, more)])
        return json.loads((out / JSON_FILE).read_text())

    whole = report(tmp_path / "whole")
    assert [one.guidance.scale for one in drawn].count(1) == 6  # and 4 only for the measurement
    rows = whole["tables"][GUIDANCE]
    assert [row["guidance_scale"] for row in rows] == [1, 4]
    assert [row["of_the_measurement"] for row in rows] == [False, True]
    assert {"recall@1", "clip_score", "clip/kid", "clip/precision", "clip/recall"} <= rows[0].keys()
    page = (tmp_path / "whole" / HTML_FILE).read_text()
    for text in ("Sweep over guidance scale", "precision in clip against recall", "KID in clip"):
        assert text in page

    # A run that was stopped before some blocks draws these. With one step both samplers draw the
    # same: the same captions and noise give the same numbers.
    files = sorted((tmp_path / "whole").glob("blocks/*/blocks-of-*/block-*.safetensors"))
    shutil.rmtree(files[0].parents[1])
    again = report(tmp_path / "whole", "--sweep-samplers", "euler")
    assert again["metrics"] == whole["metrics"] and again["tables"][GUIDANCE] == rows
    first, second = again["tables"]["sweep over samplers"]
    for name in ("recall@1", "clip_score", "clip/kid"):
        assert second[name]["value"] == pytest.approx(first[name]["value"], rel=1e-3, abs=1e-3)


def test_a_point_with_all_samples_has_the_numbers_of_the_measurement():
    main = Sampling(guidance=Guidance(scale=3.0), steps=4)
    axes = make_axes(main, [6.0, 1.0, 3.0], [2, 2], ["euler"])
    values = {axis.flag: [point.value for point in axis.points] for axis in axes}
    assert values == {
        "guidance_scale": [1.0, 3.0, 6.0],
        "steps": [2, 4],
        "sampler": ["dpmpp_2m", "euler"],
    }
    for axis in axes:  # one setting at a time
        assert [point.sampling for point in axis.points].count(main) == 1
    assert {(p.sampling.steps, p.sampling.sampler) for p in axes[0].points} == {(4, "dpmpp_2m")}


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ((["--sweep-guidance", "4"]), "sweep-guidance"),
        ((["--sweep-samplers", "dpm9"]), "dpm9"),
        ((["--sweep-steps", "0"]), "sweep-steps"),
        ((["--sweep-samples", "4"]), "only with --sweep-guidance"),
        ((["--sweep-guidance", "1", "--sweep-samples", "300"]), "300"),
    ],
)
def test_a_sweep_that_cannot_be_is_refused_before_a_model_is_read(tmp_path, flags, words):
    command = ["model", str(tmp_path / "none"), "--data", str(tmp_path), "--judge", str(tmp_path)]
    with pytest.raises(UserError) as error:
        evaluate.main([*command, *flags])
    assert words in str(error.value).replace("_", "-") or words in str(error.value)


def test_without_held_out_images_each_is_encoded_once(world, tmp_path, monkeypatch):
    encoded: list[int] = []
    encode = Autoencoder.encode

    def counted(self, images, *others, **named):
        encoded.append(len(images))
        return encode(self, images, *others, **named)

    monkeypatch.setattr(Autoencoder, "encode", counted)
    words = ["model", world / "ldm", "--data", world / "data", "--judge", world / "clip"]
    words += ["--samples", 5, "--steps", 1, "--device", "cpu", "--held-out", 0, "--out", tmp_path]
    evaluate.main([str(word) for word in words])
    content = json.loads((tmp_path / JSON_FILE).read_text())
    assert sum(encoded) == 5
    assert {"validation_loss", "reconstruction_psnr"} <= content["metrics"].keys()
    assert content["model"]["weights"] == "not recorded"  # of a model that no training wrote
