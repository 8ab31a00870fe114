"""The safe reader on pickles that NVIDIA's own code makes, with the script that makes the table of results."""

import os
import sys

import hosts
import pytest

sys.path.insert(0, os.path.join(os.path.dirname(__file__), '..', 'benchmarks'))

import fidelity
import torch


@pytest.mark.slow
@pytest.mark.parametrize('name', hosts.NAMES)
@pytest.mark.parametrize('only, least', [('LIA', 7), ('architecture', 3), ('position', 2), ('protocol', 4)])
def test_their_pickles_give_their_numbers_here(name: str, only: str, least: int) -> None:
    host, rows = fidelity.run_host(str(hosts.find(name)), only)
    assert host == name and len(rows) >= least
    for row in rows:
        assert row.is_good and {'G', 'D'} <= set(row.differences), row


def test_the_difference_is_in_standard_deviations() -> None:
    expected = torch.tensor([0.0, 2.0, 4.0])    # Their standard deviation is 2.
    assert fidelity.difference(expected + 1, expected) == pytest.approx(0.5)
    assert fidelity.difference(expected[:2], expected) == float('inf')
    good = fidelity.Row('a', 'b', {'G': 1e-6, 'half': 1e-2})
    assert good.is_good
    for bad in ({'G': 1e-3}, {'D': float('nan')}):
        assert not fidelity.Row('a', 'b', bad).is_good
    for reason in (dict(refused='x'), dict(warned='x')):
        assert not fidelity.Row('a', 'b', {}, **reason).is_good
