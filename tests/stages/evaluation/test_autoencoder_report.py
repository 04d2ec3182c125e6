"""evaluate.py autoencoder: its numbers, going on after a kill, and what it refuses."""

import json
from pathlib import Path

import pytest
import torch

import evaluate
from autoencoder import PRESETS, Autoencoder
from dataset.images.transform import ImageTransform, normalize_pixels, to_uint8
from evaluation.feature_spaces.space import FeatureSpace
from evaluation.latents import image_moments, latent_channels
from evaluation.reconstruction import psnr
from foundation.errors import UserError
from stages.evaluation import autoencoder, blocks
from stages.evaluation.autoencoder_report import channels_section
from stages.evaluation.report import JSON_FILE, read_report

SIZE = 32


def flags(world: Path, out: Path, *more: object) -> list[str]:
    words = ("autoencoder", world / "vae", "--data", world / "data", "--held-out", 0, "--out", out)
    fast = ("--noise", 0.1, 0.5, "--device", "cpu", "--batch-size", 4)
    return [str(word) for word in (*words, *fast, *more)]


@pytest.fixture(scope="module")
def measured(world, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("report")
    evaluate.main(flags(world, out, "--features", world / "clip"))
    return out


def pixels_of(world: Path) -> torch.Tensor:
    files = sorted((world / "data").glob("*.png"))
    transform = ImageTransform(SIZE)
    return torch.stack([torch.from_numpy(transform(file)) for file in files])


def test_numbers_are_those_of_plain_calls(world, measured):
    vae, pixels = Autoencoder.load(world / "vae"), pixels_of(world)
    with torch.no_grad():
        posterior = vae.encode(normalize_pixels(pixels))
        again = to_uint8(vae.decode(posterior.mode()))
    content = json.loads((measured / JSON_FILE).read_text())
    found = content["metrics"]["psnr"]
    assert found["value"] == pytest.approx(psnr(pixels, again).mean().item(), abs=1e-4)
    assert found["low"] < found["value"] < found["high"]
    assert sorted(content["per_image"]["psnr"]) == pytest.approx(
        sorted(psnr(pixels, again).tolist()), rel=1e-4
    )
    channels = latent_channels(image_moments(posterior.mean, posterior.logvar))
    rows = content["tables"]["channels"]
    assert [row["kl"] for row in rows] == pytest.approx(
        [channel.kl for channel in channels], rel=1e-5
    )
    assert [row["dead"] for row in rows] == [channel.is_dead for channel in channels]
    mean = pixels.double().mean(dim=0).round().to(torch.uint8).expand_as(pixels)
    baseline = content["baselines"]["mean image"]["psnr"]["value"]
    assert baseline == pytest.approx(psnr(pixels, mean).mean().item(), abs=1e-4)


def test_distances_have_baselines_and_a_protocol(world, measured):
    report = read_report(measured)
    content = json.loads((measured / JSON_FILE).read_text())
    for key in ("clip/kid", "clip/frechet", "clip/cmmd"):
        assert key in report.metrics
        assert set(content["baselines"]) == {"bicubic", "JPEG", "mean image"}
        assert all(key in values for values in content["baselines"].values())
    assert "clip/precision" in report.metrics and "clip/coverage" in report.metrics
    assert report.protocol["images"]["images"] == 12 and report.protocol["pixels"]["size"] == SIZE
    assert report.protocol["spaces"][0]["sha256"] and report.versions["torch-fidelity"]
    assert [row["noise"] for row in content["tables"]["robustness"]] == [0, 0.1, 0.5]
    assert len(content["tables"]["worst"]) == 12
    worst = [row["psnr"] for row in content["tables"]["worst"]]
    assert worst == sorted(worst)
    assert "LPIPS" in content["missing"]


def test_the_page_needs_nothing_else(measured):
    text = (measured / "report.html").read_text(encoding="utf-8")
    assert "<script" not in text and "prefers-color-scheme: dark" in text
    assert text.count("src='data:image/png;base64,") == 8 + 12
    assert "src='http" not in text and "href" not in text
    assert "<svg" in text and "KID in clip" in text


class Killed(Exception):
    pass


def test_a_killed_evaluation_goes_on_and_ends_alike(world, measured, tmp_path, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK", 5)
    words = flags(world, tmp_path, "--features", world / "clip")
    compute, calls = autoencoder.AutoencoderMeasurement.compute, []

    def counted(self, numbers, pixels):
        if len(calls) == 1 and not (tmp_path / "again").exists():
            raise Killed
        calls.append(numbers)
        return compute(self, numbers, pixels)

    monkeypatch.setattr(autoencoder.AutoencoderMeasurement, "compute", counted)
    with pytest.raises(Killed):
        evaluate.main(words)
    (tmp_path / "again").touch()
    evaluate.main(words)
    assert calls == [range(5), range(5, 10), range(10, 12)]
    straight, resumed = (
        json.loads((folder / JSON_FILE).read_text()) for folder in (measured, tmp_path)
    )
    assert resumed["per_image"] == straight["per_image"]
    assert resumed["protocol"] == straight["protocol"]
    for key, value in straight["metrics"].items():
        assert resumed["metrics"][key]["value"] == pytest.approx(value["value"], rel=1e-4), key


def test_the_features_of_the_images_are_kept_beside_the_data(
    world, measured, tmp_path, monkeypatch
):
    seen = []
    call = FeatureSpace.__call__
    monkeypatch.setattr(
        FeatureSpace,
        "__call__",
        lambda self, images: seen.append(len(images)) or call(self, images),
    )
    words = flags(world, tmp_path, "--features", world / "clip")
    words[1] = str(world / "other_vae")
    evaluate.main(words)
    assert sum(seen) == 3 * 12 + 1  # reconstructions, bicubic, JPEG, and the mean image
    assert list((world / "data" / ".latentsmith" / "features").iterdir())


@pytest.mark.parametrize(
    ("more", "pattern"),
    [
        (("--size", 30), r"30 is not a multiple of 4\b.*28|32"),
        (("--images", 1), r"\b1 image\b.*at least 2"),
        (("--features", "inception"), r"inception-2015.*6726825d"),
        (("--held-out", 0.00001), r"\b1 image\b.*at least 2"),
    ],
)
def test_what_cannot_be_measured(world, tmp_path, monkeypatch, more, pattern):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(UserError, match=pattern):
        evaluate.main(flags(world, tmp_path / "out", *more))
    assert not (tmp_path / "out").exists()


def test_channels_that_differ(world, tmp_path):
    config = PRESETS["tiny-32"]
    five = type(config)(**{**vars(config), "in_channels": 5, "out_channels": 5})
    Autoencoder(five).save(tmp_path / "five")
    words = flags(world, tmp_path / "out")
    words[1] = str(tmp_path / "five")
    with pytest.raises(UserError, match=r"made for images of 5 channels.*\.png.*\b5\b"):
        evaluate.main(words)
    other = type(config)(**{**vars(config), "out_channels": 1})
    Autoencoder(other).save(tmp_path / "other")
    words[1] = str(tmp_path / "other")
    with pytest.raises(UserError, match="reads 3 channels and writes 1"):
        evaluate.main(words)


def test_the_table_marks_channels_without_information():
    moments = torch.stack([torch.randn(8, 6, 6), torch.full((8, 6, 6), 5.0)], dim=1)
    noise = torch.full_like(moments, 0.1)
    rows = autoencoder.channel_rows(latent_channels(image_moments(moments, 2 * noise.log())))
    page = channels_section(rows)
    assert page.count("(no information)") == 1 and "1 (no information)" in page


def test_reports_are_compared(world, measured, tmp_path, capsys):
    other = tmp_path / "other"
    words = flags(world, other, "--features", world / "clip")
    words[1] = str(world / "other_vae")
    evaluate.main(words)
    capsys.readouterr()
    evaluate.main(["compare", str(measured), str(other), "--out", str(tmp_path / "page")])
    text = capsys.readouterr().out
    assert str(world / "vae") in text and str(world / "other_vae") in text
    assert any(words in text for words in ("better, 95 %", "worse, 95 %", "no difference seen"))
    assert (
        "PSNR in dB" in text
        and (tmp_path / "page" / "comparison.html").read_text().count("<tr>") > 6
    )
    evaluate.main(["compare", str(measured), str(measured / JSON_FILE)])
    rows = [line for line in capsys.readouterr().out.splitlines()[1:] if line]
    assert all(row.endswith("no difference seen") for row in rows)


def test_reports_that_cannot_be_compared(measured, tmp_path):
    content = json.loads((measured / JSON_FILE).read_text())
    content["protocol"]["pixels"]["size"] = 64
    content["protocol"]["seed"] = 7
    (tmp_path / JSON_FILE).write_text(json.dumps(content))
    with pytest.raises(
        UserError, match=r"(?s)pixels: size: '32' and '64'.*seed: '0' and '7'"
    ) as error:
        evaluate.main(["compare", str(measured), str(tmp_path)])
    assert str(measured) in str(error.value)
    with pytest.raises(UserError, match="two reports, got 1"):
        evaluate.main(["compare", str(measured)])
    (tmp_path / JSON_FILE).unlink()
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="not empty and holds no report"):
        evaluate.main(["compare", *[str(measured)] * 2, "--out", str(tmp_path)])
    with pytest.raises(UserError, match=r"report\.json"):
        evaluate.main(["compare", str(measured), str(tmp_path)])


def test_the_old_form_names_the_new_command():
    words = ["--model", "runs/ldm", "--data", "my data", "--judge", "j"]
    with pytest.raises(
        UserError, match=r"python evaluate\.py model runs/ldm --data 'my data' --judge j"
    ):
        evaluate.main(words)


def test_the_clip_of_the_model_is_no_judge(world, tmp_path):
    words = ["model", world / "ldm", "--data", world / "data", "--judge", world / "other_clip"]
    words = [str(word) for word in (*words, "--out", tmp_path / "out")]
    clip = world / "other_clip"  # make_world builds the model with the last one
    with pytest.raises(UserError, match=rf"{clip}.*sha256"):
        evaluate.main(words)
    assert not (tmp_path / "out").exists()
