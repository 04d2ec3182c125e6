"""python app.py --model runs/ldm

Shows a page in the browser: draw pictures with the models of a folder, look at how each was drawn,
draw again, and train models on images of yours. It is reachable from this machine alone, unless
--host says otherwise; then it asks for a password.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from foundation.errors import UserError
from foundation.system import open_address
from training.cli import parse, run_main
from training.flags import Bound, Groups
from web.protection import LOCAL_HOSTS

DEMO = Path("checkpoints/demo")
PASSWORD = "LATENTSMITH_PASSWORD"  # environment variable, which no list of processes shows


@dataclass(frozen=True, kw_only=True)
class Config:
    RENAMED: ClassVar[Mapping[str, str]] = {}
    GROUPS: ClassVar[Groups] = {
        "page": ("model", "runs", "data", "out", "open"),
        "server": ("host", "port", "password"),
        "machine": ("device", "dtype"),
    }

    model: Path = DEMO  # run folder of train_ldm.py or pipeline folder to begin with
    runs: Path = Path("runs")  # folder of runs: finished ones draw, and new ones are begun there
    # folders below which the page reads data sets; it makes new ones in the first
    data: tuple[Path, ...] = (Path("data"),)
    out: Path = Path("samples")  # folder that pictures are written to
    open: bool = False  # open the page in the browser

    host: str = "127.0.0.1"  # address to listen at; 0.0.0.0 for all of this machine
    # number in the address of the page, after the colon
    port: Annotated[int, Bound(lambda x: 0 < x < 2**16, "from 1 to 65535")] = 7860
    # that visitors must give; needed with another --host; also read from LATENTSMITH_PASSWORD
    password: str = ""

    device: str = "auto"  # cpu, cuda or mps; auto: a GPU if there is one
    dtype: Literal["fp32", "bf16", "fp16"] = "fp32"  # precision of the U-Net


def main(argv: Sequence[str] | None = None) -> None:
    config = parse(Config, argv, __doc__)
    password = config.password or os.environ.get(PASSWORD, "")
    if config.host not in LOCAL_HOSTS and not password:
        raise UserError(
            f"--host {config.host} lets other machines reach the page, so it needs a password: "
            f"--password, or the environment variable {PASSWORD}."
        )
    try:
        from web.page import make_server, open_port, serve  # slow to import
    except ModuleNotFoundError as error:
        if error.name not in ("gradio", "fastapi", "uvicorn"):
            raise
        raise UserError(
            f"the page needs {error.name}, which is not installed: pip install -e '.[page]'."
        ) from error
    from training.device import pick_device
    from web.open_models import ModelChoice, OpenModels
    from web.studio import Studio

    models = OpenModels([config.model], config.runs, pick_device(config.device), config.dtype)
    models.open(ModelChoice(models.names()[0]))  # an error is better now than at the first picture
    listener = open_port(config.host, config.port)
    studio = Studio(models, config.out.absolute(), config.data)
    server = make_server(studio, config.host, config.port, password or None)
    address = f"http://{'127.0.0.1' if config.host == '0.0.0.0' else config.host}:{config.port}"
    print(f"the page is at {address}; Ctrl-C ends it.", flush=True)
    if config.open:
        open_address(address, address)
    serve(server, listener, studio.queue)


if __name__ == "__main__":
    run_main(main, Config)
