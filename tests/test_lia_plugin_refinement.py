"""Refinement of codes: known optima, independence of images, what is kept, the noise's regulariser."""

import dataclasses
import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from test_lia_plugin_inversion import make_generator

from lia_plugin import noise_maps, spaces
from lia_plugin.perceptual import Perceptual
from lia_plugin.refinement import Refined, Settings, refine, schedule

DIM, SIDE, LAYERS = 3, 2, 2
PIXELS = SIDE * SIDE


class LinearSynthesis(torch.nn.Module):
    """Pixels = Σ over layers of A·wₗ / layers + b."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.A = torch.randn([PIXELS, DIM], generator=generator)
        self.b = torch.randn([PIXELS], generator=generator)

    def forward(self, ws: torch.Tensor, noise_mode: str = 'const', force_fp32: bool = True) -> torch.Tensor:
        return (ws.mean(dim=1) @ self.A.t() + self.b).reshape(-1, 1, SIDE, SIDE)


class GaussianMapping(torch.nn.Module):
    """φ(y) = y / scale, hence y ~ N(0, scale²) and ws are copies of y."""

    def __init__(self, scale: torch.Tensor) -> None:
        super().__init__()
        self.phi, self.scale, self.z_dim, self.c_dim = object(), scale, DIM, 0
        self.w_avg = torch.zeros([DIM])

    def z_to_y(self, z: torch.Tensor, c: Any = None) -> torch.Tensor:
        return z * self.scale

    def y_to_z(self, y: torch.Tensor, c: Any = None) -> torch.Tensor:
        return y / self.scale

    def y_to_ws(self, y: torch.Tensor, c: Any = None) -> torch.Tensor:
        return y if y.ndim == 3 else y.unsqueeze(1).repeat([1, LAYERS, 1])

    def log_prob(self, y: torch.Tensor, c: Any = None) -> torch.Tensor:
        return torch.distributions.Normal(torch.zeros([DIM]), self.scale).log_prob(y).sum(dim=1)


@pytest.fixture
def linear() -> Any:
    mapping = GaussianMapping(torch.tensor([0.5, 1.0, 3.0]))
    return SimpleNamespace(
        mapping=mapping, synthesis=LinearSynthesis(), z_dim=DIM, w_dim=DIM, c_dim=0, num_ws=LAYERS,
        img_channels=1, img_resolution=SIDE,
    )  # fmt: skip


@pytest.fixture(scope='module')
def G() -> Any:
    G = make_generator()
    with torch.no_grad():
        for name, value in G.synthesis.named_buffers():
            if name.endswith('noise_strength'):
                value.fill_(0.3)  # As training leaves it; at 0 noise would not matter.
    return G


def pictures(count: int, *shape: int) -> torch.Tensor:
    return torch.rand([count, *(shape or (3, 16, 16))], generator=torch.Generator().manual_seed(1)) * 2 - 1


def map_estimate(G: Any, img: torch.Tensor, prior_weight: float) -> torch.Tensor:
    """argmin of mean (A y + b − x)² + prior_weight · Σ y²/(2 scale²)/dim, by its normal equations."""
    A, b, scale = G.synthesis.A, G.synthesis.b, G.mapping.scale
    left = A.t() @ A * (2 / PIXELS) + torch.diag(prior_weight / scale.square() / DIM)
    right = A.t() @ (img.flatten(1) - b).t() * (2 / PIXELS)
    return torch.linalg.solve(left, right).t()


# Optima


@pytest.mark.parametrize('optimizer, steps', [('lbfgs', 30), ('adam', 250)])
@pytest.mark.parametrize('space', ['y', 'y+', 'z'])
@pytest.mark.parametrize('prior_weight', [0.0, 0.3])
def test_a_linear_generator_is_solved(
    linear: Any, space: str, prior_weight: float, optimizer: str, steps: int
) -> None:
    """The prior of a linear φ has one maximum in y and in z alike, and with layers that do the same, one in y+."""
    img = pictures(4, 1, SIDE, SIDE)
    settings = Settings(steps, space, optimizer, prior_weight=prior_weight, rampdown=0.9)
    found = refine(linear, img, settings=settings)
    expected = map_estimate(linear, img, prior_weight)
    code = found.code.mean(dim=1) if space == 'y+' else found.code
    torch.testing.assert_close(code, expected, rtol=1e-3, atol=3e-3)
    torch.testing.assert_close(linear.synthesis(found.ws), found.recon)
    if prior_weight:
        assert (expected - map_estimate(linear, img, 0)).abs().max() > 0.1, 'or the prior would not show'


def test_a_heavy_prior_is_all_there_is(linear: Any) -> None:
    start = torch.ones([2, DIM])
    found = refine(linear, pictures(2, 1, SIDE, SIDE), code=start, settings=Settings(steps=30, prior_weight=1e6))
    torch.testing.assert_close(found.code, torch.zeros([2, DIM]), rtol=0, atol=1e-2)


def test_density_of_y_and_of_z_differ_by_the_jacobian(G: Any) -> None:
    G = make_generator()
    y = G.mapping.z_to_y(torch.randn([3, 16], generator=torch.Generator().manual_seed(2)))
    z, log_det = G.mapping.phi(y)
    in_y, in_z = spaces.surprise(G, y, None, 'y'), spaces.surprise(G, z, None, 'z')
    torch.testing.assert_close(in_y, in_z + 0.5 * math.log(2 * math.pi) - log_det / 16)
    other = y.flip(0)
    layers = torch.stack([y, other, y, other, y, other], dim=1)
    torch.testing.assert_close(spaces.surprise(G, layers, None, 'y+'), (in_y + in_y.flip(0)) / 2)


def test_consistency_leads_to_what_the_encoder_says(linear: Any) -> None:
    """With an encoder that always says e, the term is ‖e − y‖²/dim/var y: alone, its optimum is e."""
    target = torch.tensor([0.2, -0.4, 1.0])
    linear.encoder = object()
    linear.encode = lambda img, c: target.expand(len(img), -1)
    settings = Settings(steps=30, pixel_weight=0, consistency_weight=1)
    found = refine(linear, pictures(2, 1, SIDE, SIDE), settings=settings)
    torch.testing.assert_close(found.code, target.expand(2, -1), rtol=1e-3, atol=1e-3)
    variance = spaces.code_statistics(linear).std.square().mean()
    mean = spaces.code_statistics(linear).mean
    expected = (target - mean).square().mean() / variance
    torch.testing.assert_close(found.losses[0], expected.expand(2), rtol=1e-4, atol=1e-5)


def test_a_perfect_encoder_costs_nothing(linear: Any) -> None:
    inverse = torch.linalg.pinv(linear.synthesis.A)
    linear.encoder = object()
    linear.encode = lambda img, c: (img.flatten(1) - linear.synthesis.b) @ inverse.t()
    code = torch.randn([3, DIM], generator=torch.Generator().manual_seed(0))
    settings = Settings(steps=0, pixel_weight=0, consistency_weight=1)
    losses = refine(linear, pictures(3, 1, SIDE, SIDE), code=code, settings=settings).losses
    torch.testing.assert_close(losses, torch.zeros([1, 3]), rtol=0, atol=1e-8)


def test_the_offsets_penalty_ties_the_layers(G: Any) -> None:
    img = pictures(2)
    spread = [
        float((code - code[:, :1]).square().mean())
        for code in (refine(G, img, settings=Settings(30, 'y+', offset_weight=w)).code for w in (0, 1, 100))
    ]
    assert spread[0] > 3 * spread[1] > 9 * spread[2], spread


# Images don't know of each other


@pytest.mark.parametrize('options', [
    dict(space='y'),
    dict(space='y', optimizer='adam'),
    dict(space='y+', offset_weight=0.1, prior_weight=0.01),
    dict(space='z', prior_weight=0.01, consistency_weight=0.1),
    dict(noise=True),
])
def test_each_image_goes_as_if_alone(G: Any, options: dict[str, Any]) -> None:
    img, settings = pictures(3), Settings(steps=12, **options)
    together = refine(G, img, settings=settings)
    for i in range(3):
        alone = refine(G, img[i : i + 1], settings=settings)
        torch.testing.assert_close(together.losses[:, i], alone.losses[:, 0], rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(together.recon[i], alone.recon[0], rtol=1e-2, atol=1e-2)


# What is kept


def test_the_best_state_of_each_image_is_kept(G: Any) -> None:
    """A step far too long makes everything worse at times: what was best comes out, image by image."""
    img = pictures(4)
    seen: list[tuple[int, torch.Tensor, torch.Tensor]] = []
    found = refine(G, img, settings=Settings(15, optimizer='adam', lr=3.0), callback=lambda *state: seen.append(state))
    assert [step for step, _, _ in seen] == list(range(16)) and found.losses.shape == (16, 4)
    torch.testing.assert_close(torch.stack([losses for _, losses, _ in seen]), found.losses)
    assert (found.losses[1:] > found.losses[:-1]).any(), 'or there would be nothing to keep'
    best = found.losses.argmin(dim=0)
    for i in range(4):
        assert torch.equal(found.recon[i], seen[int(best[i])][2][i])
    torch.testing.assert_close(G.synthesis(found.ws, noise_mode='const'), found.recon, rtol=1e-4, atol=1e-4)


def test_lbfgs_needs_fewer_steps(G: Any) -> None:
    img = pictures(3)
    lbfgs, adam = (refine(G, img, settings=Settings(40, optimizer=name)).losses for name in (None, 'adam'))
    assert float(lbfgs.amin(dim=0).mean()) < float(adam.amin(dim=0).mean())


@pytest.mark.parametrize('settings, given, wanted', [
    (Settings(), True, 0.03), (Settings(), False, 0.3), (Settings(space='z'), False, 0.3),
    (Settings(space='y+'), True, 0.03), (Settings(space='y+'), False, 0.1),
    (Settings(optimizer='adam'), True, 0.3), (Settings(space='y+', noise=True), False, 0.3),
    (Settings(lr=2.0), True, 2.0),
])  # fmt: skip
def test_first_steps_are_as_long_as_the_start_is_far(settings: Settings, given: bool, wanted: float) -> None:
    assert settings.resolved(given) == dataclasses.replace(settings, lr=wanted)


@pytest.mark.parametrize('space', ['y', 'y+'])
def test_the_start_decides_the_first_step(G: Any, space: str) -> None:
    img = pictures(2)
    near = refine(G, img, settings=Settings(40, space)).code
    for code, lr, other in ((near, 0.03, 0.3), (None, 0.1 if space == 'y+' else 0.3, 0.03)):
        losses = [refine(G, img, code=code, settings=Settings(2, space, lr=lr)).losses for lr in (None, lr, other)]
        assert torch.equal(losses[0], losses[1]) and not torch.equal(losses[0], losses[2])


def test_one_step_is_worth_something_near_a_good_code(G: Any) -> None:
    code = G.mapping.z_to_y(torch.randn([4, 16], generator=torch.Generator().manual_seed(0)))
    img = G.decode(code, noise_mode='const')
    statistics = spaces.code_statistics(G)
    start = code + 0.1 * statistics.std * torch.randn(code.shape, generator=torch.Generator().manual_seed(1))
    losses = refine(G, img, code=start, settings=Settings(steps=1), statistics=statistics).losses
    assert (losses[1] < 0.8 * losses[0]).all()


def test_a_start_that_is_perfect_stays(G: Any) -> None:
    code = G.mapping.z_to_y(torch.randn([2, 16], generator=torch.Generator().manual_seed(0)))
    img = G.decode(code, noise_mode='const')
    found = refine(G, img, code=code, settings=Settings(steps=5))
    torch.testing.assert_close(found.recon, img)
    torch.testing.assert_close(found.code, code, rtol=1e-4, atol=1e-4)
    assert float(found.losses.amin()) < 1e-9


@pytest.mark.parametrize('space', ['y', 'y+', 'z'])
def test_any_code_can_be_the_start(G: Any, space: str) -> None:
    base = G.mapping.z_to_y(torch.randn([2, 16], generator=torch.Generator().manual_seed(0)))
    layers = torch.cat([base[:, None], torch.randn([2, G.num_ws - 1, 16])], dim=1)
    for code in (base, layers):
        found = refine(G, pictures(2), code=code, settings=Settings(steps=0, space=space))
        expected = code if space == 'y+' else base
        torch.testing.assert_close(found.ws, G.mapping.y_to_ws(expected), rtol=1e-4, atol=1e-4)
    assert found.code.ndim == (3 if space == 'y+' else 2)


def test_nothing_of_the_network_changes(G: Any) -> None:
    before = {name: value.clone() for name, value in G.state_dict().items()}
    with torch.no_grad():  # A caller's switch does not matter.
        found = refine(G, pictures(2), settings=Settings(steps=3, noise=True, consistency_weight=1))
    assert all(torch.equal(value, before[name]) for name, value in G.state_dict().items())
    assert all(parameter.grad is None for parameter in G.parameters())
    assert not any(value.requires_grad for value in (found.code, found.ws, found.recon, found.losses))
    assert not any(value.requires_grad for value in (found.noise or {}).values())


@pytest.mark.parametrize('space', ['y', 'y+', 'z'])
def test_labels_go_with_their_images(space: str) -> None:
    G, img = make_generator(c_dim=2, channels=1), pictures(2, 1, 16, 16)
    settings = Settings(steps=4, space=space, prior_weight=0.1, consistency_weight=0.1)
    both = refine(G, img, torch.eye(2), settings=settings)
    other = refine(G, img[1:], torch.eye(2)[:1], settings=settings)
    alone = refine(G, img[1:], torch.eye(2)[1:], settings=settings)
    torch.testing.assert_close(both.losses[:, 1], alone.losses[:, 0], rtol=1e-3, atol=1e-4)
    assert (both.losses[:, 1] - other.losses[:, 0]).abs().max() > 1e-3, 'or the class would not matter'


def test_the_perceptual_term_counts_as_said(G: Any) -> None:
    class TwiceTheMeanDifference(Perceptual):
        def features(self, img: torch.Tensor) -> list[torch.Tensor]:
            return [img]

        def compare(self, a: Any, b: Any) -> torch.Tensor:
            return 2 * (a[0] - b[0]).abs().mean(dim=[1, 2, 3])

    img = pictures(2)
    settings = Settings(steps=0, pixel_weight=0.5, percep_weight=3)
    found = refine(G, img, settings=settings, percep=TwiceTheMeanDifference())
    difference = found.recon - img
    expected = 0.5 * difference.square().mean(dim=[1, 2, 3]) + 6 * difference.abs().mean(dim=[1, 2, 3])
    torch.testing.assert_close(found.losses[0], expected)


def test_stock_networks_go_by_w() -> None:
    G = make_stock()
    start = refine(G, pictures(2), settings=Settings(steps=0))
    mean = spaces.code_statistics(G).mean
    torch.testing.assert_close(start.ws, mean.expand(2, G.num_ws, -1))
    sample = G.mapping(torch.randn([20000, 8], generator=torch.Generator().manual_seed(5)), None)[:, 0]
    torch.testing.assert_close(mean, sample.mean(dim=0), rtol=0, atol=0.05 * float(sample.std()))
    for space, shape in (('y', (2, 8)), ('y+', (2, G.num_ws, 8))):
        found = refine(G, pictures(2), settings=Settings(steps=10, space=space))
        assert found.code.shape == shape and (found.losses[-1] < found.losses[0]).all()
        torch.testing.assert_close(spaces.code_to_ws(G, found.code), found.ws)


def make_stock(c_dim: int = 0) -> Any:
    from training.networks import Generator

    torch.manual_seed(0)
    return Generator(
        z_dim=8, c_dim=c_dim, w_dim=8, img_resolution=16, img_channels=3,
        synthesis_kwargs=dict(channel_base=128, channel_max=8),
    ).eval().requires_grad_(False)  # fmt: skip


def test_statistics_of_a_conditional_stock_network_cover_its_classes() -> None:
    G = make_stock(c_dim=3)
    means = [G.mapping(torch.randn([5000, 8]), torch.eye(3)[[i]].repeat(5000, 1))[:, 0].mean(dim=0) for i in range(3)]
    expected = torch.stack(means).mean(dim=0)
    torch.testing.assert_close(spaces.code_statistics(G).mean, expected, rtol=0, atol=0.05)


# The learning rate


def test_schedule_rises_holds_and_falls() -> None:
    settings = Settings(steps=1000, warmup=0.1, rampdown=0.25)
    factors = [schedule(step, settings) for step in range(1000)]
    assert factors[49] == pytest.approx(0.495) and factors[100:750] == [1.0] * 650
    assert factors[875] == pytest.approx(0.5, abs=0.01) and 0 < factors[-1] < 1e-5
    assert sorted(factors[:100]) == factors[:100] and sorted(factors[750:], reverse=True) == factors[750:]
    assert [schedule(step, Settings(steps=3, warmup=0, rampdown=0)) for step in range(3)] == [1, 1, 1]


# Noise


def direct_correlation(noise: np.ndarray) -> float:
    """Appendix D's sum for one map, pixel by pixel."""
    total = 0.0
    while True:
        side = len(noise)
        for dy, dx in ((1, 0), (0, 1)):
            products = [noise[y, x] * noise[y - dy, x - dx] for y in range(side) for x in range(side)]
            total += (sum(products) / side**2) ** 2
        if side <= 8:
            return total
        noise = np.array([
            [noise[y : y + 2, x : x + 2].mean() * 2 for x in range(0, side, 2)] for y in range(0, side, 2)
        ])


def test_noise_regulariser_against_its_formula() -> None:
    maps = {f'b{side}': torch.randn([2, 1, side, side], generator=torch.Generator().manual_seed(side))
            for side in (4, 8, 32)}
    found = noise_maps.correlation(maps)
    for i in range(2):
        assert float(found[i]) == pytest.approx(sum(direct_correlation(m[i, 0].numpy()) for m in maps.values()))


def test_the_pyramid_keeps_the_variance_of_white_noise_and_finds_a_picture() -> None:
    white = torch.randn([1, 1, 64, 64], generator=torch.Generator().manual_seed(0))
    smooth = torch.nn.functional.avg_pool2d(white, 5, 1, 2)
    maps = {'a': white.clone()}, {'a': smooth.clone()}
    for value in maps:
        noise_maps.normalize(value)
        assert float(value['a'].mean()) == pytest.approx(0, abs=1e-6)
        assert float(value['a'].square().mean()) == pytest.approx(1, abs=1e-5)
    flat, picture = (float(noise_maps.correlation(value)) for value in maps)
    assert picture > 20 * flat


def test_noise_of_its_own_for_each_image(G: Any) -> None:
    ws = G.mapping(torch.randn([2, 16]), None)
    noise = {name: torch.randn(value.shape) for name, value in noise_maps.initial_noise(G.synthesis, 2).items()}
    together = noise_maps.synthesize(G.synthesis, ws, noise)
    synthesis = make_generator().synthesis
    synthesis.load_state_dict(G.synthesis.state_dict())
    buffers = dict(synthesis.named_buffers())
    for i in range(2):
        for name, value in noise.items():
            buffers[name].copy_(value[i, 0])
        torch.testing.assert_close(synthesis(ws[i : i + 1], noise_mode='const')[0], together[i], rtol=1e-4, atol=1e-5)


def test_noise_that_is_free_takes_up_the_image_and_the_regulariser_forbids_it(G: Any) -> None:
    img = pictures(2)
    plain = refine(G, img, settings=Settings(steps=30, optimizer='adam'))
    free, held = (refine(G, img, settings=Settings(steps=30, noise=True, noise_weight=w)) for w in (0.0, 1e5))
    assert plain.noise is None and free.noise is not None and held.noise is not None
    assert (free.losses.amin(dim=0) < plain.losses.amin(dim=0)).all()
    own = noise_maps.correlation(noise_maps.initial_noise(G.synthesis, 2))
    assert (noise_maps.correlation(held.noise) < own).all()
    assert (noise_maps.correlation(held.noise) < 0.1 * noise_maps.correlation(free.noise)).all()
    for value in held.noise.values():
        assert value.shape[:2] == (2, 1)
        torch.testing.assert_close(value.square().mean(dim=[2, 3]), torch.ones([2, 1]), rtol=1e-3, atol=1e-3)


# Wrong calls


@pytest.mark.parametrize('settings, complaint', [
    (dict(space='w'), "space: expected 'y', 'y\\+' or 'z', got 'w'"),
    (dict(steps=-1), 'steps, lr'),
    (dict(lr=0.0), 'steps, lr'),
    (dict(optimizer='sgd'), "optimizer: .*'sgd'"),
    (dict(optimizer='lbfgs', noise=True), "optimizer: .*'lbfgs'"),
    (dict(lr=math.nan), 'steps, lr'),
    (dict(offset_weight=0.1), 'offset_weight'),
])
def test_settings_that_cannot_be(settings: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        Settings(**settings)


def test_what_does_not_fit_is_named(G: Any, linear: Any) -> None:
    def call(network: Any = G, count: int = 2, code: torch.Tensor | None = None, **options: Any) -> Refined:
        channels, side = network.img_channels, network.img_resolution
        return refine(network, torch.zeros([count, channels, side, side]), None, code, settings=Settings(1, **options))

    with pytest.raises(ValueError, match=r'img: expected \[N, 3, 16, 16\], got \[1, 3, 8, 8\]'):
        refine(G, torch.zeros([1, 3, 8, 8]))
    with pytest.raises(ValueError, match=r'code: expected \[N, 16\] or \[N, 6, 16\], got \[2, 5, 16\]'):
        call(code=torch.zeros([2, 5, 16]))
    with pytest.raises(ValueError, match='code: expected one for each of 2 images, got 1'):
        call(code=torch.zeros([1, 16]))
    stock = make_stock()
    for options in (dict(space='z'), dict(prior_weight=0.1)):
        with pytest.raises(ValueError, match='no φ'):
            call(stock, **options)
    with pytest.raises(ValueError, match='no encoder'):
        call(stock, consistency_weight=1)
    with pytest.raises(ValueError, match='no noise'):
        call(linear, noise=True)
