"""The benchmark of the start makes data that the trainings would take for their own."""

import pytest

from benchmarks import startup
from dataset.folder import read_folder


@pytest.mark.parametrize("kind", ["folder", "shards"])
def test_made_up_data_is_complete(tmp_path, kind, monkeypatch):
    if not startup.Path("/proc/self/status").exists():
        pytest.skip("memory is read as Linux tells it")
    monkeypatch.setattr(startup, "CONTEXT", (7, 8))
    config = startup.Config(where=tmp_path, images=1500, kind=kind, max_aspect=2.0)
    root = tmp_path / "made-up"
    startup.make_data(config, root)
    figures = startup.measure(config, root)
    assert float(figures["all, CPU seconds"]) > 0
    folder = read_folder(startup.data(config, root))
    assert len(folder.pairs) == 1500
    assert folder.pairs[1234].captions == (f"{startup.WORDS} 1234",)
    assert str(folder.pairs[1234].path).endswith("00001234.jpg")
