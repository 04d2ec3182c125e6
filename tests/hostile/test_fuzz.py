"""A short fuzz of every area, by the code of `python -m tests.hostile.fuzz`."""

import pytest

from tests.hostile.fuzz import area_names, fuzz, load_targets

TARGETS = [(area, target.name) for area in area_names() for target in load_targets(area)]
INPUTS = 50  # of each target; the command takes as many as time allows


@pytest.mark.parametrize(("area", "name"), TARGETS)
def test_changed_files_are_read_or_refused(area, name):
    (target,) = [target for target in load_targets(area) if target.name == name]
    findings = fuzz(target, seed=0, inputs=INPUTS)
    assert findings.inputs == INPUTS
    assert not findings.failures, dict(list(findings.failures.items())[:3])
