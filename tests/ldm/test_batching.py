"""Drawing many pictures in batches, and what happens when memory runs out."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from autoencoder.tiling import decode_tiled
from foundation.errors import UserError
from ldm.denoiser import Conditioning
from ldm.pipeline.batching import Request, draw_in_batches, make_batches
from tests.helpers.random_models import make_pipeline


def test_a_picture_too_large_to_decode_is_decoded_in_tiles(monkeypatch, capsys):
    pipeline = make_pipeline()
    z = torch.randn(1, 4, 8, 72, generator=torch.Generator().manual_seed(0))
    whole = pipeline.decode(z)
    decode = type(pipeline.autoencoder).decode

    def limited(self, latents):
        if latents.shape[-1] > 64:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return decode(self, latents)

    monkeypatch.setattr(type(pipeline.autoencoder), "decode", limited)
    tiled = pipeline.decode(z)
    assert "tiles" in capsys.readouterr().err
    assert torch.equal(tiled, decode_tiled(pipeline.autoencoder, z))
    assert tiled.shape == whole.shape

    def broken(self, latents):
        raise RuntimeError("something else")

    monkeypatch.setattr(type(pipeline.autoencoder), "decode", broken)
    with pytest.raises(RuntimeError, match="something else"):
        pipeline.decode(z)


def make_requests() -> list[Request]:
    text = Conditioning(torch.zeros(1, 1, 1))
    return [Request([(text, 1.0)], text, seed) for seed in range(7)]


def out_of_memory(batch, report):
    raise torch.OutOfMemoryError("CUDA out of memory.")


def out_of_memory_on_a_cpu(batch, report):
    raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 GB")


def fails(batch, report):
    raise RuntimeError("something else")


def test_batches_are_halved_until_they_fit(capsys):
    sizes = []

    def draw(batch, report):
        sizes.append(len(batch))
        if len(batch) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return torch.stack([torch.full((1, 1, 1), float(request.seed)) for request in batch])

    drawn = draw_in_batches(draw, make_requests(), 8, fill=False)
    assert [int(z) for z in drawn] == list(range(7))
    assert sizes == [7, 3, 1, 2, 4, 2, 2]
    assert "7 pictures at once; now 3" in capsys.readouterr().err


def test_a_batch_that_cannot_be_halved_is_refused():
    with pytest.raises(UserError, match="one picture"):
        draw_in_batches(out_of_memory, make_requests(), 8, fill=False)
    with pytest.raises(UserError, match="8 pictures"):
        draw_in_batches(out_of_memory_on_a_cpu, make_requests(), 8, fill=True)
    with pytest.raises(UserError, match="one picture"):
        draw_in_batches(out_of_memory_on_a_cpu, make_requests(), 1, fill=True)


def test_other_errors_are_not_taken_for_a_lack_of_memory():
    with pytest.raises(RuntimeError, match="something else"):
        draw_in_batches(fails, make_requests(), 8, fill=True)


@given(kinds=st.lists(st.integers(0, 2), max_size=20), size=st.integers(1, 5))
def test_batches_hold_every_request_once_and_one_kind_each(kinds, size):
    requests = [
        Request([(Conditioning(torch.zeros(1, 1 + kind, 1)), 1.0)], Conditioning(), seed)
        for seed, kind in enumerate(kinds)
    ]
    batches = make_batches(requests, size)
    assert sorted(k for batch in batches for k in batch) == list(range(len(kinds)))
    for batch in batches:
        assert len(batch) <= size and len({kinds[k] for k in batch}) == 1
        assert batch == sorted(batch)
