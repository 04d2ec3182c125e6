"""Where a run can be watched besides its folder: TensorBoard, and Weights & Biases on request."""

import contextlib
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from PIL import Image

from foundation.errors import UserError

WANDB_FILE = "wandb_run.txt"  # of a run folder: its name over there, so that resuming goes on


@runtime_checkable
class Board(Protocol):
    def numbers(self, step: int, metrics: Mapping[str, float]) -> None: ...

    def words(self, step: int, verdicts: Mapping[str, str]) -> None: ...

    def picture(self, step: int, name: str, file: Path) -> None: ...

    def close(self) -> None: ...


def open_boards(run: Path, first_step: int, config: Mapping[str, Any]) -> list[Board]:
    """TensorBoard if it is installed (the `train` extra has it); what `config["wandb"]` names."""
    boards: list[Board] = []
    with contextlib.suppress(ImportError):
        boards.append(TensorBoard(run / "tb", first_step))
    if project := config.get("wandb"):
        boards.append(WeightsAndBiases(run, project, config))
    return boards


class TensorBoard:
    def __init__(self, folder: Path, first_step: int):
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(folder, purge_step=first_step + 1)

    def numbers(self, step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self.writer.add_scalar(name, value, step)

    def words(self, step: int, verdicts: Mapping[str, str]) -> None:
        for name, text in verdicts.items():
            self.writer.add_text(name, text, step)

    def picture(self, step: int, name: str, file: Path) -> None:
        with Image.open(file) as image:
            self.writer.add_image(name, np.array(image.convert("RGB")), step, dataformats="HWC")

    def close(self) -> None:
        self.writer.close()


class WeightsAndBiases:
    """A run of the given project. WANDB_MODE=offline keeps everything on disk, as usual."""

    def __init__(self, run: Path, project: str, config: Mapping[str, Any]):
        self.wandb = import_wandb()
        file = run / WANDB_FILE
        if not file.exists():
            file.write_text(secrets.token_hex(8))
        try:
            self.run = self.wandb.init(
                project=project,
                name=run.name,
                id=file.read_text().strip(),
                resume="allow",
                dir=str(run),
                config=dict(config),
            )
        except self.wandb.Error as error:
            raise UserError(
                f"Weights & Biases does not start ({error}). Log in (wandb login), or keep "
                "everything on disk (WANDB_MODE=offline), or leave --wandb out."
            ) from error

    def numbers(self, step: int, metrics: Mapping[str, float]) -> None:
        self.run.log(dict(metrics), step=step)

    def words(self, step: int, verdicts: Mapping[str, str]) -> None:
        self.run.summary.update(dict(verdicts))

    def picture(self, step: int, name: str, file: Path) -> None:
        self.run.log({name: self.wandb.Image(str(file))}, step=step)

    def close(self) -> None:
        self.run.finish()


def import_wandb() -> Any:
    """The module.

    Raises:
        ValueError: it is not installed; says how to get it.
    """
    try:
        import wandb
    except ModuleNotFoundError as error:
        raise UserError(
            "--wandb needs the package wandb, which is not installed: pip install wandb. "
            "Without it, metrics.jsonl and TensorBoard hold the same numbers."
        ) from error
    return wandb
