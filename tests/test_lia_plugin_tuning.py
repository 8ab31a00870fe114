"""Pivotal tuning and its delta files: closer pictures, an untouched original, a round trip bit for bit."""

import copy
import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
from test_lia_plugin_inversion import make_generator, save_pickle
from test_lia_plugin_refinement import make_stock, pictures

from lia_plugin import delta, host, noise_maps, tuning
from lia_plugin.host import UserError
from lia_plugin.tuning import TuneSettings, tune


def state(G: Any) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in G.state_dict().items()}


def pivots(G: Any, count: int) -> torch.Tensor:
    return G.mapping(torch.randn([count, G.z_dim], generator=torch.Generator().manual_seed(3)), None)


def error(G: Any, img: torch.Tensor, ws: torch.Tensor) -> float:
    return float((G.synthesis(ws, noise_mode='const') - img).square().mean())


@pytest.fixture(scope='module', params=['stage 2', 'stage 1', 'stock'])
def G(request: pytest.FixtureRequest) -> Any:
    return make_stock() if request.param == 'stock' else make_generator(encoder=request.param == 'stage 2')


def test_tuning_lowers_the_error_and_leaves_the_original_alone(G: Any) -> None:
    img, ws, before = pictures(3), pivots(G, 3), state(G)
    losses: list[float] = []
    settings = TuneSettings(steps=12, lr=1e-2, batch=2)
    tuned = tune(G, img, ws, settings=settings, callback=lambda step, loss: losses.append(loss))
    assert error(tuned, img, ws) < 0.7 * error(G, img, ws) and len(losses) == 12
    assert all(torch.equal(value, before[name]) for name, value in G.state_dict().items())
    weights = set(tuning.synthesis_weights(G.synthesis))
    changed = {name for name, value in tuned.state_dict().items() if not torch.equal(value, before[name])}
    assert changed and changed <= {f'synthesis.{name}' for name in weights}, 'no buffer, nothing of mapping or encoder'
    tensors = [*tuned.parameters(), *tuned.buffers()]
    assert not any(value.requires_grad for value in tensors) and all(value.grad is None for value in tensors)
    assert [name for name, _ in tuned.named_parameters()] == [name for name, _ in G.named_parameters()]


def test_weights_are_the_same_whether_frozen_or_not() -> None:
    first, second = (set(tuning.synthesis_weights(make_generator(encoder=on).synthesis)) for on in (False, True))
    assert first == second and not any('noise_const' in name or 'filter' in name for name in first)
    state_of_random = torch.get_rng_state()
    tuning.synthesis_weights(make_generator().synthesis)  # Sets the seed itself …
    torch.set_rng_state(state_of_random)
    tuning.synthesis_weights(G_STAGE2.synthesis)
    assert torch.equal(torch.get_rng_state(), state_of_random), '… but this leaves it'


G_STAGE2 = make_generator()


def test_locality_keeps_the_neighbourhood() -> None:
    G, img = make_generator(), pictures(2)
    ws = pivots(G, 2)
    other = tuning.nearby(ws, pivots(G, 4)[2:], 1.0)
    wanted = G.synthesis(other, noise_mode='const')
    moved = []
    for weight in (0.0, 30.0):
        tuned = tune(G, img, ws, settings=TuneSettings(steps=15, lr=1e-2, locality_weight=weight))
        moved.append(error(tuned, wanted, other))
    assert moved[1] < 0.7 * moved[0], moved


def test_codes_nearby_are_at_the_distance_in_the_direction() -> None:
    ws, others = torch.randn([2, 3, 5]), torch.randn([2, 3, 5])
    near = tuning.nearby(ws, others, 0.7)
    torch.testing.assert_close((near - ws).norm(dim=2), torch.full([2, 3], 0.7))
    cosine = torch.nn.functional.cosine_similarity(near - ws, others - ws, dim=2)
    torch.testing.assert_close(cosine, torch.ones([2, 3]))
    assert torch.equal(tuning.nearby(ws, ws, 0.7), ws)
    a = torch.zeros([4, 2, 2])
    assert float(tuning.mean_distance(a, a + torch.tensor([3.0, 4.0]))) == pytest.approx(5)


def test_weights_are_rounded_to_what_a_difference_can_say() -> None:
    generator = torch.Generator().manual_seed(0)
    original = torch.randn([100_000], generator=generator)
    weight = original + torch.randn([100_000], generator=generator) * 10 ** (4 * torch.rand([100_000]) - 3)
    found = tuning._as_sum(original, weight)
    assert torch.equal(original + (found - original), found)
    torch.testing.assert_close(found, weight, rtol=1e-5, atol=1e-6)


def test_every_image_has_its_turn() -> None:
    settings = TuneSettings(steps=10, batch=2)
    drawn = [index.tolist() for index in tuning._batches(5, settings)]
    flat = [i for batch in drawn for i in batch]
    assert all(sorted(flat[start : start + 5]) == [0, 1, 2, 3, 4] for start in range(0, 20, 5))
    assert [len(index) for index in tuning._batches(1, settings)] == [1] * 10


def test_an_image_is_tuned_for_with_its_own_noise() -> None:
    G = make_generator()
    for name, value in G.synthesis.named_buffers():
        if name.endswith('noise_strength'):
            value.fill_(0.5)
    ws, noise = pivots(G, 2), noise_maps.initial_noise(G.synthesis, 2)
    noise = {name: torch.randn(value.shape) for name, value in noise.items()}
    img = noise_maps.synthesize(G.synthesis, ws, noise)
    losses: list[float] = []
    settings = TuneSettings(steps=1, locality_weight=0)
    tune(G, img, ws, noise=noise, settings=settings, callback=lambda step, loss: losses.append(loss))
    assert losses[0] < 1e-10, 'with this noise nothing is left to do'


def test_wrong_calls() -> None:
    for options in (dict(steps=0), dict(lr=0.0), dict(batch=0)):
        with pytest.raises(ValueError, match='steps, lr, batch'):
            TuneSettings(**options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match='got 2 and 1'):
        tune(G_STAGE2, pictures(2), pivots(G_STAGE2, 1))


# Deltas


@pytest.fixture(scope='module')
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, Any]:
    """A folder with base.pkl and tuned.safetensors, and both generators."""
    folder = tmp_path_factory.mktemp('delta')
    save_pickle(folder / 'base.pkl', G_STAGE2)
    tuned = tune(G_STAGE2, pictures(1), pivots(G_STAGE2, 1), settings=TuneSettings(steps=2))
    delta.save_delta(str(folder / 'tuned.safetensors'), G_STAGE2, tuned, str(folder / 'base.pkl'))
    return folder, G_STAGE2, tuned


def test_a_delta_gives_the_tuned_network_bit_for_bit(files: tuple[Path, Any, Any]) -> None:
    folder, _G, tuned = files
    again = host.load_network_pkl(str(folder / 'base.pkl'))['G_ema']
    delta.apply_delta(again, str(folder / 'tuned.safetensors'), str(folder / 'base.pkl'))
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in tuned.state_dict().items())


def test_the_file_says_what_it_belongs_to(files: tuple[Path, Any, Any]) -> None:
    import safetensors

    folder = files[0]
    with safetensors.safe_open(str(folder / 'tuned.safetensors'), framework='np') as file:
        metadata = file.metadata()
    digest = hashlib.sha256((folder / 'base.pkl').read_bytes()).hexdigest()
    assert metadata == {'format': delta.FORMAT, 'base_sha256': digest, 'base_name': 'base.pkl'}
    with open(folder / 'base.pkl', 'rb') as stream:
        assert delta._digest(stream) == digest


def test_deltas_that_do_not_fit_change_nothing(files: tuple[Path, Any, Any], tmp_path: Path) -> None:
    import safetensors.torch

    folder, G, tuned = files
    other = save_pickle(tmp_path / 'other.pkl', make_generator(channels=1))
    (tmp_path / 'text.safetensors').write_text('nothing')
    safetensors.torch.save_file({'a': torch.zeros(1)}, str(tmp_path / 'plain.safetensors'))
    metadata = dict(format=delta.FORMAT, base_sha256=delta.file_sha256(str(folder / 'base.pkl')))
    safetensors.torch.save_file({'a': torch.zeros(1)}, str(tmp_path / 'wrong.safetensors'), metadata=metadata)
    base, good = str(folder / 'base.pkl'), folder / 'tuned.safetensors'
    for path, network, reason in (
        (good, other, 'belongs to base.pkl'), (tmp_path / 'text.safetensors', base, 'not a safetensors file'),
        (tmp_path / 'plain.safetensors', base, 'not a delta'), (tmp_path / 'none', base, 'no such file'),
        (tmp_path / 'wrong.safetensors', base, 'its weights are not those'),
    ):  # fmt: skip
        again = copy.deepcopy(G)
        with pytest.raises(UserError, match=reason):
            delta.apply_delta(again, str(path), network)
        assert all(torch.equal(value, G.state_dict()[name]) for name, value in again.state_dict().items())
