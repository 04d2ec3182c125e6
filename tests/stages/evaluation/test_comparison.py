"""Verdicts on reports that were made up."""

from dataclasses import replace

import pytest

from evaluation.estimates import Estimate
from stages.evaluation.comparison import comparison_rows
from stages.evaluation.report import Report

MODEL = {"predicts": "flow", "autoencoder": "aa", "unet": "bb"}


def report(loss, **model):
    better = Estimate(loss, loss - 0.01, loss + 0.01, better="lower")
    psnr = replace(better, better="higher")
    metrics = {"validation_loss": better, "reconstruction_psnr": psnr}
    return Report("model", "m", {}, MODEL | model, {}, metrics)


@pytest.mark.parametrize(
    ("model", "comparable"),
    [({"unet": "cc"}, True), ({"predicts": "noise"}, False), ({"autoencoder": "cc"}, False)],
)
def test_validation_losses_of_other_targets_get_no_verdict(model, comparable):
    loss, psnr = comparison_rows([report(0.4), report(0.1, **model)])
    assert ("better" in loss[-1]) == comparable
    assert ("not comparable" in loss[-1]) == (not comparable)
    assert "worse" in psnr[-1]
