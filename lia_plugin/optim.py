"""Adam with a learning-rate schedule inside, for training loops that construct an optimiser by name and know none."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch


def constant(progress: float) -> float:
    return 1.0


def cosine(progress: float) -> float:
    """From 1 down to 0 along half a cosine (Loshchilov and Hutter, arXiv 1608.03983, without restarts)."""
    return 0.5 * (1 + math.cos(math.pi * progress))


def quarters(progress: float) -> float:
    """×0.8 at each quarter, as LIA's reference code says that it does."""
    return 0.8 ** min(int(4 * progress), 3)


SCHEDULES: dict[str, Callable[[float], float]] = {'constant': constant, 'cosine': cosine, 'step': quarters}
WARM_UP = 0.02  # The share of a run in which a schedule that falls first rises from 0.


def learning_rate_factor(schedule: str, step: int, total_steps: int) -> float:
    """What the learning rate is multiplied by at step 0, 1, …; after `total_steps` it stays as at the end.

    Raises ValueError for an unknown schedule.
    """
    if schedule not in SCHEDULES:
        raise ValueError(f'schedule: expected one of {", ".join(SCHEDULES)}, got {schedule!r}')
    progress = min((step + 0.5) / max(total_steps, 1), 1.0)
    rise = min(progress / WARM_UP, 1.0) if schedule == 'cosine' else 1.0
    return rise * SCHEDULES[schedule](progress)


class ScheduledAdam(torch.optim.Adam):
    """Adam whose learning rate follows a schedule over `total_steps` steps.

    The number of steps done is part of the state, so that a resumed run goes on where it was; the schedule and its
    length are the constructor's, so that a run can be made longer.
    """

    def __init__(
        self,
        params: Iterable[torch.nn.Parameter],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        schedule: str = 'cosine',
        total_steps: int = 1,
        first_step: int = 0,  # Where the schedule begins, in a host that keeps no state of optimisers.
    ) -> None:
        learning_rate_factor(schedule, 0, total_steps)  # Refuses an unknown schedule now.
        super().__init__(params, lr=lr, betas=(float(betas[0]), float(betas[1])), eps=eps, fused=True)
        self.schedule, self.total_steps = schedule, total_steps
        for group in self.param_groups:
            group.update(peak_lr=lr, steps=first_step)

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            group['lr'] = group['peak_lr'] * learning_rate_factor(self.schedule, group['steps'], self.total_steps)
            group['steps'] += 1
        return super().step(closure)
