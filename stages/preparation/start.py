"""The start of all stages: everything is checked first, then they run in processes of their own."""

import threading

from dataset.folder import Folder, read_folder
from foundation.errors import UserError
from stages.plan import free_disk
from stages.preparation.all_stages import AllStages
from training.memory import format_bytes
from training.tools.background import start_sequence, write_commands

STARTING = threading.Lock()  # threads of a page that start trainings at the same time


def start_all_stages(stages: AllStages, at_once: bool = False) -> None:
    """Start a training of all stages, or go on with it; it outlives this process.

    at_once: do not wait for the end of other trainings in the same folder of runs.

    Raises:
        UserError: the data or the settings would stop a training, the memory or the disk is too
            small, or the folder holds a training with other settings, or one that runs.
    """
    with STARTING:
        folder = read_folder(stages.data, allow_missing_captions=True)
        if problems := stages.problems(folder):
            raise UserError("\n".join(problems))
        check_room(stages, folder)
        write_commands(stages.out, stages.commands())
        start_sequence(stages.out, at_once)


def check_room(stages: AllStages, folder: Folder) -> None:
    """Raise a UserError if memory or disk are too small for the trainings."""
    disk = 0
    for plan in stages.plans(folder):
        plan.check_memory()
        disk += plan.disk_bytes()
    if (free := free_disk(stages.out)) < disk:
        raise UserError(
            f"the trainings take up to {format_bytes(disk)} on the disk of {stages.out}, and only "
            f"{format_bytes(free)} are free. Make room, or choose a smaller preset."
        )
