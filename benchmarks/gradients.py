"""Gradients of all phases of training, with the same random numbers whatever code base and memory format draws them.

Each side's are compared with the original's, with float64's, and with those of a float64 that takes the side's own
slopes in every leaky ReLU (`slopes.py`): the last is what rounding comes to, without jumps.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import os
import statistics
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any
from unittest import mock

import common
import slopes
import torch

PHASES = {'Gmain': 'G', 'Greg': 'G', 'Dmain': 'D', 'Dreg': 'D'}
FLOAT32 = torch.float32  # That of torch itself, whatever `in_float64` calls so.


# ---------------------------------------------------------------------------------------------------------------------
# What a worker does


@contextlib.contextmanager
def same_draws(seed: int = 0, dtype: torch.dtype | None = None) -> Iterator[None]:
    """The n-th draw of a shape is the same everywhere, in whichever order shapes, types and memory formats come.

    dtype: of all of them, instead of what is asked for.
    """
    draw = torch.randn
    drawn: Counter[tuple[int, ...]] = Counter()

    def numbered(shape: Any, device: Any, asked: Any) -> torch.Tensor:
        shape = tuple(shape)
        stream = torch.Generator().manual_seed((hash((drawn[shape], *shape)) + seed) % 2**31)
        drawn[shape] += 1
        return draw(shape, generator=stream, dtype=FLOAT32).to(device=device, dtype=dtype or asked)

    def randn(*size: Any, device: Any = None, dtype: Any = None, **kwargs: Any) -> torch.Tensor:
        return numbered(size[0] if len(size) == 1 and not isinstance(size[0], int) else size, device, dtype)

    def randn_like(x: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        return numbered(x.shape, x.device, kwargs.get('dtype') or x.dtype)

    with mock.patch.multiple(torch, randn=randn, randn_like=randn_like):
        yield


def write(worker: Any, path: str, seed: int = 0, channels_last: bool = False, exact: bool = False,
          slopes_of: str = '', phases: list[str] | None = None) -> None:
    """`{'values': {'G eval': images, …, 'Gmain': {parameter: gradient}, …}, 'slopes': {phase: …}}` to a file.

    seed: of images, latents and all that a phase draws. channels_last: whether all is in that memory format. exact:
    whether all is computed in float64, by PyTorch's operators alone. slopes_of: another such file, whose slopes all
    leaky ReLUs take; exact ones only, and no 'G eval' and 'D forward'. phases: only these.
    """
    bias_act = importlib.import_module('torch_utils.ops.bias_act')
    given = torch.load(slopes_of, weights_only=True, mmap=True)['slopes'] if slopes_of else None
    values: dict[str, Any] = {}
    taken: dict[str, Any] = {}
    with contextlib.ExitStack() as stack:
        # Of copies: a phase moves averages, and other phases are to find what it found.
        stack.enter_context(mock.patch.multiple(worker, **_copies(worker, seed, channels_last, exact)))
        if exact:
            stack.enter_context(_in_float64(bias_act))
        if given is None:
            values.update(_outputs(worker))
        for phase in phases or PHASES:
            loss, net = worker._loss(style_mixing_prob=0), worker.nets[PHASES[phase]]
            with same_draws(seed, torch.float64 if exact else None):
                if given is None:
                    with slopes.recorded(bias_act) as taken[phase]:
                        worker._phase(loss, phase, net, 1)
                    if phase == 'Dmain':
                        taken[phase] = _in_turn(taken[phase], worker)
                else:
                    with slopes.prescribed(bias_act, given[phase]):
                        worker._phase(loss, phase, net, 1)
            values[phase] = {key: _plain(p.grad) for key, p in net.named_parameters() if p.grad is not None}
    torch.save({'values': values, 'slopes': taken}, path)


def _in_turn(found: slopes.Slopes, worker: Any) -> slopes.Slopes:
    """Dmain's as the original takes them: this project shows D both halves at once, if D's statistics permit."""
    loss = importlib.import_module('training.loss')
    groups = loss._groups_of_half(worker.nets['D'], len(worker.img)) if hasattr(loss, 'apart') else None
    if groups is None:
        return found
    return slopes.one_after_the_other(found, len(worker.img), lambda both: loss.apart(both, groups))


def _plain(x: torch.Tensor) -> torch.Tensor:
    """As it is kept. Rounding to float32, 3e-8, is small beside any difference there is."""
    return x.detach().to('cpu', FLOAT32)


def _outputs(worker: Any) -> dict[str, torch.Tensor]:
    G, D = (worker.nets[name] for name in ('G', 'D'))
    with torch.no_grad():
        images = G.eval()(worker.z, worker.c, noise_mode='const')
        G.train()
        return {'G eval': _plain(images), 'D forward': _plain(D(worker.img, worker.c))}


def _copies(worker: Any, seed: int, channels_last: bool, exact: bool) -> dict[str, Any]:
    """Attributes of a worker: copies of the networks, and fresh inputs."""
    dtype = torch.float64 if exact else FLOAT32
    form = torch.channels_last if channels_last else torch.contiguous_format
    nets = {name: copy.deepcopy(worker.nets[name]) for name in ('G', 'D')}
    for net in nets.values():
        net.to(dtype=dtype)
        if channels_last:
            net.to(memory_format=form)
        for module in net.modules():
            if channels_last and hasattr(module, 'channels_last') and not hasattr(module, 'const'):
                module.channels_last = True  # Of [C, 4, 4] there is no such format.
            if exact and hasattr(module, 'use_fp16'):
                module.use_fp16 = False
    img, z = worker.draw(seed)
    img, z, c = (x.to(worker.device, dtype) for x in (img, z, worker.c))
    return dict(nets=nets, img=img.contiguous(memory_format=form), z=z, c=c, graphs=None)


@contextlib.contextmanager
def _in_float64(bias_act: Any) -> Iterator[None]:
    """Where networks and losses say float32 they mean float64, and PyTorch's own operators do the work."""
    with contextlib.ExitStack() as stack:
        for op in (bias_act, importlib.import_module('torch_utils.ops.upfirdn2d')):
            if hasattr(op, '_init'):  # The original's: whether its CUDA kernels are there.
                stack.enter_context(mock.patch.object(op, '_init', lambda: False))
        if hasattr(bias_act, 'layer_dtype'):
            stack.enter_context(mock.patch.object(bias_act, 'layer_dtype', lambda *args: torch.float64))
        stack.enter_context(mock.patch.dict(os.environ, LIA_KERNELS='off'))  # They take what is called float32 for it.
        stack.enter_context(mock.patch.object(torch, 'float32', torch.float64))
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)  # Of what a loss makes without saying its type.
        try:
            yield
        finally:
            torch.set_default_dtype(before)


# ---------------------------------------------------------------------------------------------------------------------
# What becomes of it


Batch = dict[str, dict[str, dict[str, tuple[float, ...]]]]  # Side → what of it → row → numbers.
SIDES: dict[str, tuple[int, dict[str, Any]]] = {
    'this project': (0, {}), 'original': (1, {}), 'original in NHWC': (1, {'channels_last': True})}


def measure(sides: list[Any], folder: str, batches: int, seconds: float) -> list[Batch]:
    """Differences of this project and the original, for up to so many batches; none begins that may end too late."""
    found: list[Batch] = []
    began = time.monotonic()
    while len(found) < batches:
        found.append(_batch(sides, folder, len(found)))
        if (time.monotonic() - began) * (1 + 1 / len(found)) > seconds:
            break
    return found


def _batch(sides: list[Any], folder: str, seed: int) -> Batch:
    def ask(side: int, name: str, **options: Any) -> dict[str, Any]:
        sides[side].ask('gradients', os.path.join(folder, name), dict(options, seed=seed))
        return torch.load(os.path.join(folder, name), weights_only=True, mmap=True)  # Of large networks gigabytes.

    exact = ask(1, 'float64', exact=True)
    results = {name: ask(side, name, **options) for name, (side, options) in SIDES.items()}
    batch: Batch = {}
    for name, result in results.items():
        counts = {phase: slopes.apart(result['slopes'][phase], exact['slopes'][phase]) for phase in PHASES}
        alike = {phase: exact['values'][phase] for phase, count in counts.items() if count == 0}
        differing = [phase for phase, count in counts.items() if count]
        if differing and seed == 0:  # Rounding is much the same in all batches, and float64 takes its time.
            path = os.path.join(folder, name)
            alike.update(ask(1, f'float64 as {name}', exact=True, slopes_of=path, phases=differing)['values'])
        batch[name] = {'original': differences(result['values'], results['original']['values']),
                       'float64': differences(result['values'], exact['values']),
                       'same slopes': differences(result['values'], alike),
                       'other slopes': {phase: (count,) for phase, count in counts.items() if count is not None}}
    return batch


def differences(a: dict[str, Any], b: dict[str, Any]) -> dict[str, tuple[float, ...]]:
    """Per output or phase of b: ‖a − b‖ / ‖b‖ over all of it, and of the parameter where that is largest."""
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


def tables(batches: list[Batch]) -> list[str]:
    """In Markdown, over all batches: outputs and gradients, then gradients beside a float64 of the same slopes."""
    def numbers(side: str, what: str, row: str, column: int = 0) -> list[float]:
        return [batch[side][what][row][column] for batch in batches if row in batch[side][what]]

    def cell(*key: Any) -> str:
        return f'{statistics.median(found):.1e}' if (found := numbers(*key)) else '–'

    def count(*key: Any) -> str:
        return f'{statistics.fmean(found):.3g}' if (found := numbers(*key)) else '–'

    ours, theirs, nhwc = SIDES
    shown = [(ours, 'original'), (nhwc, 'original'), *((side, 'float64') for side in SIDES)]
    head = ['relative difference', f'{ours} to {theirs}', f'{nhwc} to {theirs}', f'to float64: {ours}', theirs, nhwc]
    rows = [[row, *(cell(side, what, row) for side, what in shown)] for row in batches[0][ours]['float64']]
    lines = common.markdown(head, rows)

    head, rows = ['to float64 of the same slopes'], [[phase] for phase in PHASES]
    for side in SIDES:
        head += [side, 'worst parameter']
        for row in rows:
            row += [cell(side, 'same slopes', row[0], column) for column in (0, 1)]
    for side in SIDES:
        head.append(f'other slopes: {side}' if side == ours else side)
        for row in rows:
            row.append(count(side, 'other slopes', row[0]))
    return [*lines, '', *common.markdown(head, rows), '',
            f'Medians, number of batches: {len(batches)}. Where the input of a leaky ReLU is within rounding of 0, a '
            'side may take another slope than float64 does, at so many pixels a batch on average. There its gradient '
            'jumps, which is no loss of accuracy: that shows beside a float64 that takes the same slopes (in the first '
            'batch, and in others that need no second float64).']
