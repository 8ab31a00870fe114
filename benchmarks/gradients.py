"""Gradients of all phases of training, with the same random numbers whatever code base and memory format draws them."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch

PHASES = {'Gmain': 'G', 'Greg': 'G', 'Dmain': 'D', 'Dreg': 'D'}


@contextlib.contextmanager
def same_draws() -> Iterator[None]:
    """The n-th draw of a shape is the same everywhere, in whichever order shapes and memory formats come."""
    draw = torch.randn
    drawn: Counter[tuple[int, ...]] = Counter()

    def numbered(shape: Any, device: Any, dtype: Any) -> torch.Tensor:
        shape = tuple(shape)
        stream = torch.Generator().manual_seed(hash((drawn[shape], *shape)) % 2**31)
        drawn[shape] += 1
        return draw(shape, generator=stream).to(device=device, dtype=dtype)

    def randn(*size: Any, device: Any = None, dtype: Any = None, **kwargs: Any) -> torch.Tensor:
        return numbered(size[0] if len(size) == 1 and not isinstance(size[0], int) else size, device, dtype)

    def randn_like(x: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        return numbered(x.shape, x.device, kwargs.get('dtype') or x.dtype)

    with mock.patch.multiple(torch, randn=randn, randn_like=randn_like):
        yield


def write(worker: Any, path: str, channels_last: bool) -> None:
    """`{'G eval': images, 'D forward': logits, 'Gmain': {parameter: gradient}, …}` to a file."""
    if channels_last:
        _use_channels_last(worker)
    G, D = (worker.nets[name] for name in ('G', 'D'))
    with torch.no_grad():
        images = G.eval()(worker.z, worker.c, noise_mode='const')
        found: dict[str, Any] = {'G eval': images.float().cpu(), 'D forward': D(worker.img, worker.c).float().cpu()}
    G.train()
    for phase, name in PHASES.items():
        loss = worker._loss(style_mixing_prob=0)  # With path lengths' mean at its start.
        net = worker.nets[name]
        with same_draws():
            worker._phase(loss, phase, net, 1)
        found[phase] = {key: p.grad.float().cpu() for key, p in net.named_parameters() if p.grad is not None}
    torch.save(found, path)


def _use_channels_last(worker: Any) -> None:
    for net in worker.nets.values():
        net.to(memory_format=torch.channels_last)
        for module in net.modules():
            if hasattr(module, 'channels_last') and not hasattr(module, 'const'):  # [C, 4, 4] has no such format.
                module.channels_last = True
    worker.img = worker.img.contiguous(memory_format=torch.channels_last)


def differences(first: str, second: str) -> dict[str, tuple[float, float]]:
    """Per output or phase: ‖a − b‖ / ‖b‖ over all of it, and of the parameter where that is largest."""
    a, b = (torch.load(path, weights_only=True) for path in (first, second))
    result = {}
    for name, theirs in b.items():
        pairs = [(a[name], theirs)] if torch.is_tensor(theirs) else [(a[name][key], theirs[key]) for key in theirs]
        errors = [float((x.double() - y.double()).norm()) for x, y in pairs]
        norms = [float(y.double().norm()) for _, y in pairs]
        whole = sum(e * e for e in errors) ** 0.5 / sum(n * n for n in norms) ** 0.5
        # A gradient that is zero but for rounding has no relative error.
        least = 1e-6 * max(norms)
        result[name] = whole, max(e / n for e, n in zip(errors, norms) if n > least)
    return result
