"""A server of the page with untrained models."""

import threading
import time

import pytest
import torch

SECRET = "the secret of another folder"


@pytest.fixture(scope="module")
def address(world, tmp_path_factory):
    """The address of a server that shows the models of `world`."""
    import uvicorn

    from web.open_models import OpenModels
    from web.page import make_server, open_port
    from web.studio import Studio

    folder = tmp_path_factory.mktemp("page")
    (folder / "secret.txt").write_text(SECRET)
    models = OpenModels([world / "ldm"], folder / "runs", torch.device("cpu"))
    listener = open_port("127.0.0.1", 0)
    port = listener.getsockname()[1]
    app = make_server(Studio(models, folder / "pictures"), "127.0.0.1", port, None)
    server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join(10)
