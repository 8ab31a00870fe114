"""log p(y) and the prior's own typicality, against independent oracles."""

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from lia_plugin import prior
from lia_plugin.networks import Coupling, MappingNetwork

DIM = 6


def make_mapping(coupling: str, c_dim: int = 0, **phi_kwargs: Any) -> MappingNetwork:
    torch.manual_seed(0)
    phi = dict(hidden_features=8, coupling=coupling, lr_multiplier=1.0, **phi_kwargs)
    mapping = MappingNetwork(DIM, c_dim, DIM, num_ws=3, phi_kwargs=phi).double().requires_grad_(False)
    for part in mapping.modules():
        if isinstance(part, Coupling) and part.log_scale is not None:
            torch.nn.init.normal_(part.log_scale.weight)
    return mapping


@pytest.mark.parametrize('coupling, phi_kwargs', [
    ('additive', {}), ('affine', {}), ('affine', dict(y_activation='lrelu', standardize=True)),
])
@pytest.mark.parametrize('c_dim', [0, 2])
def test_log_prob_is_the_density_of_torch_distributions(coupling: str, phi_kwargs: Any, c_dim: int) -> None:
    mapping = make_mapping(coupling, c_dim, **phi_kwargs)
    y = torch.randn([5, DIM], dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    c = torch.eye(2, dtype=torch.float64)[[0, 1, 0, 1, 0]] if c_dim else None
    base = torch.distributions.MultivariateNormal(torch.zeros(DIM).double(), torch.eye(DIM).double())
    found = prior.log_prob(SimpleNamespace(mapping=mapping), y, c)
    for i in range(5):
        row = None if c is None else c[i : i + 1]

        def phi(one: torch.Tensor, row: torch.Tensor | None = row) -> torch.Tensor:
            return mapping.y_to_z(one[None], row)[0]

        jacobian = torch.autograd.functional.jacobian(phi, y[i])
        expected = base.log_prob(phi(y[i])) + torch.linalg.slogdet(jacobian)[1]
        assert float(found[i]) == pytest.approx(float(expected), abs=1e-9)


def test_log_prob_is_that_of_a_zuko_flow_with_the_same_transform() -> None:
    zuko = pytest.importorskip('zuko')
    mapping = make_mapping('affine')
    transform = zuko.transforms.ComposedTransform(*[_AsZuko(step) for step in mapping.phi.couplings])
    flow = zuko.distributions.NormalizingFlow(transform, zuko.distributions.DiagNormal(
        torch.zeros(DIM).double(), torch.ones(DIM).double()))
    y = torch.randn([7, DIM], dtype=torch.float64)
    torch.testing.assert_close(prior.log_prob(SimpleNamespace(mapping=mapping), y), flow.log_prob(y))


def _AsZuko(step: Coupling) -> Any:
    """A coupling with its feature reversal, in zuko's own classes; the nets are shared, the arithmetic is not."""
    import zuko

    def meta(h1: torch.Tensor) -> Any:
        hidden = step.hidden(h1)
        scale = step.max_log_scale * torch.tanh(step.log_scale(hidden) / step.max_log_scale)  # type: ignore[misc]
        return torch.distributions.AffineTransform(step.shift(hidden), scale.exp(), event_dim=1)

    reverse = zuko.transforms.PermutationTransform(torch.arange(DIM).flip(0))
    mask = torch.arange(DIM) < DIM // 2
    return zuko.transforms.ComposedTransform(reverse, zuko.transforms.CouplingTransform(meta, mask))


def test_log_prob_of_y_plus_is_that_of_its_base_code() -> None:
    G = SimpleNamespace(mapping=make_mapping('affine'))
    y_plus = torch.randn([4, 3, DIM], dtype=torch.float64)
    torch.testing.assert_close(prior.log_prob(G, y_plus), prior.log_prob(G, y_plus[:, 0]))
    torch.testing.assert_close(prior.log_prob_per_dim(G, y_plus) * DIM, prior.log_prob(G, y_plus[:, 0]))


def test_typicality_is_the_two_sided_chi_square_p() -> None:
    z = torch.randn([50, DIM], generator=torch.Generator().manual_seed(0)).double() * torch.logspace(-1, 1, 50)[:, None]
    norms = np.square(z.numpy()).sum(axis=1)
    law = stats.chi2(DIM)
    expected = np.minimum(2 * np.minimum(law.cdf(norms), law.sf(norms)), 1)
    np.testing.assert_allclose(prior.typicality(z).numpy(), expected, rtol=1e-9)
    assert float(prior.typicality(torch.full([1, DIM], 20.0))) == pytest.approx(2 * law.sf(400 * DIM), rel=1e-6)


def test_typicality_is_uniform_under_the_prior() -> None:
    z = torch.randn([4000, DIM], generator=torch.Generator().manual_seed(0))
    assert stats.kstest(prior.typicality(z).numpy(), 'uniform').pvalue > 0.01
    assert math.isclose(float(prior.squared_norm(z).mean()), DIM, rel_tol=0.05)
