"""Moving codes: distances, shifts, conditions and the limits of the typical, against closed forms."""

import math
from typing import Any

import pytest
import scipy.stats
import torch
from test_lia_plugin_inversion import make_generator
from test_lia_plugin_refinement import make_stock

from lia_plugin import manipulation, prior, spaces, typical_limits
from lia_plugin.directions import Direction, make_direction
from lia_plugin.manipulation import distance, pace, project_out, shift


@pytest.fixture(scope='module')
def G() -> Any:
    return make_generator()


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def any_direction(G: Any, space: str, per_layer: bool = False, seed: int = 0, **rest: Any) -> Direction:
    shape = (G.num_ws, 16) if per_layer else (16,)
    return make_direction(f'd{seed}', draw(*shape, seed=seed), space, **rest)


@pytest.mark.parametrize('space', ['y', 'z'])
@pytest.mark.parametrize('per_layer', [False, True])
@pytest.mark.parametrize('plus', [False, True])
def test_a_shift_changes_the_distance_by_its_amount(G: Any, space: str, per_layer: bool, plus: bool) -> None:
    direction = any_direction(G, space, per_layer, bias=0.7)
    code = draw(4, G.num_ws, 16) if plus else draw(4, 16)
    amounts = torch.tensor([-2.0, 0.0, 0.5, 3.0])
    moved = shift(G, code, None, direction, amounts)
    before, after = (distance(G, x, None, direction) for x in (code, moved))
    torch.testing.assert_close(after - before, amounts, rtol=0, atol=1e-4)
    assert moved.ndim == (3 if plus or per_layer else 2)


def test_distance_is_the_signed_distance_to_the_plane() -> None:
    G = make_generator()
    direction = make_direction('a', torch.eye(16)[3] * 5, 'y', bias=-2.0)
    code = torch.zeros(1, 16)
    code[0, 3] = 2.5
    assert distance(G, code, None, direction).item() == pytest.approx(0.5)
    z = any_direction(G, 'z')
    expected = G.mapping.y_to_z(code) @ z.vector
    torch.testing.assert_close(distance(G, code, None, z), expected)


def test_layers_that_stay_stay_to_the_bit(G: Any) -> None:
    code = draw(2, 16)
    moved = shift(G, code, None, any_direction(G, 'z'), 2.0, layers=[1, 3])
    copies = spaces.fit_code(G, code, plus=True)
    stay = [0, 2, *range(4, G.num_ws)]
    assert torch.equal(moved[:, stay], copies[:, stay])
    whole = shift(G, code, None, any_direction(G, 'z'), 2.0)
    torch.testing.assert_close(moved[:, 1], whole)
    named = shift(G, code, None, any_direction(G, 'z', layers=(1, 3)), 2.0)
    assert torch.equal(named, moved), 'a direction may name its layers itself'
    assert shift(G, code, None, any_direction(G, 'y'), 1.0, layers=range(G.num_ws)).ndim == 2


def test_one_vector_is_as_many_copies_of_it(G: Any) -> None:
    one = any_direction(G, 'y')
    copies = make_direction('copies', one.vector.repeat([G.num_ws, 1]), 'y')
    code = draw(2, 16)
    assert torch.allclose(copies.vector[0], one.vector)
    wide = spaces.fit_code(G, shift(G, code, None, one, 1.5), plus=True)
    torch.testing.assert_close(shift(G, code, None, copies, 1.5), wide)
    torch.testing.assert_close(distance(G, code, None, copies), distance(G, code, None, one))


def test_classes_and_stock_networks() -> None:
    conditional = make_generator(c_dim=3)
    c = torch.eye(3)[[0, 2]]
    code, direction = draw(2, conditional.num_ws, 16), any_direction(conditional, 'z')
    moved = shift(conditional, code, c, direction, 1.0)
    one = shift(conditional, code[1:, 2], c[1:], direction, 1.0)
    torch.testing.assert_close(moved[1:, 2], one)
    stock = make_stock()
    w = draw(2, stock.w_dim)
    along = make_direction('w', draw(stock.w_dim), 'w')
    torch.testing.assert_close(shift(stock, w, None, along, 2.0), w + 2 * along.vector)


@pytest.mark.parametrize('count', range(3, 60, 2))
def test_steps_pass_through_nought_exactly(count: int) -> None:
    for end in (4.0, 0.1, 3.3):
        steps = manipulation.even_steps(-end, end, count)
        assert steps[count // 2] == 0 and steps[0] == -end and steps[-1] == end
        torch.testing.assert_close(steps, torch.linspace(-end, end, count, dtype=torch.float64))
    assert manipulation.even_steps(2.0, 2.0, 1).tolist() == [2.0]
    assert manipulation.even_steps(-2.0, 3.0, 6)[2] == 0 and manipulation.even_steps(-0.2, 0.3, 6)[2] == 0


# Conditions


@pytest.mark.parametrize('space', ['y', 'z'])
@pytest.mark.parametrize('layered', [(False, False, False), (True, False, False), (False, True, False),
                                     (True, False, True)])  # fmt: skip
def test_conditions_keep_their_distances(G: Any, space: str, layered: tuple[bool, ...]) -> None:
    direction = any_direction(G, space, layered[0], bias=0.2)
    conditions = [any_direction(G, space, layered[1], seed=1), any_direction(G, space, layered[2], seed=2)]
    along = project_out(direction, conditions, G.num_ws)
    code = draw(3, 16)
    moved = shift(G, code, None, along, 3.0)
    tolerance = 1e-5 if space == 'y' else 1e-4  # φ and back in float32.
    for condition in conditions:
        change = distance(G, moved, None, condition) - distance(G, code, None, condition)
        assert change.abs().max() < tolerance
    gained = distance(G, moved, None, direction) - distance(G, code, None, direction)
    expected = 3 * pace(direction, along, G.num_ws)
    torch.testing.assert_close(gained, torch.full([3], expected), rtol=0, atol=1e-4)


def test_one_condition_is_interfacegans_formula(G: Any) -> None:
    a, b = any_direction(G, 'y'), any_direction(G, 'y', seed=1)
    expected = a.vector - (a.vector @ b.vector) * b.vector
    torch.testing.assert_close(project_out(a, [b], G.num_ws).vector, expected / expected.norm())


def test_conditions_that_repeat_count_once_and_those_that_leave_nothing_are_refused(G: Any) -> None:
    a, b = any_direction(G, 'y'), any_direction(G, 'y', seed=1)
    nearly = make_direction('nearly', b.vector + 1e-9 * draw(16, seed=5), 'y')
    torch.testing.assert_close(project_out(a, [b, nearly], G.num_ws).vector, project_out(a, [b], G.num_ws).vector)
    with pytest.raises(ValueError, match='nothing is left of it without d1, d0'):
        project_out(a, [b, a], G.num_ws)
    with pytest.raises(ValueError, match='d1: of z and 16'):
        project_out(a, [any_direction(G, 'z', seed=1)], G.num_ws)


def test_pace_of_layers_that_lack_the_base(G: Any) -> None:
    one = any_direction(G, 'y')
    assert pace(one, one, G.num_ws, layers=[2, 3]) == pytest.approx(1)
    layered = any_direction(G, 'y', per_layer=True)
    code = draw(1, 16)
    moved = shift(G, code, None, layered, 1.0, layers=[0, 2])
    gained = distance(G, moved, None, layered) - distance(G, code, None, layered)
    assert pace(layered, layered, G.num_ws, [0, 2]) == pytest.approx(gained.item(), abs=1e-5)


# Limits


def typical_codes(G: Any, count: int) -> torch.Tensor:
    z = draw(count, 16)
    return G.mapping.z_to_y(z * (math.sqrt(16) / z.norm(dim=1, keepdim=True)))


@pytest.mark.parametrize('space', ['y', 'z'])
@pytest.mark.parametrize('p', [0.01, 0.2])
def test_the_way_ends_where_the_p_value_is_the_threshold(G: Any, space: str, p: float) -> None:
    code, direction = typical_codes(G, 5), any_direction(G, space, seed=3)
    reach = torch.tensor([100.0, -100.0, 50.0, -80.0, 1e-3])
    amounts = typical_limits.limits(G, code, None, direction, reach, p)
    z = G.mapping.y_to_z(shift(G, code, None, direction, amounts.float()))
    found = prior.typicality(z)
    assert found[:4].numpy() == pytest.approx(p, rel=1e-3)
    assert amounts[4] == reach[4].double(), 'too short a way to be stopped on'
    assert (amounts.sign() == reach.sign()).all() and (amounts.abs() <= reach.abs()).all()


def test_in_z_the_limit_is_a_root_of_a_square(G: Any) -> None:
    code, direction = typical_codes(G, 3), any_direction(G, 'z', seed=3)
    z = G.mapping.y_to_z(code).double()
    high = scipy.stats.chi2.isf(0.05 / 2, 16)
    along = z @ direction.vector.double()
    expected = -along + (along.square() + high - z.square().sum(dim=1)).sqrt()
    low = scipy.stats.chi2.ppf(0.05 / 2, 16)
    assert (z.square().sum(dim=1) - along.square() > low).all(), 'the lower bound is not in the way'
    found = typical_limits.limits(G, code, None, direction, torch.full([3], 20.0), 0.05)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_a_code_that_is_too_long_may_go_inwards_alone(G: Any) -> None:
    z = torch.zeros(1, 16)
    z[0, 0] = 100.0  # Its p-value is 0 to the last digit.
    code, direction = G.mapping.z_to_y(z), make_direction('a', torch.eye(16)[0], 'z')
    outwards = typical_limits.limits(G, code, None, direction, torch.tensor([5.0]), 0.05)
    inwards = typical_limits.limits(G, code, None, direction, torch.tensor([-90.0]), 0.05)
    assert outwards.item() == pytest.approx(0, abs=1e-2) and inwards.item() == -90


def test_layers_without_the_base_cannot_be_judged(G: Any) -> None:
    with pytest.raises(ValueError, match='base code, layer 0'):
        typical_limits.limits(G, draw(1, 16), None, any_direction(G, 'y'), torch.ones(1), 0.05, layers=[1])


def test_no_condition_changes_no_direction() -> None:
    direction = make_direction('a', torch.randn([6]), 'y', bias=0.5)
    assert manipulation.project_out(direction, [], 4) is direction


@pytest.mark.parametrize('layers', [[99], [-1], [0, 6]])
def test_layers_that_there_are_not(G: Any, layers: list[int]) -> None:
    with pytest.raises(ValueError, match='layers: this network has 0 to'):
        shift(G, draw(2, 16), None, any_direction(G, 'y'), 1.0, layers)
