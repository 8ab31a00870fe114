"""What is made of weights is kept for those that stay, follows each change, and goes with its owner."""

import copy
import gc
from typing import NamedTuple

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from torch_utils.ops import bias_act, cpu_kernels, kept

pytestmark = pytest.mark.skipif(cpu_kernels.library() is None, reason='no compiler')


class Sum(NamedTuple):
    value: float
    nbytes: int = 100


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> kept.Seen:
    seen = kept.Seen()
    monkeypatch.setattr(kept, '_seen', seen)
    return seen


def weight(requires_grad: bool = False) -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.randn(3, 2, 3, 3), requires_grad=requires_grad)


def ask(w: torch.Tensor, what: str = 'sum', nbytes: int = 100) -> Sum | None:
    return kept.get(w, what, nbytes, lambda: Sum(float(w.sum()), nbytes))


def test_what_is_asked_for_twice_is_kept_until_the_weight_changes(seen: kept.Seen) -> None:
    w = weight()
    assert ask(w) is None
    first = ask(w)
    assert first is not None and ask(w) is first and ask(w, 'another') is None
    with torch.no_grad():
        w.add_(1)
    assert ask(w) is None and seen.nbytes == 0
    changed = ask(w)
    assert changed is not None and changed.value == float(w.sum()) != first.value
    w.data[1, 1, 1, 1] += 1  # Which the version doesn't tell.
    written = ask(w)
    assert written is not None and written.value == float(w.sum()) != changed.value
    w.data[0], w.data[1] = w.data[1].clone(), w.data[0].clone()  # Nor does a sum.
    assert ask(w) is not written
    w.data = torch.zeros_like(w)
    assert ask(w) is None


def test_results_go_with_their_weight(seen: kept.Seen) -> None:
    w = weight()
    assert ask(w) is None and ask(w) is not None and seen.nbytes == 100
    del w
    gc.collect()
    assert not seen.entries


def test_nothing_is_kept_of_what_is_trained_or_passes(seen: kept.Seen) -> None:
    trained, frozen = weight(requires_grad=True), weight()
    with torch.inference_mode():
        born = torch.nn.Parameter(torch.randn(3, 2, 3, 3), requires_grad=False)
    gaps = torch.nn.Parameter(torch.randn(3, 4, 3, 3)[:, ::2], requires_grad=False)
    half = torch.nn.Parameter(torch.randn(3, 2, 3, 3).bfloat16(), requires_grad=False)
    for w in (trained, frozen * 2, frozen.detach(), born, gaps, half):
        assert ask(w) is None and ask(w) is None
    assert not seen.entries
    with torch.no_grad():
        assert ask(trained) is None and ask(trained) is not None


def test_what_inference_mode_has_made_can_be_differentiated(seen: kept.Seen) -> None:
    w, factor = weight(), torch.ones(3, 2, requires_grad=True)
    with torch.inference_mode():
        assert torch.equal(bias_act.squared_norms(w), bias_act.squared_norms(w))
    assert len(seen.entries) == 1
    assert torch.autograd.grad((bias_act.squared_norms(w) * factor).sum(), factor)[0].equal(bias_act.squared_norms(w))
    store = kept.Store([w])
    with torch.inference_mode(), kept.using(store):
        bias_act.squared_norms(w)
    assert len(store.results) == 1 and not any(result.is_inference() for _, result in store.results.values())


def test_nobody_gets_the_memory_that_a_stores_results_are_known_by() -> None:
    w = weight()
    store, place = kept.Store([w]), w.data_ptr()
    w.data = torch.zeros(1)
    others = [torch.empty(3, 2, 3, 3) for _ in range(20)]
    assert place in store.places and place not in {other.data_ptr() for other in others}


def test_nothing_is_kept_of_what_only_looks_like_a_parameter(seen: kept.Seen) -> None:
    with FakeTensorMode():
        w = weight()
        assert isinstance(w, torch.nn.Parameter) and bias_act.squared_norms(w).shape == (3, 2)
    assert not seen.entries


def test_a_weight_that_changes_each_time_costs_no_memory(seen: kept.Seen) -> None:
    w = weight()
    for _ in range(3):
        w.data = w.data + 1
        assert ask(w) is None
    assert seen.nbytes == 0 and len(seen.entries) == 1


def test_no_more_is_kept_than_is_allowed(seen: kept.Seen, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, 'MOST_BYTES', 250)
    monkeypatch.setattr(kept, 'LONG_AGO', 10)
    ws = [weight() for _ in range(3)]
    for w in ws:
        ask(w)
    assert [ask(w) is not None for w in ws] == [True, True, False] and seen.nbytes == 200
    for _ in range(12):
        ask(ws[0])
    assert ask(ws[2]) is not None, 'instead of what nobody has asked for since'
    assert seen.nbytes == 200 and ask(ws[1]) is None


def test_results_of_changed_weights_do_not_stay_for_good(seen: kept.Seen, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, 'SWEEP', 5)
    average, other = weight(), weight()
    assert ask(average) is None and ask(average) is not None
    with torch.no_grad():
        average.add_(1)
        for _ in range(6):
            other.add_(1)
            ask(other)
    assert seen.nbytes == 0


def test_what_was_kept_in_inference_mode_serves_gradients(seen: kept.Seen) -> None:
    w = weight()
    with torch.inference_mode():
        for _ in range(3):
            norms = bias_act.squared_norms(w)
    assert not norms.is_inference() and seen.nbytes
    x = torch.ones(3, 2, requires_grad=True)
    (x * bias_act.squared_norms(w)).square().sum().backward()
    torch.testing.assert_close(x.grad, 2 * w.square().sum(dim=(2, 3)).square())


def test_a_copy_has_results_of_its_own(seen: kept.Seen) -> None:
    w = weight()
    assert ask(w) is None and ask(w) is not None
    other = copy.deepcopy(w)
    assert ask(other) is None and ask(other) is not ask(w)


def test_a_checksum_sees_every_bit() -> None:
    x = torch.zeros(33000)
    seen = {cpu_kernels.checksum(x)}
    for place in (0, 1, 31, 32, 16383, 16384, 32999):
        for value in (1.0, -0.0, 1e-45):
            x[place] = value
            seen.add(cpu_kernels.checksum(x))
            x[place] = 0
    assert len(seen) == 22
    assert cpu_kernels.checksum(x.fill_(1)) != cpu_kernels.checksum(x.neg_())
