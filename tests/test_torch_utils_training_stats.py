"""Statistics: closed forms, what a collector shows when, and exact resumption."""

import io
import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from torch_utils import training_stats
from torch_utils.training_stats import Collector, report, report0


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(training_stats, '_shared', training_stats._Shared())
    yield


def test_num_mean_std_of_anything() -> None:
    collector = Collector()
    values = [torch.tensor([[1.0, 2.0]], requires_grad=True), [3, 4], np.float32(5), 6, torch.tensor(7), True]
    for value in values:
        assert report('x', value) is value
    assert report('empty', []) == []
    collector.update()
    numbers = [1, 2, 3, 4, 5, 6, 7, 1]
    assert collector.num('x') == 8
    assert collector.mean('x') == collector['x'] == pytest.approx(np.mean(numbers), rel=1e-12)
    assert collector.std('x') == pytest.approx(np.std(numbers), rel=1e-12)
    assert collector.num('empty') == 0 and math.isnan(collector.mean('empty')) and math.isnan(collector.std('empty'))
    assert collector.as_dict().x.num == 8 and list(collector.as_dict()) == ['x', 'empty']


def test_a_single_value_has_no_spread_and_nan_shows() -> None:
    collector = Collector()
    report('one', 1e8)
    report('bad', [1.0, float('nan')])
    collector.update()
    assert collector.std('one') == 0.0 and collector.mean('one') == 1e8
    assert math.isnan(collector.mean('bad')) and math.isnan(collector.std('bad'))


def test_large_sums_stay_exact() -> None:
    collector = Collector()
    report('x', torch.full([1000], 16_777_217.0, dtype=torch.float64))
    collector.update()
    assert collector.mean('x') == 16_777_217.0 and collector.std('x') == 0.0


def test_collectors_are_independent_and_see_the_time_between_their_updates() -> None:
    report('a', 100)
    first = Collector()
    report('a', [1, 3])
    second = Collector()
    report('a', 8)
    first.update()
    assert (first.num('a'), first.mean('a')) == (3, 4)
    second.update()
    assert (second.num('a'), second.mean('a')) == (1, 8)


def test_keep_previous() -> None:
    keeping, forgetting = Collector(), Collector(keep_previous=False)
    report('a', 2)
    for collector in (keeping, forgetting):
        collector.update()
        assert collector.mean('a') == 2
        collector.update()
    assert keeping.mean('a') == 2 and keeping.num('a') == 1
    assert math.isnan(forgetting.mean('a')) and forgetting.num('a') == 0


def test_pattern() -> None:
    collector = Collector(regex='Loss/.*')
    report('Loss/G', 1)
    report('Other', 2)
    collector.update()
    assert collector.names() == ['Loss/G']
    with pytest.raises(KeyError, match='Other'):
        collector.mean('Other')


def test_report0_counts_for_the_first_process_only() -> None:
    collector = Collector()
    report0('a', 5)
    training_stats._shared.rank = 1
    report0('a', 7)
    report0('b', 7)
    collector.update()
    assert collector.num('a') == 1 and collector.mean('a') == 5 and collector.names() == ['a', 'b']


def test_rank_must_be_known_before_the_first_update() -> None:
    training_stats.init_multiprocessing(0, None)
    report('a', 1)
    Collector()
    training_stats.init_multiprocessing(0, None)
    with pytest.raises(RuntimeError, match='before'):
        training_stats.init_multiprocessing(1, torch.device('cpu'))


def test_a_resumed_run_shows_what_an_unbroken_run_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    def begin() -> tuple[Collector, Collector]:
        every, signs = Collector(), Collector('signs')
        report('loss', [0.1, 0.7])
        report('signs', [1, -1, 1])
        signs.update()
        report('signs', 0.3)    # Seen by nobody yet.
        every.update()
        report('signs', -0.25)  # Still on its device.
        return every, signs

    def finish(every: Collector, signs: Collector) -> list[object]:
        shown = [every.as_dict(), signs.as_dict()]
        report('signs', 1)
        signs.update()
        every.update()
        return [shown, every.as_dict(), signs.as_dict()]

    every, signs = begin()
    file = io.BytesIO()
    torch.save([training_stats.state_dict(), every.state_dict(), signs.state_dict()], file)
    unbroken = finish(every, signs)

    monkeypatch.setattr(training_stats, '_shared', training_stats._Shared())
    every, signs = Collector(), Collector('signs')
    report('loss', 99)  # Whatever came before the state was loaded is gone.
    states = torch.load(io.BytesIO(file.getvalue()), weights_only=True)
    for target, state in zip((training_stats, every, signs), states):
        target.load_state_dict(state)
    assert finish(every, signs) == unbroken
    assert unbroken[2]['signs']['num'] == 3     # type: ignore[index]
