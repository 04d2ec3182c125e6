"""The page bound to all addresses: nothing of it is reached without the password."""

import http.client
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.helpers.page.marks import STARTS_PAGE

pytest.importorskip("gradio")
pytestmark = STARTS_PAGE

ROOT = Path(__file__).parents[2]
PASSWORD = "green Teapot 7"
# What a browser needs to ask for the password, and what answers without telling or doing anything.
OPEN = ("/login", "/static", "/svelte", "/assets", "/theme.css", "/favicon.ico", "/robots.txt")
OPEN += ("/manifest.json", "/pwa_icon", "/user", "/token", "/app_id", "/startup-events")
OPEN += ("/heartbeat", "/reset", "/cancel", "/logout", "/custom_component", "/stream")
CLOSED = {401, 403, 404, 405}


def own_address() -> str:
    """An address of this machine that is not that of the loopback, if it has one."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing
            return probe.getsockname()[0]
        except OSError:
            return "127.0.0.1"


@pytest.fixture(scope="module")
def server(world, tmp_path_factory):
    """The address of app.py bound to 0.0.0.0, and its folder of pictures."""
    with socket.create_server(("0.0.0.0", 0)) as free:
        port = free.getsockname()[1]
    out = tmp_path_factory.mktemp("pictures")
    words = ["--model", world / "ldm", "--host", "0.0.0.0", "--port", port, "--out", out]
    command = [sys.executable, "app.py", *map(str, words), "--device", "cpu"]
    environment = os.environ | {"LATENTSMITH_PASSWORD": PASSWORD}
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, text=True, env=environment
    )
    assert process.stdout is not None and str(port) in process.stdout.readline()
    yield f"http://{own_address()}:{port}", out
    process.terminate()
    process.wait(20)
    process.stdout.close()


@pytest.fixture(scope="module")
def logged_in(server):
    with httpx.Client(base_url=server[0], timeout=60) as client:
        answer = client.post("/login", data={"username": "anyone", "password": PASSWORD})
        assert answer.status_code == 200, answer.text
        yield client


def test_a_wrong_password_is_refused(server):
    for password in ("", "wrong", PASSWORD.lower(), PASSWORD + " ", "\x00", "pässword"):
        answer = httpx.post(server[0] + "/login", data={"username": "a", "password": password})
        assert answer.status_code in (400, 401, 422), (password, answer.status_code)
        assert "set-cookie" not in answer.headers


def test_the_page_alone_says_nothing_of_its_models(server, world):
    text = httpx.get(server[0] + "/").text
    assert (world / "ldm").as_posix() not in text


# Prints all paths of Gradio; routers in it have routes of their own.
PRINT_PATHS = """
import gradio as gr
from gradio.routes import App

def print_paths(routes, prefix):
    for route in routes:
        inner = getattr(route, "original_router", None)
        if inner is not None:
            print_paths(inner.routes, prefix + route.include_context.prefix)
        elif hasattr(route, "path"):
            print(prefix + route.path)

with gr.Blocks() as page:
    gr.Button()
print_paths(App.create_app(page).routes, "")
"""


def test_no_route_answers_without_the_password(server):
    printed = subprocess.run([sys.executable, "-c", PRINT_PATHS], stdout=subprocess.PIPE, text=True)
    routes = set(printed.stdout.split())
    assert len(routes) > 30
    checked, answered = 0, []
    for path in sorted(routes):
        name = re.sub(r"^/gradio_api", "", path) or "/"
        if name == "/" or name.startswith(OPEN):
            continue
        filled = re.sub(r"\{[^}]*\}", "x", path)
        for method in ("GET", "POST"):
            answer = httpx.request(method, server[0] + filled, timeout=30)
            if answer.status_code not in CLOSED:
                answered.append((method, path, answer.status_code, answer.text[:100]))
            checked += 1
    assert checked > 30 and not answered, answered


@pytest.mark.parametrize("route", ["/gradio_api/queue/join", "/gradio_api/run/draw"])
def test_nothing_is_drawn_without_the_password(server, route):
    body = {"data": ["red", "", {}], "fn_index": 0, "session_hash": "x"}
    assert httpx.post(server[0] + route, json=body).status_code == 401
    assert not list(server[1].glob("*.png"))


def test_files_are_neither_sent_nor_taken_without_the_password(server):
    file = {"files": ("a.png", b"x")}
    assert httpx.post(server[0] + "/gradio_api/upload", files=file).status_code == 401
    for name in ("setup.cfg", str(server[1] / "00000.png"), "/etc/passwd"):
        assert httpx.get(f"{server[0]}/gradio_api/file={name}").status_code == 401


def test_with_the_password_the_page_and_its_endpoint_work(server, logged_in, world):
    config = logged_in.get("/config")
    assert config.status_code == 200 and (world / "ldm").as_posix() in config.text
    body = {"data": ["red", (world / "ldm").as_posix(), {"steps": 1}]}
    event = logged_in.post("/gradio_api/call/draw", json=body).json()["event_id"]
    answer = logged_in.get(f"/gradio_api/call/draw/{event}")
    assert "event: complete" in answer.text, answer.text
    assert len(list(server[1].glob("*.png"))) == 1
    for name in ("setup.cfg", "/etc/passwd", "/proc/self/environ"):
        assert logged_in.get(f"/gradio_api/file={name}").status_code in (403, 404)


def test_other_sites_and_large_bodies_are_refused_with_the_password_too(logged_in):
    other = {"origin": "http://other.example"}
    assert logged_in.post("/gradio_api/queue/join", json={}, headers=other).status_code == 403
    assert status_of_a_huge_upload(logged_in) == 413


def status_of_a_huge_upload(client):
    """Announce more bytes than are taken, and send one; clients of HTTP refuse to do that."""
    cookies = "; ".join(f"{name}={value}" for name, value in client.cookies.items())
    connection = http.client.HTTPConnection(client.base_url.host, client.base_url.port, timeout=30)
    connection.putrequest("POST", "/gradio_api/upload")
    connection.putheader("Cookie", cookies)
    connection.putheader("Content-Length", str(2**40))
    connection.endheaders(b"x")
    status = connection.getresponse().status
    connection.close()
    return status
