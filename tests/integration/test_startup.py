"""The startup benchmark writes data that the trainings accept as their own."""

import pytest

from benchmarks import startup
from dataset.folder import read_folder


@pytest.mark.parametrize("kind", ["folder", "shards"])
def test_synthetic_data_is_complete(tmp_path, kind, monkeypatch):
    if not startup.Path("/proc/self/status").exists():
        pytest.skip("memory is measured only on Linux")
    monkeypatch.setattr(startup, "CONTEXT", (7, 8))
    config = startup.Config(where=tmp_path, images=1500, kind=kind, max_aspect=2.0)
    root = tmp_path / "synthetic"
    startup.make_data(config, root)
    figures = startup.measure(config, root)
    assert float(figures["all, CPU seconds"]) > 0
    folder = read_folder(startup.data_flag(config, root))
    assert len(folder.pairs) == 1500
    assert folder.pairs[1234].captions == (f"{startup.WORDS} 1234",)
    assert str(folder.pairs[1234].path).endswith("00001234.jpg")
