"""Requests of other sites, and requests that are too large, never reach the page."""

import asyncio

import pytest

from web.protection import LOCAL_HOSTS, Protection

OURS = "127.0.0.1:7860"


def answer(headers, hosts=LOCAL_HOSTS, body=b"", kind="http", limit=100, path="/"):
    """Return the status of a request, or None for a closed websocket."""
    sent = []

    async def app(scope, receive, send):
        while (await receive()).get("more_body"):
            pass
        await send({"type": "http.response.start", "status": 200, "headers": []})

    parts = [body[k : k + 30] for k in range(0, len(body), 30)] or [b""]
    messages = [{"type": "http.request", "body": part, "more_body": True} for part in parts]
    messages[-1]["more_body"] = False

    async def receive():
        return messages.pop(0)

    async def send(message):
        sent.append(message)

    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": kind, "headers": raw, "path": path}
    asyncio.run(Protection(app, hosts, limit, uploads=2 * limit)(scope, receive, send))
    return sent[0].get("status")


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": OURS}, 200),
        ({"host": "LOCALHOST:1"}, 200),
        ({"host": "[::1]:7860"}, 200),
        ({"host": OURS, "origin": f"http://{OURS}"}, 200),
        ({"host": OURS, "sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}, 200),
        ({}, 403),
        ({"host": "pictures.example"}, 403),  # a name that somebody lets point to 127.0.0.1
        ({"host": "127.0.0.1.pictures.example"}, 403),
        ({"host": "[::1"}, 403),
        ({"host": OURS, "origin": "http://pictures.example"}, 403),
        ({"host": OURS, "origin": "http://127.0.0.1:7861"}, 403),
        ({"host": OURS, "origin": "null"}, 403),
        ({"host": OURS, "sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"}, 403),
        ({"host": OURS, "content-length": "100"}, 200),
        ({"host": OURS, "content-length": "101"}, 413),
        ({"host": OURS, "content-length": "-1"}, 413),
    ],
)
def test_only_requests_of_the_page_itself_pass(headers, status):
    assert answer(headers) == status


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/", 200),
        ("/gradio_api/info", 200),
        ("/gradio_api/file=/home/user/samples/00000.png", 200),
        ("/gradio_api/file=https://other.example/a.png", 404),
        ("/gradio_api/file/HTTP://127.0.0.1:22", 404),
        ("/gradio_api/proxy=https://other.example", 404),
        ("/gradio_api/vibe-edit/", 404),
        ("/gradio_api/undo-vibe-edit", 404),
        ("/gradio_api/custom_component/x/client/component/a.py", 404),
        ("/gradio_api/run/draw", 200),
        ("/gradio_api/runs", 404),
        ("/monitoring", 404),
        ("/openapi.json", 404),
    ],
)
def test_routes_that_the_page_does_not_use_are_closed(path, status):
    assert answer({"host": OURS}, path=path) == status


def test_with_a_password_the_server_may_have_any_name_but_not_serve_other_sites():
    named = {"host": "pictures.example"}
    assert answer(named, hosts=None) == 200
    assert answer(named | {"origin": "http://other.example"}, hosts=None) == 403


def test_a_body_without_its_length_is_counted():
    assert answer({"host": OURS}, body=bytes(100)) == 200
    assert answer({"host": OURS}, body=bytes(101)) == 413


def test_files_may_be_larger_and_are_bounded_too():
    assert answer({"host": OURS}, body=bytes(200), path="/gradio_api/upload") == 200
    assert answer({"host": OURS}, body=bytes(201), path="/gradio_api/upload") == 413
    assert answer({"host": OURS, "content-length": "201"}, path="/gradio_api/upload") == 413
    assert answer({"host": OURS}, body=bytes(101), path="/gradio_api/uploads") == 413


def test_websockets_of_other_sites_are_closed():
    assert answer({"host": OURS, "origin": "http://other.example"}, kind="websocket") is None
