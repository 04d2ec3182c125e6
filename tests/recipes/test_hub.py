"""The recipe for the Hub, against a small server that speaks the part of its language it needs."""

import hashlib
import json
import threading
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from dataset.folder import read_folder
from foundation.errors import UserError
from recipes import hub as recipe
from tests.helpers.data.parquet_files import image_table, write_parquet

JSON = "application/json"
SHA = "a" * 40
NAME = "someone/pictures"


class Hub:
    """A data set on a server; `missing` files are answered with 503."""

    def __init__(self, files: dict[str, bytes]):
        self.files, self.missing, self.fetched = files, set(), []
        self.card = {"license": "cc-by-4.0"}
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                pass

            def answer(self, status: int, content: bytes, **headers: str) -> None:
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name.replace("_", "-"), value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(content)

            def do_GET(self) -> None:
                path = self.path.partition("?")[0]
                start = f"/datasets/{NAME}/resolve/{SHA}/"
                if path.startswith(f"/api/datasets/{NAME}/tree/"):
                    self.answer(
                        200, json.dumps(hub.tree()).encode(), Content_Type="application/json"
                    )
                elif path.startswith(f"/api/datasets/{NAME}"):
                    self.answer(
                        200, json.dumps(hub.info()).encode(), Content_Type="application/json"
                    )
                elif path.startswith(start):
                    name = path.removeprefix(start)
                    if name in hub.missing:
                        self.answer(403, b"", X_Error_Message="not now")
                        return
                    content = hub.files[name]
                    if self.command == "GET":
                        hub.fetched.append(name)
                    digest = f'"{hashlib.sha1(content).hexdigest()}"'
                    self.answer(200, content, ETag=digest, X_Repo_Commit=SHA)
                else:
                    self.answer(404, b"", X_Error_Code="RepoNotFound")

            do_HEAD = do_GET

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def info(self) -> dict:
        siblings = [{"rfilename": n, "size": len(c), "blobId": "0"} for n, c in self.files.items()]
        return {"id": NAME, "sha": SHA, "siblings": siblings, "cardData": self.card}

    def tree(self) -> list:
        return [
            {"type": "file", "path": n, "size": len(c), "oid": hashlib.sha1(c).hexdigest()}
            for n, c in self.files.items()
        ]


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Iterator[Hub]:
    files = {"README.md": b"---\nlicense: cc-by-4.0\n---\n"}
    for k in range(3):
        name = f"data/train-0000{k}-of-00003.parquet"
        table = image_table(tmp_path / "made", range(2 * k, 2 * k + 2))
        files[name] = write_parquet(tmp_path / "made" / f"{k}.parquet", table).read_bytes()
    server = Hub(files)
    address = f"http://127.0.0.1:{server.server.server_port}"
    monkeypatch.setattr(recipe, "HfApi", partial(recipe.HfApi, endpoint=address))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    yield server
    server.server.shutdown()
    server.server.server_close()


def test_a_data_set_is_fetched_resumed_and_read(tmp_path, hub, capsys):
    out = tmp_path / "out"
    hub.missing = {"data/train-00002-of-00003.parquet"}
    with pytest.raises(UserError, match=NAME):
        recipe.main([NAME, str(out)])
    printed = capsys.readouterr().out
    assert "cc-by-4.0" in printed
    assert "4 files" in printed
    hub.missing, hub.fetched[:] = set(), []
    recipe.main([NAME, str(out)])
    assert hub.fetched == ["data/train-00002-of-00003.parquet"]
    assert SHA in (out / "ATTRIBUTION.txt").read_text()
    assert json.loads((out / ".hub.json").read_text())["revision"] == SHA
    assert len(read_folder(out).pairs) == 6
    with pytest.raises(UserError, match=NAME):
        recipe.main(["someone/else", str(out)])


def test_unknown_data_sets_and_a_part_of_one(tmp_path, hub):
    with pytest.raises(UserError, match="nobody/nothing"):
        recipe.main(["nobody/nothing", str(tmp_path / "out")])
    recipe.main([NAME, str(tmp_path / "out"), "--files", "data/*-00001-*"])
    assert len(read_folder(tmp_path / "out").pairs) == 2


def test_large_data_sets_need_a_yes(tmp_path, hub, monkeypatch):
    monkeypatch.setattr(recipe, "LARGE", 1000)
    with pytest.raises(UserError, match="--yes"):
        recipe.main([NAME, str(tmp_path / "out")])
    assert not hub.fetched
    recipe.main([NAME, str(tmp_path / "out"), "--yes"])
    assert len(hub.fetched) == 4
