"""The endpoints for programs, called by `gradio_client` as docs/page.md says."""

import textwrap
import threading
import time
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from dataset.images.decode import read_frames
from generation.metadata import read_record
from tests.helpers.page.marks import STARTS_PAGE
from tests.helpers.page.user import User, in_editor, upload
from tests.helpers.sample_runs import run_sample

pytest.importorskip("gradio")
pytestmark = STARTS_PAGE
NAMES = {"draw", "change", "repaint", "interpolate", "reconstruct", "models", "stop"}


@pytest.fixture(scope="module")
def client(address):
    from gradio_client import Client

    return Client(address, verbose=False)


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    file = tmp_path_factory.mktemp("photo") / "photo.png"
    Image.effect_noise((32, 32), 60).convert("RGB").save(file)
    return file


@pytest.fixture(scope="module")
def mask(tmp_path_factory):
    file = tmp_path_factory.mktemp("mask") / "mask.png"
    picture = Image.new("L", (32, 32))
    picture.paste(255, (8, 8, 24, 24))
    picture.save(file)
    return file


def sent(file):
    from gradio_client import handle_file

    return handle_file(str(file))


def files(pictures):
    return [Path(each["image"]) for each in pictures]


def test_the_endpoints_are_named_typed_and_described(client):
    api = client.view_api(return_format="dict")
    assert set(api["named_endpoints"]) == {f"/{name}" for name in NAMES}
    assert not api["unnamed_endpoints"]
    change = api["named_endpoints"]["/change"]
    assert "outpaint" in change["description"]
    names = [each["parameter_name"] for each in change["parameters"]]
    assert names == ["picture", "prompt", "task", "model", "options"]
    task = change["parameters"][2]
    assert "restore" in task["python_type"]["type"] and task["parameter_default"] == "redraw"
    needed = {
        name: [
            each["parameter_name"]
            for each in one["parameters"]
            if not each["parameter_has_default"]
        ]
        for name, one in api["named_endpoints"].items()
    }
    assert needed.pop("/repaint") == ["picture", "mask"]
    assert needed.pop("/change") == needed.pop("/reconstruct") == ["picture"]
    assert not any(needed.values())


def test_the_lists_name_what_can_be_drawn_with(client, world, page_runs):
    lists = client.predict(api_name="/models")
    kinds = {Path(each["name"]).name: each["kind"] for each in lists["models"]}
    assert kinds["ldm"] == kinds["smaller"] == "draw"
    assert kinds["restore"] == "restore" and kinds["upscale"] == "upscale"
    upscaler = next(each for each in lists["models"] if each["kind"] == "upscale")
    assert upscaler["factor"] == 4 and upscaler["reads"] == "texts"
    assert (page_runs / "style").as_posix() in lists["loras"]
    assert (page_runs / "earlier" / "state" / "step-0000007").as_posix() in lists["weak_models"]
    assert (world / "ldm").as_posix() in lists["autoencoders"]


OPTIONS = {"steps": 4, "seed": 3}
CHANGES = {  # task -> model, options, and the flags of sample.py that do the same
    "redraw": ("ldm", {"strength": 0.5}, ("--init-image", "PHOTO", "--strength", 0.5)),
    "repaint": ("ldm", {}, ("--init-image", "PHOTO", "--mask", "MASK")),
    "extend": (
        "ldm",
        {"outpaint": [0, 0, 32, 0]},
        ("--init-image", "PHOTO", "--outpaint", 0, 0, 32, 0),
    ),
    "enlarge": (
        "upscale",
        {"upscale": 4, "noise_level": 100},
        ("--init-image", "PHOTO", "--upscale", 4, "--noise-level", 100),
    ),
    "edit": (
        "ldm",
        {"source_prompt": "blue"},
        ("--style-image", "PHOTO", "--source-prompt", "blue"),
    ),
    "restore": ("restore", {}, ("--restore", "PHOTO")),
}


@pytest.mark.parametrize("task", CHANGES)
def test_a_picture_is_changed_as_sample_py_does(
    client, world, page_runs, photo, mask, tmp_path, task
):
    name, options, flags = CHANGES[task]
    model = (world if name == "ldm" else page_runs) / name
    rest = ("red", *([] if task == "repaint" else [task]), model.as_posix(), OPTIONS | options)
    if task == "repaint":
        pictures = client.predict(sent(photo), sent(mask), *rest, api_name="/repaint")
    else:
        pictures = client.predict(sent(photo), *rest, api_name="/change")
    [file] = files(pictures)
    places = {"PHOTO": photo, "MASK": mask}
    words = [places.get(word, word) for word in flags]
    fixed = ("--model", model, "--steps", 4, "--seed", 3)
    [expected] = run_sample(world, tmp_path, *fixed, *words)
    assert Image.open(file).tobytes() == Image.open(expected).tobytes()
    mine, theirs = read_record(file), read_record(expected)
    assert mine["files"] == theirs["files"]  # what was uploaded is what was read


def test_options_name_loras_and_weak_models_of_the_lists(client, page_runs):
    weak = page_runs / "earlier" / "state" / "step-0000007"
    chosen = {"lora": (page_runs / "style").as_posix(), "lora_scale": 0.5}
    chosen["weak_model"] = weak.as_posix()
    [file] = files(client.predict("red", "", OPTIONS | chosen, api_name="/draw"))
    record = read_record(file)
    assert (record["lora"], record["lora_scale"]) == ("style", 0.5)
    assert record["weak_model"] == "step-0000007"
    assert {"lora", "weak_model"} <= record["hashes"].keys()


@pytest.mark.parametrize("video", ["gif", "mp4"])
def test_a_video_leads_from_one_prompt_to_another(client, world, tmp_path, video):
    if video == "mp4":
        pytest.importorskip("av")
    file = client.predict(
        "red", "3", "blue", "5", 2, video, 12, "", {"steps": 2}, api_name="/interpolate"
    )
    stations = [(each["prompt"], each["seed"]) for each in read_record(Path(file))["stations"]]
    assert stations == [("red", 3), ("blue", 5)] and Path(file).suffix == f".{video}"
    if video == "gif":
        prompts = tmp_path / "prompts.jsonl"
        prompts.write_text('{"prompt": "red", "seed": 3}\n{"prompt": "blue", "seed": 5}\n')
        flags = ("--prompts", prompts, "--interpolate", 2, "--steps", 2, "--batch-size", 1)
        [expected] = run_sample(world, tmp_path / "out", *flags, prompts=())
        frames = [list(read_frames(Path(each))) for each in (file, expected)]
        assert len(frames[0]) == 3 and np.array_equal(frames[0], frames[1])


def test_an_autoencoder_reconstructs_a_picture(client, world, photo):
    model = (world / "ldm").as_posix()
    pictures, numbers = client.predict(
        sent(photo), model, 0, [0.2, 0.8], 4, 0, api_name="/reconstruct"
    )
    names = [each["caption"] for each in pictures]
    assert names[:3] == ["original", "reconstruction", "difference"]
    assert names[-2:] == ["noise-0.2", "noise-0.8"]
    original = Image.open(pictures[0]["image"])
    assert original.tobytes() == Image.open(photo).tobytes()
    points = {each["noise"]: each["psnr"] for each in numbers["robustness"]}
    assert list(points) == [0, 0.2, 0.8] and numbers["metrics"]["psnr"] == points[0]
    error = np.asarray(original, float) - np.asarray(Image.open(pictures[1]["image"]), float)
    assert points[0] == pytest.approx(10 * np.log10(255**2 / np.square(error).mean()), abs=0.01)


def test_the_example_of_the_documentation_runs(address, photo, monkeypatch, capsys):
    page = (Path(__file__).parents[2] / "docs" / "page.md").read_text(encoding="utf-8")
    section = page.partition("\n## Programs\n")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("    ") or not line]
    code = textwrap.dedent("\n".join(lines)).replace("http://127.0.0.1:7860", address)
    assert code.count("client.predict(") == 5
    monkeypatch.chdir(photo.parent)
    exec(code, {})
    assert "'psnr'" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("red", "redraw", {"init_image": "/etc/passwd"}), "init_image"),
        (("red", "redraw", {"restore": "/etc/passwd"}), "restore"),
        (("red", "extend", {}), "outpaint"),
        (("red", "enlarge", {}), "upscale"),
        (("red", "restore", {}), "not trained to restore"),
        (("red", "restore", {"strength": 0.5}), "strength"),
        (("red", "redraw", {"lora": "/etc/passwd"}), "no LoRA"),
        (("red", "redraw", {"lora": 3}), "lora"),
        (("red", "redraw", {"weak_model": "../earlier"}), "no weak model"),
        (("red", "redraw", {"resample": 3}), "resample"),
        (("red", "nothing", {}), "nothing"),
        (("red", "redraw", []), "options"),
    ],
)
def test_wrong_changes_are_refused(client, photo, arguments, words):
    prompt, task, options = arguments
    with pytest.raises(Exception, match=words):
        client.predict(sent(photo), prompt, task, "", options, api_name="/change")


def test_links_and_places_elsewhere_are_no_names(client, page_folder, page_runs):
    outside = page_folder / "outside"
    for path in (outside / "style", page_runs / "linked", page_runs / "half-linked"):
        with pytest.raises(Exception, match="no LoRA"):
            client.predict("red", "", {"lora": path.as_posix()}, api_name="/draw")
    for path in (outside / "earlier", page_runs / "linked-too", page_runs / "half-linked"):
        state = (path / "state" / "step-0000007").as_posix()
        with pytest.raises(Exception, match="no weak model"):
            client.predict("red", "", {"weak_model": state}, api_name="/draw")


def test_pictures_come_as_uploads_and_not_as_paths_of_the_server(address, world):
    own = next((world / "data").glob("*.png"))
    for path in (str(own), "/etc/passwd"):
        picture = {"path": path, "meta": {"_type": "gradio.FileData"}}
        for name, rest in (
            ("change", ["red", "redraw", "", {"steps": 1}]),
            ("reconstruct", ["", 0, [0.2], 4, 0]),
        ):
            body = {"data": [picture, *rest]}
            url = f"{address}/gradio_api/call/{name}"
            event = httpx.post(url, json=body, timeout=60).json()["event_id"]
            answer = httpx.get(f"{url}/{event}", timeout=60).text
            assert "event: error" in answer and "root:" not in answer, answer


def test_a_program_ends_what_it_draws(client, address):
    from gradio_client import Client

    other = Client(address, verbose=False)
    slow = {"steps": 100, "count": 16}
    jobs = [each.submit("red", "", slow, api_name="/draw") for each in (client, other)]
    time.sleep(2)
    client.predict(api_name="/stop")
    assert len(jobs[0].result(timeout=60)) < 16
    assert not jobs[1].done()  # it was not its own
    other.predict(api_name="/stop")
    assert len(jobs[1].result(timeout=60)) < 16


# The page itself, with the same models -----------------------------------------------------------


@pytest.fixture
def user(address):
    return User(address, f"user{time.time_ns()}", httpx.get(f"{address}/config", timeout=60).json())


@pytest.mark.parametrize(
    ("model", "values", "words", "missing"),
    [
        ("restore", {"What_is_to_be_done": "Restore"}, ["--restore "], ["--strength", "--init"]),
        (
            "upscale",
            {
                "What_is_to_be_done": "Enlarge",
                "Times_as_large": 4,
                "Noise_level_(models_for_upscaling)": "100",
            },
            ["--upscale 4", "--noise-level 100"],
            ["--strength"],
        ),
        (
            "smaller",
            {
                "What_is_to_be_done": "Extend",
                "Right": 32,
                "Repeats_of_each_step_(RePaint)": 2,
                "Sampler": "ddpm",
            },
            ["--outpaint 0 0 32 0", "--resample 2", "--sampler ddpm"],
            ["--noise-level", "--strength"],
        ),
    ],
)
def test_the_tab_change_sends_what_the_kind_of_model_uses(
    address, user, page_runs, photo, model, values, words, missing
):
    picture = in_editor(upload(address, photo))
    common = {"Model": (page_runs / model).as_posix(), "Steps": 3, "Pictures": 1}
    user.press("Change", Picture=picture, **common, **values)
    text = user.finish()
    assert "Ready: 1 picture." in text, text[-2000:]
    assert all(word in text for word in words), text[-2000:]
    assert not any(word in text for word in missing)


def test_the_form_has_a_lora_and_a_weak_model(user, page_runs):
    lora, weak = page_runs / "style", page_runs / "earlier" / "state" / "step-0000007"
    values = {"LoRA": lora.as_posix(), "Scale_of_the_LoRA": 0.5}
    values["Weak_model_(autoguidance)"] = weak.as_posix()
    user.press("Draw", Prompt="red", Steps=2, Pictures=1, **values)
    text = user.finish()
    assert "Ready: 1 picture." in text, text[-2000:]
    assert f"--weak-model {weak} --lora {lora} --lora-scale 0.5" in text


@pytest.mark.parametrize("label", ["LoRA", "Weak_model_(autoguidance)", "Model"])
@pytest.mark.parametrize("name", ["/etc/passwd", "../outside/style", "style", "LINK", ["a"], 7])
def test_the_form_takes_no_other_names(user, page_runs, label, name):
    name = (page_runs / "linked").as_posix() if name == "LINK" else name
    user.press("Draw", Prompt="red", Steps=1, Pictures=1, **{label: name})
    text = user.finish()
    assert user.messages[-1]["success"] is False, text[-2000:]
    assert "Ready" not in text and "root:" not in text


def test_the_history_shows_videos_and_grids(user, picture_folder):
    """After those of the tests before: the newest are pictures, a video, and a grid."""
    user.press("Compare", Compare="Grid over options", Prompt="red", Steps=1)
    assert "with labels" in user.finish()
    [shows] = [
        event
        for event in user.events
        if any(target[1] == "load" for target in event["targets"]) and len(event["outputs"]) == 6
    ]
    user.call(shows, [])
    user.finish()
    gallery = user.messages[-1]["output"]["data"][0]
    kinds = {
        Path(each[kind]["path"]).name: kind
        for each in gallery
        for kind in ("image", "video")
        if each.get(kind)
    }
    names = {file.name for file in picture_folder.iterdir() if file.is_file()}
    assert {name for name in names if name.startswith("grid-")} <= kinds.keys()
    assert {kind for name, kind in kinds.items() if name.endswith(".mp4")} <= {"video"}
    assert names >= kinds.keys() and "image" in kinds.values()


def test_two_programs_at_once_get_their_own_pictures(address):
    from gradio_client import Client

    found = {}

    def run(prompt, seed):
        mine = Client(address, verbose=False)
        pictures = mine.predict(
            prompt, "", {"steps": 2, "seed": seed, "count": 3}, api_name="/draw"
        )
        found[prompt] = [read_record(file) for file in files(pictures)]

    threads = [threading.Thread(target=run, args=pair) for pair in (("red", 10), ("blue", 20))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    for prompt, first in (("red", 10), ("blue", 20)):
        seeds = [(record["prompt"], record["seed"]) for record in found[prompt]]
        assert seeds == [(prompt, first + k) for k in range(3)]
