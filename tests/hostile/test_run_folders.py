"""Run folders in which something is wrong: refused with the file's name, or gone on with."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from dataset.latent_cache.block_file import map_array
from dataset.latent_cache.cache import read_mark, verify_cache
from foundation.errors import UserError
from interop.provenance import read_facts
from stages.autoencoder import AutoencoderTrainingConfig
from stages.clip import ClipTrainingConfig
from stages.diffusion import DiffusionTrainingConfig
from tests.hostile.json_changes import TEXTS, faults_of_reader, read_changed
from training.checkpoint import load_state, save_state
from training.config_json import from_json, to_json
from training.logging.metrics import MetricsFile, read_metrics
from training.run import Run, last_event
from training.tools.report_page import report_page

CONFIGS = {
    "clip": ClipTrainingConfig(data=Path("d"), out=Path("o")),
    "vae": AutoencoderTrainingConfig(data=Path("d"), out=Path("o")),
    "ldm": DiffusionTrainingConfig(
        data=Path("d"), out=Path("o"), vae=Path("v"), text_encoder="clip"
    ),
}
LINES = [b"", b"null", b"3", b"[]", b'"x"', b"{", b"{}", b"\xff\xfe", b"\0" * 50, b"[" * 100_000]
LINES += [b'{"step": %s, "loss": 1}' % v for v in (b"true", b'"1"', b"null", b"[]", b"1.5", b"{}")]
LINES += [b'{"step": 1, "loss": {}}', b'{"step": 1, "event": 3}', b'{"step": 9e999}', b'{"a": 1}']
LINES += [b'{"step": %s}' % (b"9" * 5000), b"\x1b[31m", b'{"step": 1, "step": 2}']


def sampled(everything: bool) -> int:
    return 1 if everything else 7


@pytest.mark.parametrize("everything", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("stage", CONFIGS)
def test_settings_of_a_run(tmp_path, stage, everything):
    """As the tools read them: `training.tools.posthoc` needs the whole config."""
    file = tmp_path / "config.json"
    config = CONFIGS[stage]
    file.write_text(json.dumps(to_json(config)))

    def read() -> object:
        Run(tmp_path, json.loads(file.read_text()) if file.read_text()[:1] == "{" else {})
        return from_json(type(config), json.loads(file.read_text()), file)

    def read_well() -> object:
        try:
            return read()
        except (ValueError, RecursionError) as error:
            if isinstance(error, UserError):
                raise
            return Run(tmp_path, {})  # the test itself cannot read it

    count, faults = read_changed(file, read_well, str(tmp_path), sampled(everything))
    print(stage, count, "inputs")
    assert not faults, f"{len(faults)} of {count}:\n" + "\n".join(faults[:8])


@pytest.mark.parametrize("everything", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_reports(tmp_path, everything):
    file = tmp_path / "config.json"
    file.write_text(json.dumps(to_json(CONFIGS["vae"])))
    count, faults = read_changed(
        file, partial(report_page, tmp_path), str(tmp_path), 3 * sampled(everything)
    )
    assert not faults, f"{len(faults)} of {count}:\n" + "\n".join(faults[:8])


@pytest.mark.parametrize("line", LINES, ids=range(len(LINES)))
def test_lines_of_metrics_and_history(tmp_path, capsys, line):
    """Metrics are mended, with a note; a history that says nothing names no end."""
    run = Run(tmp_path, {"seed": 0})
    good = b'{"step": 1, "loss": 2.0}\n'
    (tmp_path / "metrics.jsonl").write_bytes(good + line + b"\n" + good)
    assert {"step": 1, "loss": 2.0} in read_metrics(tmp_path / "metrics.jsonl")
    report_page(tmp_path)
    MetricsFile(tmp_path, 1).close()
    kept = (tmp_path / "metrics.jsonl").read_bytes()
    assert kept.startswith(good)
    assert kept.endswith(good)
    kept.decode("utf-8")
    run.history.write_bytes(b'{"step": 1, "event": "finished", "time": ""}\n' + line)
    assert last_event(run.history) in (None, (1, "finished"))
    assert not run.finished(1)


@pytest.fixture
def state(tmp_path):
    parts = {"a": nn.Linear(2, 2), "b": torch.optim.Adam(nn.Linear(2, 2).parameters())}
    return save_state(tmp_path, 1, parts), parts


@pytest.mark.parametrize("checked", [True, False], ids=["with checksums", "without"])
@pytest.mark.parametrize("name", ["state.json", "a.json", "b.json"])
def test_states(state, name, checked):
    folder, parts = state
    if not checked:
        (folder / "state.json").write_text('{"step": 1, "parts": ["a", "b"]}')
    count, faults = read_changed(folder / name, partial(load_state, folder, parts), str(folder))
    assert not faults, f"{len(faults)} of {count}:\n" + "\n".join(faults[:8])


@pytest.mark.parametrize("content", [b"", b"x" * 99, b"\xff" * 16], ids=len)
def test_tensors_of_states(state, content):
    folder, parts = state
    (folder / "a.safetensors").write_bytes(content)
    assert faults_of_reader(lambda: load_state(folder, parts), str(folder)) == ""


def test_what_is_no_state_is_none(tmp_path):
    run = Run(tmp_path, {"seed": 0})
    for name in ("step-abc", "step--1", "step-", "step-1e9", "other"):
        (run.states / name).mkdir(parents=True)
    (run.states / "step-10000000").mkdir()
    (run.states / "step-9999999").mkdir()
    assert run.saved_step == 10_000_000


# The latent cache


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_marks_of_caches(tmp_path, text):
    file = tmp_path / "latent_cache.json"
    file.write_text(text, errors="surrogatepass")
    assert faults_of_reader(lambda: read_mark(tmp_path), str(file)) == ""
    assert faults_of_reader(lambda: read_facts(file), str(file)) in ("", None)


def test_entries_of_caches(tmp_path):
    file = tmp_path / "latent_cache.json"
    content = {"format": 2, "identity": {"a": 1}, "data": "x", "blocks": {"context.npy": ["0"]}}
    file.write_text(json.dumps(content))
    count, faults = read_changed(file, partial(verify_cache, tmp_path), str(tmp_path))
    assert not faults, f"{len(faults)} of {count}:\n" + "\n".join(faults[:8])


def arrays() -> dict[str, bytes]:
    good = np.lib.format.magic(1, 0)
    return {
        "empty": b"",
        "cut short": good,
        "no array": b"x" * 500,
        "a header that is code": good
        + (40).to_bytes(2, "little")
        + b"__import__('os').system('true')".ljust(40),
        "a huge shape": good
        + (90).to_bytes(2, "little")
        + b"{'descr': '<f2', 'fortran_order': False, 'shape': (9999999999, 9, 9, 9)}".ljust(90),
        "a pickle": good
        + (70).to_bytes(2, "little")
        + b"{'descr': '|O', 'fortran_order': False, 'shape': (1,)}".ljust(70),
    }


@pytest.mark.parametrize("name", arrays())
def test_arrays_of_caches(tmp_path, name):
    file = tmp_path / "context.npy"
    file.write_bytes(arrays()[name])
    assert faults_of_reader(lambda: map_array(file, 3), str(file)) == ""


@pytest.mark.parametrize(
    "array", [np.zeros(3), np.zeros((2, 2, 2), ">f4"), np.zeros((2, 2, 2), "U1")], ids=str
)
def test_arrays_of_other_kinds(tmp_path, array):
    np.save(tmp_path / "context.npy", array)
    file = tmp_path / "context.npy"
    assert faults_of_reader(lambda: map_array(file, 3), str(file)) == ""
