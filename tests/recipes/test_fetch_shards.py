"""Shards come from the network whole, and once."""

import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from dataset.folder import read_folder
from recipes import fetch_shards
from tests.helpers.shards import SAMPLES, make_shards


@pytest.mark.skipif(shutil.which("curl") is None, reason="webdataset fetches by curl")
def test_shards_are_fetched_once_and_whole(tmp_path, capsys):
    pytest.importorskip("webdataset")
    make_shards(tmp_path)
    with serving(tmp_path / "shards") as (address, asked):
        url = f"{address}/{{000..002}}.tar"
        fetch_shards.main([url, str(tmp_path / "out")])
        assert "3 shards are in" in capsys.readouterr().out
        (tmp_path / "out" / "001.tar").unlink()
        asked.clear()
        fetch_shards.main([url, str(tmp_path / "out")])
        assert asked == ["/001.tar"]
        assert len(read_folder(f"{tmp_path}/out/*.tar").pairs) == SAMPLES
        cut = tmp_path / "shards" / "001.tar"
        cut.write_bytes(cut.read_bytes()[:2000])
        (tmp_path / "out" / "001.tar").unlink()
        with pytest.raises(ValueError, match=r"001\.tar came, but is .*cut off at member 004"):
            fetch_shards.main([url, str(tmp_path / "out")])
        with pytest.raises(ValueError, match=r"009\.tar could not be fetched"):
            fetch_shards.main([f"{address}/009.tar", str(tmp_path / "out")])
    assert not (tmp_path / "out" / "001.tar").exists()


@contextmanager
def serving(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """A web server, its address, and the paths that it was asked for."""
    asked = []

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            asked.append(self.path)

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
