"""Limited-memory BFGS for many small problems at once: each row of a batch is minimised by itself.

Liu and Nocedal 1989, "On the limited memory BFGS method for large scale optimization", with a backtracking line search
(Armijo's condition). Rows share the evaluations but nothing else: each has its own curvature pairs and step length, so
it takes the way that it would take alone. A trial point that fails costs its row one evaluation, like any other.
"""

from __future__ import annotations

import torch

MEMORY = 20  # Curvature pairs a row.
DECREASE = 1e-4  # Part of the promised decrease that a step has to bring.
BACKTRACK = 0.4  # A failed step is tried again at this part of its length …
SMALLEST = 1e-3  # … until so little is left of it that the row starts anew with the gradient.
FLAT = 1e-8  # A pair counts if the angle between step and change of gradient has at least this cosine.


class RowLBFGS:
    """Minimises f(x[i]) for each i. Told loss and gradient at `x`, it says where to look next.

    Attributes:
        x: The accepted points [N, d]; their losses never rise.
    """

    def __init__(self, x: torch.Tensor, first_step: float, memory: int = MEMORY) -> None:
        """Starts at x [N, d]; the first trial is `first_step` long, down the gradient."""
        self.x = x.detach().clone()
        self.loss: torch.Tensor | None = None  # [N]
        self.grad = torch.zeros_like(self.x)
        self.direction = torch.zeros_like(self.x)
        self.part = x.new_ones([len(x)])  # Of the direction, to be tried next.
        self.length = x.new_full([len(x)], first_step)  # Of the last step that was taken.
        self.steps = x.new_zeros([memory, *x.shape])  # Oldest first.
        self.changes = torch.zeros_like(self.steps)  # Of the gradient, over each step.
        self.rho = x.new_zeros([memory, len(x)])  # 1 / (step · change); 0 = no pair.

    @property
    def trial(self) -> torch.Tensor:
        """The points [N, d] whose losses and gradients are wanted next."""
        return self.x + self.part[:, None] * self.direction

    @torch.no_grad()
    def tell(self, loss: torch.Tensor, grad: torch.Tensor) -> None:
        """Loss [N] and gradient [N, d] at `trial`. What is not finite counts as failed."""
        if self.loss is None:
            taken = torch.ones_like(loss, dtype=torch.bool)
            self.loss, self.grad = loss.clone(), grad.clone()
        else:
            promised = self.part * _dot(self.direction, self.grad)
            taken = loss < self.loss + DECREASE * promised
            self._take(taken, loss, grad)
        self.part = torch.where(taken, torch.ones_like(self.part), BACKTRACK * self.part)
        self.direction = torch.where(taken[:, None], self._newton(), self.direction)
        stuck = (self.part < SMALLEST) | (_dot(self.direction, self.grad) >= 0)
        if stuck.any():
            self.rho = torch.where(stuck, torch.zeros_like(self.rho), self.rho)
            self.length = torch.where(stuck & ~taken, SMALLEST * self.length, self.length)
            self.direction = torch.where(stuck[:, None], self._newton(), self.direction)
            self.part = torch.where(stuck, torch.ones_like(self.part), self.part)

    def _take(self, taken: torch.Tensor, loss: torch.Tensor, grad: torch.Tensor) -> None:
        """Moves the rows whose step was good, and remembers what it said of the curvature."""
        assert self.loss is not None, 'the start has been told'
        step, change = self.part[:, None] * self.direction, grad - self.grad
        curvature = _dot(step, change)
        kept = taken & (curvature > FLAT * step.norm(dim=1) * change.norm(dim=1))
        for name, new in (('steps', step), ('changes', change), ('rho', 1 / curvature)):
            old = getattr(self, name)
            mask = kept.reshape([-1] + [1] * (old.ndim - 2))
            setattr(self, name, torch.where(mask, torch.cat([old[1:], new[None]]), old))
        self.x = torch.where(taken[:, None], self.x + step, self.x)
        self.loss = torch.where(taken, loss, self.loss)
        self.grad = torch.where(taken[:, None], grad, self.grad)
        self.length = torch.where(taken, step.norm(dim=1), self.length)

    def _newton(self) -> torch.Tensor:
        """−H·gradient by the two-loop recursion; without pairs, a step of the last length down the gradient."""
        q, weights = self.grad, []
        for step, change, rho in reversed(list(zip(self.steps, self.changes, self.rho))):
            weights.append(rho * _dot(step, q))
            q = q - weights[-1][:, None] * change
        newest = self.rho[-1] > 0
        scale = 1 / (self.rho[-1] * self.changes[-1].square().sum(dim=1)).clamp(min=1e-30)
        plain = self.length / self.grad.norm(dim=1).clamp(min=1e-30)
        q = q * torch.where(newest, scale, plain)[:, None]
        for step, change, rho in zip(self.steps, self.changes, self.rho):
            q = q + (weights.pop() - rho * _dot(change, q))[:, None] * step
        return -q


def _dot(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Row by row: [N, d] twice -> [N]."""
    return (a * b).sum(dim=1)
