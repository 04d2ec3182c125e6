"""Trainings on parquet files: equal to those on the folder, and to themselves after a stop."""

import pytest

from tests.helpers import short_runs
from tests.helpers.data.parquet_files import image_table, write_parquet
from tests.helpers.short_runs import killed_in_step, numbers


@pytest.mark.slow
def test_a_stopped_training_on_parquet_equals_the_straight_one_on_the_folder(tmp_path):
    from stages.autoencoder import AutoencoderTrainer

    order = [(7 * k) % 30 for k in range(30)]
    table = image_table(tmp_path, order)
    for k in range(3):
        part = table.slice(10 * k, 10)
        write_parquet(tmp_path / "parquet" / "data" / f"part-{k}.parquet", part, rows=4)
    (tmp_path / "folder").mkdir()
    (tmp_path / "images").rename(tmp_path / "folder" / "data")
    flags = ("--save-every", "2", "--steps", "5")
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    short_runs.vae(tmp_path / "folder", straight, *flags)
    with killed_in_step(AutoencoderTrainer, 3):
        short_runs.vae(tmp_path / "parquet", stopped, *flags)
    short_runs.vae(tmp_path / "parquet", stopped, *flags)
    assert numbers(stopped / "vae") == numbers(straight / "vae")
    weights = "model/diffusion_pytorch_model.safetensors"
    short_runs.same_weights(stopped / "vae" / weights, straight / "vae" / weights)
