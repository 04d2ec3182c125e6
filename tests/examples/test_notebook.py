"""The notebook, from top to bottom as a notebook, with few steps."""

import re
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[2] / "examples" / "first_hour.py"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # in the packages that run it
def test_the_notebook_runs(tmp_path, monkeypatch):
    jupytext = pytest.importorskip("jupytext")
    client = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    text = NOTEBOOK.read_text(encoding="utf-8")
    values = {
        "FOLDER": str(tmp_path / "shapes"),
        "RUNS": str(tmp_path / "runs"),
        "CLIP_STEPS, VAE_STEPS, LDM_STEPS": (2, 2, 2),
    }
    for name, value in values.items():
        text, count = re.subn(rf"^{name} = .*$", f"{name} = {value!r}", text, flags=re.MULTILINE)
        assert count == 1
    text = text.replace("runs/first-hour-pairs.png", (tmp_path / "pairs.png").as_posix())
    notebook = jupytext.reads(text, fmt="py:percent")
    kinds = [cell.cell_type for cell in notebook.cells]
    assert kinds.count("code") >= 8 and kinds.count("markdown") >= 6
    resources = {"metadata": {"path": str(NOTEBOOK.parent)}}
    client.NotebookClient(notebook, timeout=600, resources=resources).execute()
    shown = [
        kind
        for cell in notebook.cells
        for out in cell.get("outputs", ())
        for kind in out.get("data", ())
    ]
    assert shown.count("image/png") >= 4 and shown.count("image/svg+xml") == 3
    assert (tmp_path / "runs" / "ldm" / "model" / "model_index.json").is_file()
