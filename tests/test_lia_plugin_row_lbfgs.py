"""L-BFGS by rows: known minima, SciPy's own L-BFGS as oracle, rows that don't know of each other."""

from collections.abc import Callable

import numpy as np
import pytest
import scipy.optimize
import torch

from lia_plugin.row_lbfgs import RowLBFGS

Loss = Callable[[torch.Tensor], torch.Tensor]


def minimise(f: Loss, x: torch.Tensor, evaluations: int, first_step: float = 1.0) -> tuple[RowLBFGS, torch.Tensor]:
    """The optimiser at its end, and the accepted losses [evaluations, N]."""
    optimizer, history = RowLBFGS(x, first_step), []
    for _ in range(evaluations):
        point = optimizer.trial.requires_grad_()
        loss = f(point)
        optimizer.tell(loss.detach(), torch.autograd.grad(loss.sum(), point)[0])
        assert optimizer.loss is not None
        history.append(optimizer.loss)
    return optimizer, torch.stack(history)


def rosenbrock(x: torch.Tensor) -> torch.Tensor:
    return (100 * (x[:, 1:] - x[:, :-1].square()).square() + (1 - x[:, :-1]).square()).sum(dim=1)


def test_quadratics_are_solved() -> None:
    generator = torch.Generator().manual_seed(0)
    root = torch.randn([3, 8, 8], generator=generator, dtype=torch.float64)
    A = root @ root.transpose(1, 2) + 0.1 * torch.eye(8, dtype=torch.float64)
    b = torch.randn([3, 8], generator=generator, dtype=torch.float64)

    def f(x: torch.Tensor) -> torch.Tensor:
        return 0.5 * torch.einsum('ni,nij,nj->n', x, A, x) - (b * x).sum(dim=1)

    found, history = minimise(f, torch.zeros([3, 8], dtype=torch.float64), 60)
    torch.testing.assert_close(found.x, torch.linalg.solve(A, b), rtol=1e-4, atol=1e-4)
    assert (history[1:] <= history[:-1]).all()


def test_as_good_as_scipys() -> None:
    """Rosenbrock's valley from four starts: with as many evaluations as SciPy's L-BFGS needs, give or take."""
    starts = torch.tensor(np.random.RandomState(0).randn(4, 6))
    found, _ = minimise(rosenbrock, starts, 150)
    needed = []
    for start in starts.numpy():
        result = scipy.optimize.minimize(scipy.optimize.rosen, start, jac=scipy.optimize.rosen_der, method='L-BFGS-B')
        needed.append(result.nfev)
    assert max(needed) < 150
    # From some starts the 6-dimensional valley has a second minimum near x₀ = −1; SciPy's word for it counts, too.
    gradient = torch.tensor(np.stack([scipy.optimize.rosen_der(row) for row in found.x.numpy()]))
    assert gradient.abs().max() < 1e-3
    assert (found.loss is not None) and float(found.loss.amin()) < 1e-8


def test_rows_do_not_know_of_each_other() -> None:
    starts = torch.randn([5, 6], generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    together, _ = minimise(rosenbrock, starts, 40)
    for i in range(5):
        alone, _ = minimise(rosenbrock, starts[i : i + 1], 40)
        torch.testing.assert_close(together.x[i], alone.x[0])


def test_steps_into_the_forbidden_are_taken_back() -> None:
    """log x has no value below 0; the first step leads there, and the minimum of x − log x is at 1."""
    found, history = minimise(lambda x: (x - x.log()).sum(dim=1), torch.tensor([[3.0, 3.0], [0.5, 2.0]]), 40, 50.0)
    assert torch.isfinite(history).all()
    torch.testing.assert_close(found.x, torch.ones([2, 2]), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize('first_step', [1e-4, 1.0, 1e4])
def test_the_first_steps_length_hardly_matters(first_step: float) -> None:
    found, _ = minimise(lambda x: (x - 3).square().sum(dim=1), torch.zeros([2, 4]), 40, first_step)
    torch.testing.assert_close(found.x, torch.full([2, 4], 3.0), rtol=1e-3, atol=1e-3)


def test_at_a_minimum_it_stays() -> None:
    found, _ = minimise(lambda x: x.square().sum(dim=1), torch.zeros([1, 3]), 5)
    assert torch.equal(found.x, torch.zeros([1, 3]))
