"""benchmarks/rehearse_presets.py: the narrow networks of all presets; slow: all of it for one."""

import pytest

from autoencoder import PRESETS as AUTOENCODERS
from benchmarks import rehearse_presets
from benchmarks.rehearse_presets import PRESETS, main, narrow_networks
from foundation.errors import UserError
from ldm.unet import PRESETS as UNETS


def test_the_networks_of_all_presets_are_narrow_while_they_are_rehearsed():
    with narrow_networks():
        for preset in PRESETS:
            assert max(AUTOENCODERS[preset].block_out_channels) <= 64
            assert max(UNETS[preset].block_out_channels) <= 160
    assert UNETS["sd15"].block_out_channels[0] == 320


def test_a_preset_that_is_unknown_is_refused_and_nothing_is_written(tmp_path):
    with pytest.raises(UserError, match="huge"):
        main(["--out", str(tmp_path / "out"), "--presets", "huge"])
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_stage_that_fails_is_named(tmp_path, monkeypatch, capsys):
    def broken(step):
        return lambda trainer, number: {"step_applied": 0}

    monkeypatch.setattr(rehearse_presets, "dying", broken)
    with pytest.raises(UserError, match="tiny-32, clip"):
        main(["--out", str(tmp_path / "out"), "--presets", "tiny-32"])
    assert "FAILED" in capsys.readouterr().out


@pytest.mark.slow
def test_the_smallest_preset_passes(tmp_path, capsys):
    main(["--out", str(tmp_path / "out"), "--presets", "tiny-32"])
    assert capsys.readouterr().out.count("resumed") == 3
