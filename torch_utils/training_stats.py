"""Averages of anything, collected across devices and processes, with as little waiting for the device as possible.

`report` adds a value's count, sum and sum of squares to counters that stay on its device. Each `Collector.update`
brings them together, over all processes, and shows the averages since its own previous update.
"""

import contextlib
import math
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

import dnnlib

from . import misc

_NUM_MOMENTS = 3    # count, sum, sum of squares


class _Shared:
    """What all reports and collectors of a process share. The hosts' API leaves no other place for it."""

    def __init__(self) -> None:
        self.rank = 0
        self.sync_device: torch.device | None = None    # None = a single process.
        self.synced = False
        self.pending: dict[str, dict[torch.device, torch.Tensor]] = {}  # name -> device -> moments of this process
        self.held: dict[str, torch.Tensor] | None = None    # Where reports go instead, see `held_back`.
        self.totals: dict[str, torch.Tensor] = {}   # name -> moments of all processes, on the CPU, ever growing


_shared = _Shared()


def init_multiprocessing(rank: int, sync_device: torch.device | None) -> None:
    """Says which process this is, and on which device its moments travel (None = there is only one process).

    Call it after the process group has started and before the first `Collector.update`.
    """
    if _shared.synced and (rank, sync_device) != (_shared.rank, _shared.sync_device):
        raise RuntimeError('init_multiprocessing must come before the first Collector.update')
    _shared.rank = rank
    _shared.sync_device = sync_device


@misc.profiled_function
def report(name: str, value: Any) -> Any:
    """Adds a scalar, array, tensor or list to the statistic `name`, and returns it as it came.

    Every process must report every name at least once; `[]` reports nothing but the name. Doesn't wait for the device.
    """
    _shared.pending.setdefault(name, {})
    elems = torch.as_tensor(value).detach()
    if elems.numel() == 0:
        return value
    # MPS has no float64.
    elems = elems.flatten().to(torch.float32 if elems.device.type == 'mps' else torch.float64)
    moments = torch.stack([torch.full_like(elems[0], elems.numel()), elems.sum(), elems.square().sum()])
    held = _shared.held
    if held is None:
        add({name: moments})
    else:
        held[name] = held[name] + moments if name in held else moments
    return value


def add(moments: dict[str, torch.Tensor]) -> None:
    """Adds moments [3] = count, sum and sum of squares, as `held_back` has collected them."""
    for name, new in moments.items():
        counters = _shared.pending.setdefault(name, {})
        counters[new.device] = counters[new.device] + new if new.device in counters else new.clone()


@contextlib.contextmanager
def held_back() -> Iterator[dict[str, torch.Tensor]]:
    """Inside, what is reported goes into the dictionary, as moments, and not yet into the statistics: see `add`.

    For work that is recorded once and done many times, of which Python sees only the recording.
    """
    before, _shared.held = _shared.held, {}
    try:
        yield _shared.held
    finally:
        _shared.held = before


def report0(name: str, value: Any) -> Any:
    """Like `report`, but only the first process's value counts."""
    report(name, value if _shared.rank == 0 else [])
    return value


class Collector:
    """Averages of the statistics whose names match `regex`, over the time between its last two updates.

    With `keep_previous`, a statistic that got nothing in that time keeps showing what it last had.
    """

    def __init__(self, regex: str = '.*', keep_previous: bool = True) -> None:
        self._regex = re.compile(regex)
        self._keep_previous = keep_previous
        self._seen: dict[str, torch.Tensor] = {}    # The totals at the last update.
        self._shown: dict[str, torch.Tensor] = {}
        self.update()   # What was reported before this collector existed is not its business.
        self._shown.clear()

    def names(self) -> list[str]:
        """All matching names reported so far, in order of their first report."""
        return [name for name in _shared.pending if self._regex.fullmatch(name)]

    def update(self) -> None:
        """Shows the averages since the last update. All processes must call it together."""
        if not self._keep_previous:
            self._shown.clear()
        names = self.names()
        _sync(names)
        for name in names:
            total = _shared.totals[name]
            moments = total - self._seen.get(name, torch.zeros_like(total))
            self._seen[name] = total.clone()
            if float(moments[0]) != 0:
                self._shown[name] = moments

    def _moments(self, name: str) -> tuple[int, float, float]:
        if not self._regex.fullmatch(name):
            raise KeyError(f'{name}: not collected here (pattern {self._regex.pattern!r})')
        moments = self._shown.get(name)
        if moments is None:
            return 0, 0.0, 0.0
        num, total, squares = moments.tolist()
        return int(num), total, squares

    def num(self, name: str) -> int:
        """How many scalars there were; 0 if none."""
        return self._moments(name)[0]

    def mean(self, name: str) -> float:
        """Their mean; NaN if there were none."""
        num, total, _ = self._moments(name)
        return total / num if num else float('nan')

    def std(self, name: str) -> float:
        """Their standard deviation (of the population: a single scalar has 0); NaN if there were none."""
        num, total, squares = self._moments(name)
        if num == 0 or not math.isfinite(total):
            return float('nan')
        if num == 1:
            return 0.0
        return float(np.sqrt(max(squares / num - (total / num) ** 2, 0.0)))

    def as_dict(self) -> dnnlib.EasyDict:
        """All at once: {name: {num, mean, std}}."""
        return dnnlib.EasyDict({
            name: dnnlib.EasyDict(num=self.num(name), mean=self.mean(name), std=self.std(name))
            for name in self.names()
        })

    def __getitem__(self, name: str) -> float:
        return self.mean(name)

    def state_dict(self) -> dict[str, dict[str, list[float]]]:
        """What it shows and has seen, as plain lists; goes with the module's `state_dict`."""
        return {'seen': _to_lists(self._seen), 'shown': _to_lists(self._shown)}

    def load_state_dict(self, state: dict[str, dict[str, list[float]]]) -> None:
        """Goes on as the collector that gave `state`. Load the module's state first."""
        self._seen = _to_tensors(state['seen'])
        self._shown = _to_tensors(state['shown'])


def sync() -> None:
    """Moves what is pending in any process into the totals, alike everywhere. All processes call it together."""
    _sync(list(_shared.pending))


def state_dict() -> dict[str, dict[str, list[float]]]:
    """The statistics themselves, so that a resumed run's collectors show what an unbroken run's would.

    With several processes `sync` comes first; what is still pending is this process's own.
    """
    pending = {name: sum((item.double().cpu() for item in counters.values()), torch.zeros(_NUM_MOMENTS).double())
               for name, counters in _shared.pending.items()}
    return {'pending': _to_lists(pending), 'totals': _to_lists(_shared.totals)}


def load_state_dict(state: dict[str, dict[str, list[float]]]) -> None:
    """Replaces all statistics. Every process loads the same state; what was pending is counted once, by the first."""
    pending = _to_tensors(state['pending'])
    first = _shared.rank == 0
    _shared.pending = {name: {value.device: value} if first else {} for name, value in pending.items()}
    _shared.totals = _to_tensors(state['totals'])


def _to_lists(moments: dict[str, torch.Tensor]) -> dict[str, list[float]]:
    return {name: value.tolist() for name, value in moments.items()}


def _to_tensors(lists: dict[str, list[float]]) -> dict[str, torch.Tensor]:
    return {name: torch.tensor(value, dtype=torch.float64) for name, value in lists.items()}


def _sync(names: list[str]) -> None:
    """Moves what is pending, in all processes, into the totals."""
    if not names:
        return
    _shared.synced = True
    gathered = torch.zeros([len(names), _NUM_MOMENTS], dtype=torch.float64)
    # Sorted, so that processes that met the names in another order still mean the same rows; one copy per device.
    ordered = sorted(names)
    for device in {device for name in names for device in _shared.pending[name]}:
        rows = [row for row, name in enumerate(ordered) if device in _shared.pending[name]]
        gathered[rows] += torch.stack([_shared.pending[ordered[row]].pop(device) for row in rows]).cpu().double()
    if _shared.sync_device is not None:
        on_device = gathered.to(_shared.sync_device)
        torch.distributed.all_reduce(on_device)
        gathered = on_device.cpu()
    for name, moments in zip(ordered, gathered):
        _shared.totals[name] = _shared.totals[name] + moments if name in _shared.totals else moments.clone()
