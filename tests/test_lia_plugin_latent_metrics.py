"""Metrics of latents, on stand-ins whose answers are formulas."""

import numpy as np
import pytest
import torch
from metric_fakes import FakeImages, FakeLayers, FakeLIA

from dnnlib.util import UserError
from lia_plugin import metrics as _registers_ours  # noqa: F401
from metrics import metric_main

DATA = dict(class_name='metric_fakes.FakeImages', num=11)
CPU = torch.device('cpu')


def calc(metric, G=None, **kwargs):
    options = dict(dict(dataset_kwargs=DATA, device=CPU), **kwargs)
    return metric_main.calc_metric(metric, G=G or FakeLIA(), **options)


def test_latent_fd_is_the_distance_to_a_standard_normal():
    # z = (y − shift) / scale of the pixels: the data set's own moments say the rest.
    G = FakeLIA(scale=0.05, shift=0.02)
    z = (FakeImages(num=40).floats().reshape(40, -1) - 0.02) / 0.05
    mean, cov = z.mean(axis=0), np.cov(z.T, bias=True)
    values = np.linalg.eigvalsh(cov).clip(min=0)
    expected = np.square(mean).sum() + np.trace(cov) + len(mean) - 2 * np.sqrt(values).sum()
    result = calc('latent_fd', G, dataset_kwargs=dict(DATA, num=40))
    assert result.results.latent_fd == pytest.approx(expected, rel=1e-5)
    assert result.n == 40 and result.results.latent_fd_ks_p < 1e-6


def test_cycles_of_a_known_error():
    # gain 1.1, no offset: y comes back 10 % too long; so does z where φ only scales.
    G = FakeLIA(gain=1.1, offset=0.0, scale=3.0)
    assert calc('cycle_y', G, num=20).results == pytest.approx(dict(cycle_y=0.1), rel=1e-5)
    assert calc('cycle_z', G, num=20).results == pytest.approx(dict(cycle_z=0.1), rel=1e-5)
    assert calc('cycle_y', G).n == 1000


def test_cycle_z_is_measured_in_z():
    # y is far from 0, so the same absolute error is small in y and 1 / scale larger in z.
    G = FakeLIA(offset=0.5, scale=0.25, shift=30.0)
    y, z = calc('cycle_y', G, num=50).results.cycle_y, calc('cycle_z', G, num=50).results.cycle_z
    assert y == pytest.approx(0.5 / 30, rel=0.02) and z == pytest.approx(0.5 / 0.25, rel=0.02)


def test_latent_fd_alone_decodes_nothing(monkeypatch):
    monkeypatch.setattr(FakeLIA, 'decode', None)
    assert calc('latent_fd').n == 11


def test_ks_agrees_with_the_distribution_function_by_hand():
    from scipy import stats

    norms = np.sort(np.square((FakeImages(num=40).floats().reshape(40, -1)) / 0.1).sum(axis=1))
    cdf = stats.chi2.cdf(norms, df=144)
    steps = np.arange(41) / 40
    expected = max((steps[1:] - cdf).max(), (cdf - steps[:-1]).max())
    found = calc('latent_fd', FakeLIA(scale=0.1), dataset_kwargs=dict(DATA, num=40)).results
    assert found.latent_fd_ks == pytest.approx(expected, rel=1e-4)
    assert found.latent_fd_ks_p == pytest.approx(stats.kstwo.sf(expected, 40), rel=1e-3)


def test_codes_from_the_prior_are_at_the_floor():
    """An encoder that gives z ~ N(0, I), whatever the image: its distance is the floor's, and KS sees nothing."""

    class Prior(FakeLIA):
        def encode(self, img, c=None):
            return torch.randn([len(img), self.z_dim], generator=self.stream)

        def __deepcopy__(self, memo):
            return self

    G = Prior(side=4)
    G.stream = torch.Generator().manual_seed(0)
    found = calc('latent_fd', G, dataset_kwargs=dict(DATA, num=400, resolution=4)).results
    assert found.latent_fd == pytest.approx(found.latent_fd_floor, rel=0.3) and found.latent_fd_ks_p > 0.01


def test_cycles_of_labels_are_those_of_the_data():
    class Shift:
        """φ shifts by the class: a wrong label on the way back would be an error of z."""

        def y_to_z(self, y, c=None):
            return y - c.argmax(dim=1, keepdim=True)

        def z_to_y(self, z, c=None):
            return z + c.argmax(dim=1, keepdim=True)

    G = FakeLIA(offset=0, c_dim=3)
    G.mapping = Shift()
    result = calc('cycle_z', G, num=20, dataset_kwargs=dict(DATA, label_dim=3))
    assert result.results.cycle_z == pytest.approx(0, abs=1e-6) and result.data == 'generated images'


def test_labels_of_few_cycles_are_those_of_the_whole_set(monkeypatch):
    asked = []
    label = FakeImages.get_label
    monkeypatch.setattr(FakeImages, 'get_label', lambda self, idx: asked.append(idx) or label(self, idx))
    data = dict(DATA, num=300, label_dim=3, max_size=100)
    calc('cycle_y', FakeLIA(offset=0, c_dim=3), num=12, dataset_kwargs=data)
    assert len(asked) == 12 and min(asked) < 100 and max(asked) >= 200


# ---------------------------------------------------------------------------------------------------------------------
# y+


def test_latents_of_layers_are_those_of_the_base_code():
    plain, layers = (kind(gain=1.1, offset=0.0, scale=3.0) for kind in (FakeLIA, FakeLayers))
    for metric in ('latent_fd', 'cycle_y', 'cycle_z'):
        alone, found = calc(metric, plain, num=9), calc(metric, layers, num=9)
        assert found.results == pytest.approx(alone.results, rel=1e-6)
        assert (alone.space, found.space) == ('y', 'y+')
        narrowed = calc(metric, layers, num=9, shared=dict(space='y'))
        assert narrowed.results == pytest.approx(alone.results, rel=1e-6) and narrowed.space == 'y'


# ---------------------------------------------------------------------------------------------------------------------
# Linear separability


class Shifted(FakeImages):
    """Images of two classes, the second 20 levels brighter in one corner: a plane in pixels parts them."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.images[1::2, :, :3, :3] += 100


def test_separable_classes_and_labels_that_codes_know_nothing_of(tmp_path, monkeypatch):
    monkeypatch.setattr('metric_fakes.Shifted', Shifted, raising=False)
    data = dict(class_name='metric_fakes.Shifted', num=60, label_dim=2, resolution=6)
    result = calc('ls', FakeLIA(side=6), dataset_kwargs=data)
    assert result.results == pytest.approx(dict(ls_y=1, ls_z=1, ls_chance=2), abs=1e-6)
    assert (result.n, result.attributes, result.folds, result.space) == (60, 'class', 5, 'y')
    names = [f'img{i:08d}.png' for i in range(60)]
    rows = [f'{name},{i % 2},{"ab"[i // 2 % 2]}' for i, name in enumerate(names)]
    (tmp_path / 'labels.csv').write_text('\n'.join(['file,bright,nothing', *rows]))
    both = calc('ls', FakeLIA(side=6), dataset_kwargs=data, shared=dict(labels=str(tmp_path / 'labels.csv')))
    assert both.results.ls_chance == pytest.approx(4) and both.attributes == 'bright,nothing'
    assert 1.7 < both.results.ls_y <= 2 + 1e-6, 'the first attribute costs nothing, the second one all of its bit'


def test_ls_needs_labels_and_scikit_learn(monkeypatch):
    with pytest.raises(UserError, match='ls needs labels, and fake has none; --labels=FILE.csv'):
        calc('ls')
    monkeypatch.setitem(__import__('sys').modules, 'sklearn', None)
    with pytest.raises(UserError, match='ls needs scikit-learn: pip install scikit-learn'):
        calc('ls')
