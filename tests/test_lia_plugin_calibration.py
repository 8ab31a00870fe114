"""What is usual among a set's codes: empirical p-values, the left-out distance, and a file that can be trusted."""

import json
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.covariance import OAS
from test_lia_plugin_inversion import make_generator, save_pickle, save_pictures

from lia_plugin import calibration, cli
from lia_plugin.calibration import Calibration, calibrate, fit_gaussian, left_out_distance, two_sided_p, upper_p
from lia_plugin.host import UserError
from lia_plugin.networks import MappingNetwork

DIM = 5


def codes(n: int, seed: int = 0, d: int = DIM) -> np.ndarray:
    """Skewed, correlated, far from N(0, I)."""
    stream = np.random.default_rng(seed)
    return (stream.gamma(2.0, size=[n, d]) @ np.random.default_rng(99).normal(size=[d, d]) * 2 + 3).astype(np.float32)


def log_prob_of(z: np.ndarray) -> np.ndarray:
    return -0.5 * np.square(z).sum(axis=1) - z[:, 0]


def make(n: int = 200, seed: int = 0) -> Calibration:
    return calibrate(codes(n, seed), log_prob_of(codes(n, seed)), 'hash', 'faces')


@pytest.mark.parametrize('value, n, low, high', [(-1.0, 9, 0, 9), (3.0, 9, 4, 6), (3.5, 9, 4, 5), (99.0, 9, 9, 0)])
def test_p_counts_k_plus_one_of_n_plus_one(value: float, n: int, low: int, high: int) -> None:
    usual = np.arange(n, dtype=float)
    expected = min(2 * (min(low, high) + 1) / (n + 1), 1)
    assert two_sided_p(np.array([value]), usual) == pytest.approx(expected)
    assert upper_p(np.array([value]), usual) == pytest.approx((high + 1) / (n + 1))


def test_members_are_compared_with_the_others() -> None:
    values = np.sort(np.random.default_rng(0).normal(size=30))
    for fn in (two_sided_p, upper_p):
        expected = [float(fn(values[i : i + 1], np.delete(values, i))[0]) for i in range(30)]
        np.testing.assert_allclose(fn(values, values, members=True), expected)


def test_p_of_codes_of_the_sets_own_distribution_is_uniform() -> None:
    """Each of the three, pooled over fresh sets, for p-values of one set share its sampling error."""
    pooled: dict[str, list[np.ndarray]] = {}
    for seed in range(60):
        usual = make(200, seed)
        fresh = codes(20, 1000 + seed)
        for name, p in usual.p_values(usual.figures(fresh, log_prob_of(fresh))).items():
            pooled.setdefault(name, []).append(p)
    for name, parts in pooled.items():
        assert stats.kstest(np.concatenate(parts), 'uniform').pvalue > 0.01, name
    assert set(pooled) == {'typicality_set', 'p_log_prob', 'p_distance'}


def test_in_sample_distances_would_not_be_uniform() -> None:
    """Why members are left out: near d images, their distance to a Gaussian that knows them says nothing of others."""
    z, fresh = codes(40, 0, d=20), codes(400, 1, d=20)
    gaussian = fit_gaussian(z)
    theirs = gaussian.distance(fresh)
    honest = upper_p(theirs, np.sort(left_out_distance(z, gaussian)))
    naive = upper_p(theirs, np.sort(gaussian.distance(z)))
    assert (naive < 0.05).mean() > 0.2 and (honest < 0.05).mean() < 0.1


@pytest.mark.parametrize('n', [12, 300])
def test_left_out_distance_is_that_of_a_gaussian_fitted_without_the_image(n: int) -> None:
    z = codes(n).astype(np.float64)
    gaussian = fit_gaussian(z)
    level = np.trace(gaussian.cov) / DIM
    expected = []
    for i in range(n):
        others = np.delete(z, i, axis=0)
        cov = (1 - gaussian.shrinkage) * np.cov(others.T, bias=True) + gaussian.shrinkage * level * np.eye(DIM)
        delta = z[i] - others.mean(axis=0)
        expected.append(delta @ np.linalg.solve(cov, delta))
    np.testing.assert_allclose(left_out_distance(z, gaussian, block=7), expected, rtol=1e-8)


@pytest.mark.parametrize('n', [6, 100])
def test_the_shrunk_covariance_is_scikit_learns(n: int) -> None:
    z = codes(n).astype(np.float64)
    expected = OAS().fit(z)
    gaussian = fit_gaussian(z)
    np.testing.assert_allclose(gaussian.cov, expected.covariance_, rtol=1e-9)
    assert gaussian.shrinkage == pytest.approx(expected.shrinkage_)
    np.testing.assert_allclose(gaussian.distance(z), expected.mahalanobis(z), rtol=1e-6)


def test_codes_that_are_all_alike_have_distances_all_the_same() -> None:
    same = calibrate(np.ones([20, DIM], np.float32), np.zeros(20), 'hash', 'blank')
    assert np.isfinite(same.distance).all()


def test_foreign_codes_are_told_from_the_sets_own() -> None:
    usual, foreign = make(), codes(30, 1) + 60
    p = usual.p_values(usual.figures(foreign, log_prob_of(foreign)))
    assert all((values < 0.05).all() for values in p.values())


# ---------------------------------------------------------------------------------------------------------------------
# Files


def test_a_saved_calibration_is_read_back(tmp_path: Path) -> None:
    before = make(30)
    calibration.save(tmp_path / 'c.npz', before)
    after = calibration.load(tmp_path / 'c.npz')
    for name in calibration.Figures._fields:
        np.testing.assert_array_equal(getattr(after, name), getattr(before, name))
    np.testing.assert_array_equal(after.gaussian.cov, before.gaussian.cov)
    assert (after.network, after.data, after.n, after.gaussian.n) == ('hash', 'faces', 30, 30)
    info = json.loads(str(np.load(tmp_path / 'c.npz', allow_pickle=False)['info'][()]))
    assert info['n'] == 30 and info['network_hash'] == 'hash' and info['data'] == 'faces' and info['z_dim'] == DIM


def rewrite(path: Path, **changes: Any) -> Path:
    with np.load(path) as file:
        arrays = {**{name: file[name] for name in file.files}, **changes}
    np.savez(path, **{name: value for name, value in arrays.items() if value is not None})
    return path


@pytest.mark.parametrize('changes, reason', [
    (dict(log_prob=np.zeros(7)), 'log_prob: expected'),
    (dict(square_norm=np.arange(30.0)[::-1]), 'not sorted'),
    (dict(distance=np.full(30, np.nan)), 'distance: expected'),
    (dict(cov=-np.eye(DIM)), 'ositive definite'),
    (dict(cov=None), 'cov'),
    (dict(mean=np.array([object()] * DIM)), 'pickle'),
    (dict(info=np.array('{"format": "other"}')), "format 'other'"),
    (dict(info=np.array('[')), 'not a calibration file'),
])
def test_damaged_files_are_one_line(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    path = tmp_path / 'c.npz'
    calibration.save(path, make(30))
    with pytest.raises(UserError, match=reason) as caught:
        calibration.load(rewrite(path, **changes))
    assert str(path) in str(caught.value) and '\n' not in str(caught.value)


def test_what_is_no_calibration_at_all(tmp_path: Path) -> None:
    with pytest.raises(UserError, match='no such file'):
        calibration.load(tmp_path / 'none.npz')
    (tmp_path / 'text.npz').write_text('hello')
    with pytest.raises(UserError, match='not a calibration file'):
        calibration.load(tmp_path / 'text.npz')


def test_a_zip_bomb_is_refused_before_it_is_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, 'MAX_BYTES', 10_000)
    with zipfile.ZipFile(tmp_path / 'bomb.npz', 'w', zipfile.ZIP_DEFLATED) as archive:
        archive.writestr('square_norm.npy', bytes(20_000))
    with pytest.raises(UserError, match='unpacked'):
        calibration.load(tmp_path / 'bomb.npz')


def test_a_calibration_belongs_to_its_network(tmp_path: Path) -> None:
    def network() -> Any:
        return SimpleNamespace(mapping=MappingNetwork(DIM, 0, DIM, num_ws=2, phi_kwargs=dict(hidden_features=4)))

    mine, other = network(), network()
    z = codes(20)
    calibration.save(tmp_path / 'c.npz', calibrate(z, log_prob_of(z), calibration.network_hash(mine), 'faces'))
    mine.mapping.w_avg.fill_(3)  # No image's z depends on it.
    assert calibration.load(tmp_path / 'c.npz', mine).n == 20
    with pytest.raises(UserError, match='another network'):
        calibration.load(tmp_path / 'c.npz', other)


@pytest.mark.parametrize('iters, depends', [(1, False), (3, True)])
def test_the_synthesis_network_counts_where_the_encoder_looks_at_its_reconstructions(iters: int, depends: bool) -> None:
    G = make_generator()
    G.mapping.encoder.iters = iters
    before = calibration.network_hash(G)
    G.synthesis.b4.const.add_(1)
    assert (calibration.network_hash(G) != before) == depends


def test_too_few_or_broken_codes_are_refused() -> None:
    with pytest.raises(UserError, match='9 images are too few'):
        make(9)
    with pytest.raises(UserError, match='not finite'):
        calibrate(np.full([20, DIM], np.inf), np.zeros(20), 'hash', 'faces')


# ---------------------------------------------------------------------------------------------------------------------
# invert --calibration


@pytest.fixture(scope='module')
def lia_network(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, str]:
    folder = tmp_path_factory.mktemp('network')
    G = make_generator()
    save_pictures(folder / 'in', 2)
    return G, save_pickle(folder / 'lia.pkl', G)


def invert(network: str, out: Path, *args: str) -> tuple[int, dict[str, Any]]:
    target = Path(network).parent / 'in'
    options = ['--device=cpu', '--lpips=none', f'--network={network}', f'--target={target}', f'--outdir={out}', *args]
    code = cli.run(cli.load_command('invert'), options)
    results = out / 'results.json'
    return code, json.loads(results.read_text()) if results.exists() else {}


def calibration_of(G: Any, path: Path, seed: int = 0) -> Calibration:
    y = torch.randn([50, G.z_dim], generator=torch.Generator().manual_seed(seed)) * 3
    z, log_p = G.mapping.y_to_z(y).numpy(), G.mapping.log_prob(y).numpy()
    calibration.save(path, calibrate(z, log_p, calibration.network_hash(G), 'fifty'))
    return calibration.load(path, G)


def test_invert_says_how_typical_an_image_is_of_the_set(
    lia_network: tuple[Any, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    G, network = lia_network
    usual = calibration_of(G, tmp_path / 'c.npz')
    code, found = invert(network, tmp_path / 'out', f'--calibration={tmp_path / "c.npz"}')
    assert code == 0 and found['calibration'] == dict(data='fifty', n=50)
    latents = np.load(tmp_path / 'out' / 'latents.npz')
    expected = two_sided_p(np.square(latents['z'], dtype=np.float64).sum(axis=1), usual.square_norm)
    assert [row['typicality_set'] for row in found['images']] == pytest.approx(list(expected))
    far = upper_p(usual.gaussian.distance(latents['z'].astype(np.float64)), usual.distance)
    assert [row['p_distance'] for row in found['images']] == pytest.approx(list(far))
    log_p = G.mapping.log_prob(torch.from_numpy(latents['y'])).tolist()
    assert [row['log_prob'] for row in found['images']] == pytest.approx(log_p, rel=1e-4)
    header = next(line for line in capsys.readouterr().out.splitlines() if line.startswith('image'))
    assert 'log p(y)' in header and 'set p' in header


def test_invert_finds_the_calibration_beside_the_network(lia_network: tuple[Any, str], tmp_path: Path) -> None:
    G, network = lia_network
    place = Path(network).with_name('lia.calibration.npz')
    assert invert(network, tmp_path / 'a')[1]['calibration'] is None
    calibration_of(G, place)
    assert invert(network, tmp_path / 'b')[1]['calibration'] == dict(data='fifty', n=50)
    assert 'typicality_set' not in invert(network, tmp_path / 'c', '--calibration=none')[1]['images'][0]
    place.unlink()


def test_invert_refuses_what_does_not_fit(
    lia_network: tuple[Any, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    G, network = lia_network
    other = make_generator()
    torch.nn.init.normal_(other.mapping.encoder.output_std)
    calibration_of(other, tmp_path / 'other.npz')
    for name, reason in (('other.npz', 'another network'), ('none.npz', 'no such file')):
        assert invert(network, tmp_path / 'out', f'--calibration={tmp_path / name}') == (2, {})
        err = capsys.readouterr().err.strip()
        assert err.startswith('Error: --calibration: ') and reason in err and '\n' not in err
