"""Loggers that show a run besides its folder: TensorBoard, and Weights & Biases on request."""

import contextlib
import importlib
import secrets
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol, runtime_checkable

import numpy as np
from PIL import Image

from foundation.errors import UserError

WANDB_FILE = "wandb_run.txt"  # of a run folder: its id at Weights & Biases, to resume there, too


@runtime_checkable
class MetricsLogger(Protocol):
    """A display of numbers, texts and images of a run, by step."""

    def log_numbers(self, step: int, numbers: Mapping[str, float]) -> None: ...

    def log_texts(self, step: int, texts: Mapping[str, str]) -> None: ...

    def log_image(self, step: int, name: str, file: Path) -> None: ...

    def close(self) -> None: ...


def open_loggers(run: Path, first_step: int, config: Mapping[str, Any]) -> list[MetricsLogger]:
    """Open TensorBoard, if it is installed, and Weights & Biases, if `config["wandb"]` is set.

    Args:
        run: the run folder.
        first_step: the step that the run resumes from; TensorBoard drops what came later.
        config: of the run; "wandb" names the project.
    """
    loggers: list[MetricsLogger] = []
    with contextlib.suppress(ImportError):  # the extra `train` has it
        loggers.append(TensorBoardLogger(run / "tb", first_step))
    if project := config.get("wandb"):
        loggers.append(WandbLogger(run, project, config))
    return loggers


class TensorBoardLogger:
    """A folder of event files for TensorBoard."""

    def __init__(self, folder: Path, first_step: int):
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(folder, purge_step=first_step + 1)

    def log_numbers(self, step: int, numbers: Mapping[str, float]) -> None:
        for name, value in numbers.items():
            self.writer.add_scalar(name, value, step)

    def log_texts(self, step: int, texts: Mapping[str, str]) -> None:
        for name, text in texts.items():
            self.writer.add_text(name, text, step)

    def log_image(self, step: int, name: str, file: Path) -> None:
        with Image.open(file) as image:
            self.writer.add_image(name, np.array(image.convert("RGB")), step, dataformats="HWC")

    def close(self) -> None:
        self.writer.close()


class WandbLogger:
    """A run at Weights & Biases; WANDB_MODE=offline keeps everything on disk, as usual."""

    def __init__(self, run: Path, project: str, config: Mapping[str, Any]):
        """Start a run at Weights & Biases, or resume the one of this run folder.

        Raises:
            UserError: wandb is not installed, or does not start.
        """
        self.wandb = import_wandb()
        file = run / WANDB_FILE
        if not file.exists():
            file.write_text(secrets.token_hex(8), encoding="ascii")
        try:
            self.run = self.wandb.init(
                project=project,
                name=run.name,
                id=file.read_text(encoding="ascii").strip(),
                resume="allow",
                dir=str(run),
                config=dict(config),
            )
        except self.wandb.Error as error:
            raise UserError(
                f"Weights & Biases does not start ({error}). Log in (wandb login), or keep "
                "everything on disk (WANDB_MODE=offline), or leave --wandb out."
            ) from error

    def log_numbers(self, step: int, numbers: Mapping[str, float]) -> None:
        self.run.log(dict(numbers), step=step)

    def log_texts(self, step: int, texts: Mapping[str, str]) -> None:
        self.run.summary.update(dict(texts))

    def log_image(self, step: int, name: str, file: Path) -> None:
        self.run.log({name: self.wandb.Image(str(file))}, step=step)

    def close(self) -> None:
        self.run.finish()


def import_wandb() -> ModuleType:
    """Import wandb.

    Raises:
        UserError: it is not installed; says how to get it.
    """
    try:
        return importlib.import_module("wandb")
    except ModuleNotFoundError as error:
        raise UserError(
            "--wandb needs the package wandb, which is not installed: pip install wandb. "
            "Without it, metrics.jsonl and TensorBoard hold the same numbers."
        ) from error
