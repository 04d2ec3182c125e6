"""The page as its server shows it: the endpoint for programs, and what must not be reached."""

import socket
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest
import torch

from generation.metadata import read_record
from tests.web.conftest import SECRET

pytest.importorskip("gradio")
pytestmark = [
    pytest.mark.slow,  # gradio takes many seconds to load
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # it leaves sockets open at the end
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module")
def client(address):
    from gradio_client import Client

    return Client(address, verbose=False, download_files=True)


def test_the_endpoint_draws_with_the_options_of_sample_py(client, world):
    model = (world / "ldm").as_posix()
    options = {"steps": 2, "seed": 7, "count": 2}
    pictures = client.predict("red", model, options, api_name="/draw")
    records = [read_record(Path(each["image"])) for each in pictures]
    assert [record["seed"] for record in records] == [7, 8]
    assert {record["prompt"] for record in records} == {"red"}


@pytest.mark.parametrize(
    ("model", "options", "words"),
    [
        ("../vae", {}, "no model"),
        (None, {"init_image": "/etc/passwd"}, "init_image"),
        (None, {"weak_model": "/etc"}, "weak model"),
        (None, {"steps": 0}, "steps"),
        (None, {"nonsense": 1}, "nonsense"),
        (None, {"count": 65}, "65"),
    ],
)
def test_the_endpoint_refuses_what_it_must_not_do(client, world, model, options, words):
    with pytest.raises(Exception, match=words):
        client.predict("red", model or (world / "ldm").as_posix(), options, api_name="/draw")


def test_no_file_but_the_pictures_can_be_read(address, client, world, page_folder):
    picture = client.predict("red", (world / "ldm").as_posix(), {"steps": 1}, api_name="/draw")
    assert picture
    secret = page_folder / "secret.txt"
    assert secret.read_text() == SECRET
    names = [str(secret), "/etc/passwd", "../secret.txt", "setup.cfg", str(world / "ldm")]
    names += [quote(name, safe="") for name in names]
    names += [quote(quote("../../secret.txt", safe=""), safe=""), "%2e%2e/%2e%2e/etc/passwd"]
    for name in names:
        for route in ("/gradio_api/file=", "/file=", "/gradio_api/file/", "/static/", "/assets/"):
            found = httpx.get(address + route + name)
            assert found.status_code in (403, 404, 405, 400, 307), (route, name, found.status_code)
            assert SECRET not in found.text and "root:" not in found.text


def test_links_in_the_folder_of_the_pictures_lead_nowhere(address, client, picture_folder):
    assert client.predict("red", "", {"steps": 1}, api_name="/draw")
    secret = picture_folder.parent / "secret.txt"
    targets = {"00099.png": secret, "grid-0099.png": secret, "inside": secret.parent}
    for name, target in targets.items():
        (picture_folder / name).symlink_to(target)
    names = ["00099.png", "grid-0099.png", "inside/secret.txt", "inside/../../secret.txt"]
    picture = next(picture_folder.glob("00000.png"))
    assert httpx.get(f"{address}/gradio_api/file={picture}").status_code == 200
    for name in names:
        for route in ("/gradio_api/file=", "/gradio_api/file/"):
            found = httpx.get(f"{address}{route}{picture_folder}/{name}")
            assert found.status_code == 403 and SECRET not in found.text, (route, name)


def test_a_port_that_is_taken_is_named():
    from web.page import open_port

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match=str(port)):
            open_port("127.0.0.1", port)


def test_an_error_is_a_message_and_covers_no_field(world, page_runs, tmp_path):
    import gradio as gr
    from gradio.components.base import FormComponent

    from web.open_models import OpenModels
    from web.page import make_page
    from web.studio import Studio

    models = OpenModels([world / "ldm"], page_runs, torch.device("cpu"))
    page = make_page(Studio(models, tmp_path / "pictures"))
    fallible = [
        event
        for event in page.fns.values()
        if hasattr(event.fn, "__wrapped__") and event.api_visibility == "private"
    ]
    assert len(fallible) > 20
    for event in fallible:
        assert event.queue is not False, f"{event.fn}: errors outside of the queue are not shown"
        if event.show_progress != "hidden":
            marked = event.show_progress_on or event.outputs
            fields = (FormComponent, gr.Tabs, gr.Column, gr.Button)
            assert not any(isinstance(field, fields) for field in marked), event.fn
