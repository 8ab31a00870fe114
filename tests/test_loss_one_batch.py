"""Both halves of Dmain in one batch: what two separate ones give, whatever the discriminator's groups are."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from torch_utils import training_stats
from training import loss, networks
from training.augment import AugmentPipe

SMALL: dict[str, Any] = {'channel_base': 64, 'channel_max': 8}


@pytest.fixture(autouse=True)
def everything_in_float64(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Where networks say float32 they mean that."""
    monkeypatch.setattr(torch, 'float32', torch.float64)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.empty([], dtype=torch.half).float().dtype)


def run(monkeypatch: pytest.MonkeyPatch, one_batch: bool, group_size: int | None, batch: int, phase: str = 'Dmain',
        channels: int = 1, c_dim: int = 2) -> tuple[dict[str, torch.Tensor], int]:
    """Gradients, the loss and what was reported, in float64; and how often D was asked."""
    torch.manual_seed(1)
    epilogue = dict(mbstd_group_size=group_size, mbstd_num_channels=channels)
    G = networks.Generator(8, c_dim, 8, 8, 3, mapping_kwargs={'num_layers': 1}, synthesis_kwargs=SMALL)
    D = networks.Discriminator(c_dim, 8, 3, epilogue_kwargs=epilogue, **SMALL)
    pipe = AugmentPipe(brightness=1, contrast=1)
    calls = []
    D.register_forward_hook(lambda module, args, output: calls.append(len(output)))
    for net in (G, pipe):
        net.requires_grad_(False)
    images, labels = torch.randn(batch, 3, 8, 8), torch.eye(2)
    c = torch.zeros(batch, 0) if c_dim == 0 else labels[torch.arange(batch) % 2]
    found: dict[str, torch.Tensor] = {}
    monkeypatch.setattr(training_stats, 'report', lambda name, value: found.setdefault(name, value.detach()))
    step = loss.StyleGAN2Loss(torch.device('cpu'), G.mapping, G.synthesis, D, pipe, r1_gamma=2, one_batch=one_batch)
    value = step.accumulate_gradients(phase, images, c, torch.randn(batch, 8), c.flip(0), True, 3)
    assert value is not None
    found.update({'value': value, 'random': torch.rand(3)})
    found.update({name: p.grad for name, p in D.named_parameters() if p.grad is not None})
    return found, len(calls)


@pytest.mark.parametrize(('group_size', 'batch'), [(1, 4), (2, 6), (3, 6), (4, 4), (4, 8)])
@pytest.mark.parametrize('c_dim', [0, 2])
def test_one_batch_gives_what_two_give(
    group_size: int, batch: int, c_dim: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    (two, calls), (one, call) = (run(monkeypatch, at_once, group_size, batch, c_dim=c_dim) for at_once in (False, True))
    assert (calls, call) == (2, 1)
    assert one.keys() == two.keys()
    for name, value in two.items():
        torch.testing.assert_close(one[name], value, rtol=1e-9, atol=1e-12, msg=name)


def test_no_statistics_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    (two, _), (one, call) = (run(monkeypatch, at_once, 4, 3, channels=0) for at_once in (False, True))
    assert call == 1
    for name, value in two.items():
        torch.testing.assert_close(one[name], value, rtol=1e-9, atol=1e-12, msg=name)


@pytest.mark.parametrize(('group_size', 'batch', 'phase'), [(None, 4, 'Dmain'), (8, 4, 'Dmain'), (2, 4, 'Dboth')])
def test_two_batches_where_one_would_mix_them_or_cost_more(
    group_size: int | None, batch: int, phase: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (two, _), (one, calls) = (run(monkeypatch, at_once, group_size, batch, phase) for at_once in (False, True))
    assert calls == 2
    assert all(torch.equal(one[name], value) for name, value in two.items())


def test_halves_keep_their_groups_and_come_back() -> None:
    first, second = torch.arange(6), torch.arange(6) + 10
    both = loss.halves_in_one(first, second, 3)
    assert both.tolist() == [0, 1, 2, 10, 11, 12, 3, 4, 5, 13, 14, 15]  # Groups of 12 in six: i % 6.
    assert [half.tolist() for half in loss.apart(both, 3)] == [first.tolist(), second.tolist()]
