"""The recipe that downloads shards: each of them once, and only complete ones."""

import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from dataset.folder import read_folder
from foundation.errors import UserError
from recipes import fetch_shards
from tests.helpers.shards import SAMPLES, make_shards


@pytest.mark.skipif(shutil.which("curl") is None, reason="webdataset fetches by curl")
def test_shards_are_fetched_once_and_whole(tmp_path, capsys):
    pytest.importorskip("webdataset")
    make_shards(tmp_path)
    with serve_folder(tmp_path / "shards") as (address, requests):
        url = f"{address}/{{000..002}}.tar"
        fetch_shards.main([url, str(tmp_path / "out")])
        assert "3 shards" in capsys.readouterr().out
        (tmp_path / "out" / "001.tar").unlink()
        requests.clear()
        fetch_shards.main([url, str(tmp_path / "out")])
        assert requests == ["/001.tar"]
        assert len(read_folder(f"{tmp_path}/out/*.tar").pairs) == SAMPLES
        cut = tmp_path / "shards" / "001.tar"
        cut.write_bytes(cut.read_bytes()[:2000])
        (tmp_path / "out" / "001.tar").unlink()
        with pytest.raises(UserError, match=r"001\.tar .*cut off at byte .* 004"):
            fetch_shards.main([url, str(tmp_path / "out")])
        with pytest.raises(UserError, match=r"009\.tar"):
            fetch_shards.main([f"{address}/009.tar", str(tmp_path / "out")])
    files = {path.name for path in (tmp_path / "out").iterdir() if path.is_file()}
    assert files == {"000.tar", "002.tar"}


@contextmanager
def serve_folder(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Run a web server; yield its address, and a list that gets the path of each request."""
    requests = []

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            requests.append(self.path)

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", requests
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
