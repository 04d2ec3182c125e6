"""The kinds of models that the tab "Train" offers: what they read, and what they draw from."""

from html import escape

from foundation.errors import UserError, listed
from stages.flags.diffusion import ConditionName
from stages.flags.tasks import TaskName

# What is shown -> the value of the flag.
CONDITIONS: dict[str, ConditionName] = {
    "Captions": "text",
    "Class: the names of the folders, or short captions": "class",
    "Nothing: images alone": "none",
}
TASKS: dict[str, TaskName] = {
    "Draws pictures": "draw",
    "Fills what a mask covers": "inpaint",
    "Enlarges small pictures": "upscale",
    "Restores damaged pictures": "restore",
}
NEEDS: dict[ConditionName, str] = {
    "text": "Each image needs a caption. Three stages: text encoder, autoencoder, U-Net.",
    "class": "Each image needs a class: put the images of each class into a folder of its name, or "
    "give each the same short caption. Two stages: there is no text encoder. You draw by the name "
    "of a class.",
    "none": "Images alone; captions are not read. Two stages: there is no text encoder. You draw "
    "without a prompt.",
}
USES: dict[TaskName, str] = {
    "draw": "",
    "inpaint": "Masks are drawn at random during the training. Use it in the tab Change, Repaint "
    "and Extend.",
    "upscale": "Small pictures are made from the images. Use it in the tab Change, Enlarge. It "
    "does not read classes.",
    "restore": "Blur, noise, JPEG and low contrast are added to the images. Use it in the tab "
    "Change, Restore.",
}


def condition_of(shown: str) -> ConditionName:
    """Return the condition of a choice of the page."""
    if shown not in CONDITIONS:
        raise UserError(f"what the model reads is one of: {listed(list(CONDITIONS))}.")
    return CONDITIONS[shown]


def task_of(shown: str) -> TaskName:
    """Return the task of a choice of the page."""
    if shown not in TASKS:
        raise UserError(f"what the model does is one of: {listed(list(TASKS))}.")
    return TASKS[shown]


def describe_kind(condition: str, task: str) -> str:
    """Return what a kind of model needs, and how it is used, as HTML."""
    words = [NEEDS[condition_of(condition)], USES[task_of(task)]]
    return f"<div class='note'>{escape(' '.join(filter(None, words)))}</div>"
