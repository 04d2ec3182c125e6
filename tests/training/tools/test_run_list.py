"""What a list of runs says about each, and the curves that several have in common."""

import json

from tests.helpers.images import picture
from training.tools.run_list import (
    compared_metrics,
    metrics_of,
    preview_files,
    summarize_run,
    summarize_runs,
)

BAD = "the KL term is dead: the latents carry no information"


def make_run(folder, flag, lines, finished=False, **settings):
    folder.mkdir(parents=True)
    settings = {flag: {}, "steps": 100, "batch_size": 8, "preset": "tiny-32", **settings}
    (folder / "config.json").write_text(json.dumps(settings))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if finished:
        (folder / "model").mkdir()
        (folder / "history.jsonl").write_text('{"step": 100, "event": "finished"}\n')
    return folder


def test_kind_state_speed_and_verdicts_of_runs(tmp_path):
    lines = [
        {"step": 20, "loss": 2.0, "images_per_second": 4.0},
        {"step": 40, "loss": 1.0, "images_per_second": 6.0, "verdict": "learns", "kl": BAD},
        {"step": 60, "verdict": "learns well"},
    ]
    make_run(tmp_path / "birds" / "vae", "loss", lines)
    make_run(tmp_path / "fish", "text_encoder", lines[:1], True, condition="none", task="inpaint")
    (tmp_path / "fish" / "model" / "config.json").write_text(json.dumps({"loss": {}}))
    runs = {run.name: run for run in summarize_runs(tmp_path)}
    assert set(runs) == {"birds/vae", "fish"}
    vae, ldm = runs["birds/vae"], runs["fish"]
    assert (vae.kind, vae.state, vae.step, vae.rate) == ("autoencoder", "stopped", 60, 5.0)
    assert vae.seconds_left == 40 * 8 / 5
    assert vae.verdicts == [(60, "learns well"), (40, BAD)] and vae.has_warning
    assert ldm.kind == "model that draws without captions for inpaint"
    assert ldm.state == "finished" and ldm.seconds_left is None


def test_metrics_are_read_again_when_they_change(tmp_path):
    run = make_run(tmp_path / "vae", "loss", [{"step": 1, "loss": 2.0}])
    assert len(metrics_of(run)) == 1
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "loss": 1.0}\n{"step": 3, "lo')
    assert [line["step"] for line in metrics_of(run)] == [1, 2]


def test_only_what_several_runs_have_is_compared(tmp_path):
    one = make_run(tmp_path / "one", "loss", [{"step": 1, "loss": 2.0, "psnr": 20.0}])
    two = make_run(tmp_path / "two", "loss", [{"step": 1, "loss": 3.0, "kl": 1.0}])
    assert compared_metrics({"one": one, "two": two}) == [
        ("loss", {"one": [(1, 2.0)], "two": [(1, 3.0)]})
    ]
    assert compared_metrics({"one": one}) == []


def test_previews_are_files_of_the_run(tmp_path):
    run = make_run(tmp_path / "runs" / "vae", "loss", [])
    secret = picture(tmp_path / "secret.png")
    own = picture(run / "previews" / "step-0000020.png")
    (run / "previews" / "step-0000040.png").symlink_to(secret)
    assert preview_files(run) == [own]
    other = make_run(tmp_path / "runs" / "other", "loss", [])
    (tmp_path / "elsewhere").mkdir()
    picture(tmp_path / "elsewhere" / "step-0000020.png")
    (other / "previews").symlink_to(tmp_path / "elsewhere")
    assert preview_files(other) == []


def test_a_damaged_run_is_listed_all_the_same(tmp_path):
    run = make_run(tmp_path / "vae", "loss", [], steps="many")
    found = summarize_run(run, tmp_path)
    assert (found.step, found.plan.steps, found.state) == (0, 0, "stopped")
