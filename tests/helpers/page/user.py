"""A user of the page: calls its events as a browser does, through the queue of the server."""

import json
import threading
import time
from pathlib import Path
from typing import Any

import httpx


class User:
    """A browser that shows the page: calls its events, and keeps what they send."""

    def __init__(self, address, name, config):
        self.address, self.name = address, name
        self.components = {each["id"]: each for each in config["components"]}
        self.events = config["dependencies"]
        self.messages = []

    def event_of(self, text, place=0):
        """The event of a click on the button with this text, the place-th of that text."""
        buttons = [
            number
            for number, each in self.components.items()
            if each["type"] == "button" and each["props"].get("value") == text
        ]
        wanted = [buttons[place], "click"]
        return next(event for event in self.events if wanted in event["targets"])

    def press(self, text, place=0, listens=True, **values):
        """Press a button; fields have their first values but for those of these labels."""
        event = self.event_of(text, place)
        data = []
        for number in event["inputs"]:
            props = self.components[number]["props"]
            label = str(props.get("label")).replace(" ", "_")
            data.append(values.get(label, props.get("value")))
        self.call(event, data, listens)

    def call(self, event, data, listens=True):
        """Call an event; what it sends is kept in `messages` unless nobody listens."""
        body = {"fn_index": event["id"], "session_hash": self.name, "data": data}
        route = "queue/join" if event["queue"] else "run/predict"
        answer = httpx.post(f"{self.address}/gradio_api/{route}", json=body, timeout=60)
        assert answer.status_code == 200, answer.text
        if event["queue"] and listens:
            self.messages = []
            self.thread = threading.Thread(target=self._listen, daemon=True)
            self.thread.start()

    def stream(self):
        """Context manager: what the server sends to this session."""
        url = f"{self.address}/gradio_api/queue/data?session_hash={self.name}"
        return httpx.stream("GET", url, timeout=120)

    def _listen(self):
        with self.stream() as stream:
            for line in stream.iter_lines():
                if line.startswith("data:"):
                    self.messages.append(json.loads(line.removeprefix("data:")))
                    if self.messages[-1]["msg"] == "process_completed":
                        return

    def texts(self):
        """All that was sent, as text."""
        return json.dumps(self.messages)

    def wait_for(self, text):
        for _ in range(1200):
            if text in self.texts():
                return
            time.sleep(0.05)
        raise AssertionError(f"{self.name} was not told {text!r}: {self.texts()[-2000:]}")

    def finish(self):
        self.thread.join(120)
        assert not self.thread.is_alive(), self.texts()[-2000:]
        return self.texts()


def upload(address: str, picture: Path) -> dict[str, Any]:
    """Upload a picture; return it as the browser names it."""
    files = {"files": (picture.name, picture.read_bytes())}
    [path] = httpx.post(f"{address}/gradio_api/upload", files=files, timeout=60).json()
    return {"path": path, "orig_name": picture.name, "meta": {"_type": "gradio.FileData"}}


def in_editor(uploaded: dict[str, Any]) -> dict[str, Any]:
    """Return an uploaded picture as the editor of the tab Change has it."""
    return {"background": uploaded, "layers": [], "composite": uploaded}
