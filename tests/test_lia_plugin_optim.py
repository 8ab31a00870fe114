"""The scheduled optimiser: its factors in closed form, resumption, and that it is Adam."""

import copy
import math

import pytest
import torch

from lia_plugin.optim import ScheduledAdam, learning_rate_factor

Made = tuple[torch.nn.Parameter, ScheduledAdam]


def make(schedule: str = 'constant', total_steps: int = 100, **kwargs: int) -> Made:
    p = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    return p, ScheduledAdam([p], lr=0.1, betas=(0.0, 0.99), schedule=schedule, total_steps=total_steps, **kwargs)


def train(p: torch.nn.Parameter, opt: torch.optim.Optimizer, steps: int) -> None:
    for i in range(steps):
        p.grad = (p.detach() - 3) * (1 + 0.1 * i)
        opt.step()


def test_without_a_schedule_it_is_adam() -> None:
    p, opt = make()
    q = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    train(p, opt, 5)
    train(q, torch.optim.Adam([q], lr=0.1, betas=(0.0, 0.99)), 5)
    torch.testing.assert_close(p, q)


def test_factors() -> None:
    assert [learning_rate_factor('step', i, 8) for i in range(9)] == pytest.approx([
        1, 1, 0.8, 0.8, 0.64, 0.64, 0.512, 0.512, 0.512])
    assert learning_rate_factor('cosine', 499, 1000) == pytest.approx(0.5, abs=1e-3)
    assert learning_rate_factor('cosine', 0, 1000) == pytest.approx(0.0005 / 0.02, rel=1e-3), 'warm-up'
    assert learning_rate_factor('cosine', 1000, 1000) == pytest.approx(0, abs=1e-9)
    factors = [learning_rate_factor('cosine', i, 1000) for i in range(1000)]
    assert max(factors) == pytest.approx(0.5 * (1 + math.cos(math.pi * 0.0205)), rel=1e-3)


def test_an_unknown_schedule_is_refused_before_anything_is_trained() -> None:
    with pytest.raises(ValueError, match="expected one of constant, cosine, step, got 'linear'"):
        make('linear')


def test_a_resumed_run_goes_on_exactly() -> None:
    p, opt = make('cosine', 20)
    train(p, opt, 7)
    q, other = make('cosine', 20)
    q.data.copy_(p.data)
    other.load_state_dict(copy.deepcopy(opt.state_dict()))
    train(p, opt, 5)
    train(q, other, 5)
    assert torch.equal(p, q) and other.param_groups[0]['steps'] == 12


def test_a_longer_run_follows_its_own_length() -> None:
    p, opt = make('cosine', 10)
    train(p, opt, 10)
    q, longer = make('cosine', 20)
    longer.load_state_dict(opt.state_dict())
    train(q, longer, 1)
    assert longer.param_groups[0]['lr'] == pytest.approx(0.1 * learning_rate_factor('cosine', 10, 20))


def test_where_no_state_is_kept_it_begins_further_on() -> None:
    p, opt = make('cosine', 20, first_step=15)
    train(p, opt, 1)
    assert opt.param_groups[0]['lr'] == pytest.approx(0.1 * learning_rate_factor('cosine', 15, 20))
