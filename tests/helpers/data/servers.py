"""A web server with faults, and a server that speaks S3."""

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

BUCKET = "data"


@dataclass
class WebFolder:
    """What the server serves, how, and what it was asked.

    Args:
        faults: what to do with the next requests, one after the other: a status such as 503, or
            "cut" (half of the body), "slow", "drop" (no answer). Afterwards all is well.
    """

    folder: Path
    address: str = ""
    faults: list[int | str] = field(default_factory=list)
    has_ranges: bool = True
    requests: list[str] = field(default_factory=list)

    def next_fault(self) -> int | str | None:
        with contextlib.suppress(IndexError):
            return self.faults.pop(0)
        return None


@contextmanager
def serve_ranges(folder: Path) -> Iterator[WebFolder]:
    """Run a web server that answers range requests, with faults if asked for."""
    web = WebFolder(folder)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            web.requests.append(f"{self.path} {self.headers.get('Range')}")

        def do_GET(self) -> None:
            answer(self, web)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    web.address = f"http://127.0.0.1:{server.server_port}"
    try:
        yield web
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def answer(handler: BaseHTTPRequestHandler, web: WebFolder) -> None:
    """Answer one request for a range of a file."""
    fault = web.next_fault()
    file = web.folder / handler.path.lstrip("/")
    if fault == "drop":
        handler.close_connection = True
        return
    if isinstance(fault, int) or not file.is_file():
        handler.send_response(fault if isinstance(fault, int) else 404)
        handler.send_header("Content-Length", "0")
        handler.end_headers()
        return
    content, stat = file.read_bytes(), file.stat()
    wanted = handler.headers.get("Range") if web.has_ranges else None
    start, end = 0, len(content)
    if wanted:
        first, _, last = wanted.removeprefix("bytes=").partition("-")
        start, end = int(first), min(int(last) + 1, len(content))
    handler.send_response(206 if wanted else 200)
    handler.send_header("ETag", f'"{stat.st_mtime_ns:x}-{stat.st_size:x}"')
    handler.send_header("Content-Length", str(end - start))
    if wanted:
        handler.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(content)}")
    handler.end_headers()
    body = content[start:end]
    with contextlib.suppress(ConnectionError):
        if fault == "cut":
            handler.wfile.write(body[: len(body) // 2])
            handler.close_connection = True
        elif fault == "slow":
            for k in range(0, len(body), max(len(body) // 5, 1)):
                handler.wfile.write(body[k : k + max(len(body) // 5, 1)])
                handler.wfile.flush()
                time.sleep(0.05)
        else:
            handler.wfile.write(body)


CREDENTIALS = {"AWS_ACCESS_KEY_ID": "access-key-1234", "AWS_SECRET_ACCESS_KEY": "secret-key-5678"}


@contextmanager
def serve_s3(folder: Path) -> Iterator[str]:
    """Run a server that speaks S3, with the files of a folder in a bucket; yield the bucket's URL.

    Credentials and the address are in the environment meanwhile.
    """
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    address = "http://{}:{}".format(*server.get_host_and_port())
    added = {**CREDENTIALS, "AWS_ENDPOINT_URL": address, "AWS_DEFAULT_REGION": "us-east-1"}
    before = {name: os.environ.get(name) for name in added}
    os.environ.update(added)
    try:
        client = boto3.client("s3")
        client.create_bucket(Bucket=BUCKET)
        for file in folder.rglob("*"):
            if file.is_file():
                client.upload_file(str(file), BUCKET, file.relative_to(folder).as_posix())
        yield f"s3://{BUCKET}"
    finally:
        server.stop()
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value
