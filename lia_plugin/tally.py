"""How far several processes are together: one bar, one time that is left."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from typing import Any

import torch

from lia_plugin import host

_numbers = itertools.count()  # Keys of a group's store stay, and all processes make the same tallies in turn.


class Tally:
    """How far all processes of a group are together, without waiting for one another."""

    def __init__(self, interval: float = 0.5) -> None:
        """The others are told at most once in `interval` seconds."""
        # Where the group has met; PyTorch gives it no public name.
        self.store: Any = torch.distributed.distributed_c10d._get_default_store()
        self.key, self.interval = f'tally/{next(_numbers)}', interval
        self.told = self.total = self.next = 0.0

    def __call__(self, own: float) -> float:
        """Tells how far this process is; gives the sum of all processes', as far as they have told."""
        if time.monotonic() >= self.next:
            step = round((own - self.told) * 1000)  # Stores add whole numbers.
            self.told += step / 1000
            self.total = self.store.add(self.key, step) / 1000
            self.next = time.monotonic() + self.interval
        return self.total

    def finish(self, own: float) -> Iterator[float]:
        """Tells the end of this process's part. The first process gets sums until all have come to theirs."""
        self.next = 0
        yield self(own)
        ended = self.store.add(f'{self.key}/ended', 1)
        while host.rank() == 0:
            yield self(own)
            if ended >= host.world_size():
                break
            time.sleep(self.interval)
            ended = self.store.add(f'{self.key}/ended', 0)
