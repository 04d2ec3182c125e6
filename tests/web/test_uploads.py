"""What a hostile caller can give the events of the page: files of the server, bombs, odd names."""

import io
import json
import zlib
from pathlib import Path

import httpx
import pytest
from PIL import Image

from tests.helpers.page.marks import STARTS_PAGE

pytest.importorskip("gradio")
pytestmark = STARTS_PAGE
FILE_INPUTS = ("image", "imageeditor", "file", "video", "gallery")


def file_data(path):
    return {"path": path, "orig_name": "x.png", "meta": {"_type": "gradio.FileData"}}


def value_for(component, path):
    """Return what the browser would send for a component, with this path for any file."""
    if component["type"] == "imageeditor":
        return {"background": file_data(path), "layers": [], "composite": file_data(path)}
    if component["type"] in FILE_INPUTS:
        return file_data(path)
    return component["props"].get("value")


def file_events(address):
    """List the events of the page that take files: number, whether they wait, what they read."""
    config = httpx.get(f"{address}/config").json()
    components = {each["id"]: each for each in config["components"]}
    for event in config["dependencies"]:
        inputs = [components[number] for number in event["inputs"]]
        if any(each["type"] in FILE_INPUTS for each in inputs):
            yield event["id"], event["queue"], inputs


def call(address, number, waits, data):
    """Call an event as the page does; return what the server says as text, and whether it ran."""
    session = f"test{number}"
    body = {"fn_index": number, "session_hash": session, "data": data, "event_data": None}
    if not waits:
        answer = httpx.post(f"{address}/gradio_api/run/predict", json=body, timeout=60)
        return answer.text, answer.status_code == 200
    answer = httpx.post(f"{address}/gradio_api/queue/join", json=body, timeout=60)
    if answer.status_code != 200:
        return answer.text, False
    lines = []
    url = f"{address}/gradio_api/queue/data?session_hash={session}"
    with httpx.stream("GET", url, timeout=120) as stream:
        for line in stream.iter_lines():
            lines.append(line)
            if '"process_completed"' in line:
                return "\n".join(lines), json.loads(line.removeprefix("data:"))["success"]
            assert len(lines) < 100, lines
    raise AssertionError(lines)


@pytest.mark.parametrize("path", ["/etc/passwd", "../../etc/passwd", "DATA"])
def test_no_event_takes_a_file_of_the_server(address, world, path):
    if path == "DATA":  # a picture that could be read, were it not for its place
        path = str(next((world / "data").glob("*.png")))
    events = list(file_events(address))
    assert len(events) >= 4  # those of the tabs Draw, Change (two) and Autoencoder
    for number, waits, inputs in events:
        text, ran = call(address, number, waits, [value_for(each, path) for each in inputs])
        assert not ran and "root:" not in text and "PATH=" not in text, text


def bomb():
    """A PNG of 30,000 x 30,000 gray pixels in some hundred kB."""
    small = io.BytesIO()
    Image.new("L", (1, 1)).save(small, "PNG")
    content = small.getvalue()
    side, row = 30_000, bytes(30_001)
    packer = zlib.compressobj(9)
    data = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()

    def chunk(kind, body):
        crc = zlib.crc32(kind + body)
        return len(body).to_bytes(4, "big") + kind + body + crc.to_bytes(4, "big")

    head = side.to_bytes(4, "big") * 2 + content[24:29]
    return content[:8] + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def upload(address, name, content):
    answer = httpx.post(f"{address}/gradio_api/upload", files={"files": (name, content)})
    return answer.json()[0] if answer.status_code == 200 else None


def test_pictures_of_too_many_pixels_are_refused(address):
    path = upload(address, "bomb.png", bomb())
    assert path is not None
    for number, waits, inputs in file_events(address):
        text, ran = call(address, number, waits, [value_for(each, path) for each in inputs])
        assert not ran, text


@pytest.mark.parametrize(
    "name",
    ["../../escaped.png", "%2e%2e%2fescaped.png", "a\x00b.png", "C:\\escaped.png", ".." * 90],
)
def test_names_of_uploads_do_not_leave_their_folder(address, name, tmp_path):
    path = upload(address, name, b"x")
    assert path is None or ("gradio" in Path(path).parts and ".." not in Path(path).parts)
    assert not Path("escaped.png").exists()


def test_files_of_too_many_bytes_are_refused(address):
    assert upload(address, "large.png", bytes(33 * 2**20)) is None
