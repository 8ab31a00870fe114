"""Reconstructions by each method, and how long their codes are, against the prior."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from figure_exhibits import exhibit
from scipy import stats
from test_lia_plugin_inversion import make_generator, save_pictures

from lia_plugin import canvas, figure_lengths, figure_reconstruction, figures
from lia_plugin.figure_base import spread
from lia_plugin.results import save_json


@pytest.fixture(scope='module')
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_pictures(tmp_path_factory.mktemp('data') / 'set', 10))


@pytest.fixture(scope='module')
def G() -> Any:
    return make_generator()


def test_reconstructions_are_measured_as_they_are_shown(G: Any, data: str) -> None:
    show = exhibit(G, data, refine=4)
    found = figures.draw_one(show, 'reconstructions')
    sitters, methods = figure_reconstruction.attempts(show, lambda share: None)
    mse = {name: (attempt.recon - sitters.img).square().mean(dim=[1, 2, 3]) for name, attempt in methods.items()}
    for name, row in found.numbers['methods'].items():
        assert row['mse']['mean'] == pytest.approx(float(mse[name].mean()), rel=1e-4)
    assert (mse['refined'] <= mse['encoder'] + 1e-6).all()
    # The prior takes some of the picture's likeness and gives likelihood for it.
    log_p = {name: G.mapping.log_prob(G.mapping.z_to_y(methods[name].z)).sum() for name in ('refined', 'map')}
    assert log_p['map'] > log_p['refined']
    rows = spread(len(show.reals), 3)
    assert rows == [0, 3, 6] and spread(2, 9) == [0, 1]
    torch.testing.assert_close(methods['encoder'].z, G.mapping.y_to_z(show.reals.code[rows]))
    torch.testing.assert_close(sitters.img, show.originals(rows))
    assert found.pictures[''][0].shape[0] == 3


def test_a_comparison_is_told_again(G: Any, data: str, tmp_path: Path) -> None:
    save_json(str(tmp_path / 'compare.json'), dict(
        summary=dict(shared={'lia-y': dict(mse=[0.1, None], psnr=[20.0, 0.5]), 'opt-100': dict(mse=[0.05, None])}),
        records=[dict(name='lia-y', label='LIA, y')]))  # fmt: skip
    content, grid = figure_reconstruction.read_comparison(str(tmp_path))
    assert grid is None
    assert figure_reconstruction.comparison_table(content) == (
        ['method', 'MSE', 'PSNR dB'], [['LIA, y', '0.1000', '20.00 ± 0.50'], ['opt-100', '0.0500', '']])
    found = figures.draw_one(exhibit(G, data, compare=str(tmp_path)), 'reconstructions')
    assert len(found.tables) == 2 and found.numbers['comparison'] == content['summary']


def test_lengths_against_the_prior() -> None:
    draws = stats.chi2(64).rvs(2000, random_state=0)
    found = figure_lengths.describe(draws, 64)
    assert found['mean'] == pytest.approx(64, abs=1) and found['std'] == pytest.approx(128**0.5, rel=0.1)
    assert found['ks'] == pytest.approx(stats.kstest(draws, 'chi2', args=(64,)).statistic)
    assert found['ks_p'] > 0.01 and found['typical'] == pytest.approx(0.95, abs=0.02)
    assert figure_lengths.describe(2 * draws, 64)['ks'] > 0.9
    assert figure_lengths.describe(2 * draws, 64)['typical'] < 0.05


def test_the_outline_of_prior_draws_follows_the_density(monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[np.ndarray] = []
    draw_line = canvas.Panel.line

    def spy(self: Any, points: Any, *args: Any, **kwargs: Any) -> None:
        lines.append(np.asarray(points, float))
        draw_line(self, points, *args, **kwargs)

    monkeypatch.setattr(canvas.Panel, 'line', spy)
    values = stats.chi2(32).rvs(20000, random_state=0)
    figure_lengths.picture(dict(encoder=values, refined=values[:3]), 32)
    outline, density = lines[0], lines[1]
    assert np.trapezoid(density[:, 1], density[:, 0]) == pytest.approx(1, abs=0.01)
    middle = (outline[::2, 0] + outline[1::2, 0]) / 2
    np.testing.assert_allclose(outline[::2, 1], np.interp(middle, density[:, 0], density[:, 1]), atol=0.25)
    assert len(lines) == 3 + 3  # The small set is three ticks, below the axis.
    assert all(tick[:, 1].max() < 0 for tick in lines[3:])


def test_what_is_said_of_lengths_is_what_was_measured(G: Any, data: str) -> None:
    found = figures.draw_one(exhibit(G, data), 'lengths')
    for name, row in found.numbers['codes'].items():
        assert f'{row["typical"]:.0%} of those {figure_lengths.NAMES[name]}' in found.text
