"""Metrics of an encoding network, on stand-ins whose answers are formulas."""

import math

import numpy as np
import pytest
import torch
from metric_fakes import FakeGenerator, FakeImages, FakeLIA, StageOne, save_corner_detector

from dnnlib.util import UserError
from lia_plugin import frechet, latent_metrics
from lia_plugin import metrics as lia_metrics
from metrics import metric_main

DATA = dict(class_name='metric_fakes.FakeImages', num=11)
CPU = torch.device('cpu')
RECONSTRUCTION = ['recon_mse', 'recon_psnr', 'recon_ssim', 'recon_fid', 'latent_fd']
ALL = [*RECONSTRUCTION, 'cycle_y', 'cycle_z']


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv('DNNLIB_CACHE_DIR', str(tmp_path / 'cache'))


def calc(metric, G=None, **kwargs):
    options = dict(dict(dataset_kwargs=DATA, device=CPU, detector='random:0'), **kwargs)
    return metric_main.calc_metric(metric, G=G or FakeLIA(), **options)


def images_and_reconstructions(G, **data):
    real = FakeImages(num=11, **data).floats()
    return real, np.clip(real * G.gain + G.offset, -1, 1)


def test_mse_and_psnr_of_a_constant_offset():
    result = calc('recon_mse', FakeLIA(offset=0.1))
    assert result.results.recon_mse == pytest.approx(0.01, rel=1e-5)
    assert (result.n, result.value_range) == (11, '[-1, 1]')
    psnr = calc('recon_psnr', FakeLIA(offset=0.1)).results
    assert psnr == pytest.approx(dict(recon_psnr=20 * math.log10(20), recon_psnr_of_mean_mse=20 * math.log10(20)))


def test_psnr_means_over_images_and_of_the_mean_error_differ_as_they_should():
    G = FakeLIA(gain=1.5, offset=0.2)
    real, recon = images_and_reconstructions(G)
    errors = np.square(real - recon).mean(axis=(1, 2, 3))
    mean, of_mean = (10 * np.log10(4 / errors)).mean(), 10 * np.log10(4 / errors.mean())
    expected = dict(recon_psnr=mean, recon_psnr_of_mean_mse=of_mean)
    assert calc('recon_psnr', G).results == pytest.approx(expected, rel=1e-5) and mean > of_mean


def test_reconstructions_are_clipped_to_the_range_of_images():
    real = FakeImages(num=11).floats()
    result = calc('recon_mse', FakeLIA(offset=5.0)).results.recon_mse
    assert result == pytest.approx(np.square(1 - real).mean(), rel=1e-5)


def test_perfect_images_have_a_finite_psnr():
    assert calc('recon_psnr', FakeLIA(offset=0.0)).results.recon_psnr == pytest.approx(10 * math.log10(4e10))


@pytest.mark.parametrize('channels', [1, 3])
def test_ssim_agrees_with_scikit_image(channels):
    from skimage.metrics import structural_similarity

    G = FakeLIA(gain=1.5, offset=-0.1, channels=channels, side=16)
    data = dict(num=11, channels=channels, resolution=16)
    real, recon = images_and_reconstructions(G, channels=channels, resolution=16)
    expected = [structural_similarity(a, b, data_range=2, channel_axis=0, gaussian_weights=True, sigma=1.5,
                                      use_sample_covariance=False) for a, b in zip(real, recon)]
    result = calc('recon_ssim', G, dataset_kwargs=dict(DATA, **data))
    assert result.results.recon_ssim == pytest.approx(np.mean(expected), abs=1e-5)


def test_ssim_agrees_with_pytorch_msssim():
    pytorch_msssim = pytest.importorskip('pytorch_msssim')
    G = FakeLIA(gain=1.5, offset=-0.1)
    pair = (torch.from_numpy(x) for x in images_and_reconstructions(G))
    expected = pytorch_msssim.ssim(*pair, data_range=2)
    assert calc('recon_ssim', G).results.recon_ssim == pytest.approx(float(expected), abs=1e-5)


def test_ssim_needs_eleven_pixels():
    G = FakeLIA(side=8)
    small = dict(DATA, resolution=8)
    with pytest.raises(UserError, match='at least 11 pixels a side, the network makes 8'):
        calc('recon_ssim', G, dataset_kwargs=small)
    assert calc('recon_mse', G, dataset_kwargs=small).results.recon_mse == pytest.approx(0.01, rel=1e-5)


def test_recon_fid_of_a_constant_offset_is_the_squared_shift(tmp_path):
    result = calc('recon_fid', FakeLIA(offset=8 / 127.5), detector=save_corner_detector(tmp_path / 'corner.pt'))
    assert result.results.recon_fid == pytest.approx(4 * 8**2, rel=1e-6)  # Four features, each 8 levels brighter.
    assert result.detector.startswith('corner-') and result.n == 11 and result.value_range == 'uint8 0..255'


def test_recon_fid_of_perfect_reconstructions_is_zero_though_covariances_lack_rank():
    assert calc('recon_fid', FakeLIA(offset=0.0)).results.recon_fid == pytest.approx(0, abs=1e-4)


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


def test_frechet_distance_to_the_standard_normal_in_closed_form():
    distance = frechet.frechet_to_standard_normal
    assert distance(np.array([3.0, 4.0]), np.diag([4.0, 9.0])) == pytest.approx(25 + 1 + 4)
    assert distance(np.zeros(5), np.eye(5)) == pytest.approx(0, abs=1e-12)


def test_the_floor_is_what_true_samples_of_this_number_get():
    z = np.random.RandomState(0).randn(60, 20)
    true = frechet.frechet_to_standard_normal(z.mean(axis=0), np.cov(z.T, bias=True))
    assert frechet.frechet_floor(60, 20) == pytest.approx(true, rel=0.3)
    assert frechet.frechet_floor(10000, 20) < 0.02 * true


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


@pytest.mark.parametrize('metric', ALL)
@pytest.mark.parametrize('batch', [1, 4])
def test_batch_size_changes_nothing_and_no_image_is_lost(metric, batch):
    G = FakeLIA(gain=1.2, offset=0.1)
    kwargs = dict(num=9) if metric.startswith('cycle') else {}
    small, whole = calc(metric, G, batch=batch, cache=False, **kwargs), calc(metric, G, batch=64, cache=False, **kwargs)
    assert small.results == pytest.approx(whole.results, rel=1e-6)
    assert small.n == whole.n == (9 if kwargs else 11)


@pytest.mark.parametrize('metric', RECONSTRUCTION)
def test_mirrored_copies_are_not_counted_and_options_stay_as_they_are(metric):
    data = dict(DATA, xflip=True)
    result = calc(metric, dataset_kwargs=data)
    assert result.n == 11 and data == dict(DATA, xflip=True)
    assert calc(metric, dataset_kwargs=data, num=4).n == 4


def test_several_metrics_of_one_call_share_their_pass(monkeypatch):
    passes = []
    monkeypatch.setattr('lia_plugin.evaluation.real_batches', spy(passes))
    names = ['recon_mse', 'recon_psnr', 'recon_ssim', 'latent_fd']
    G, shared = FakeLIA(gain=1.2), dict(metrics=names)
    together = [calc(metric, G, shared=shared).results for metric in names]
    assert len(passes) == 1
    assert together == [calc(metric, G).results for metric in names]
    assert calc('recon_mse', FakeLIA(offset=0.3), shared=shared).results.recon_mse == pytest.approx(0.09, rel=1e-4)
    assert calc('recon_mse', G, shared=shared, num=3).n == 3


def spy(passes):
    from lia_plugin import evaluation

    real_batches = evaluation.real_batches

    def counted(*args):
        passes.append(args)
        return real_batches(*args)

    return counted


def test_latent_fd_alone_decodes_nothing(monkeypatch):
    monkeypatch.setattr(FakeLIA, 'decode', None)
    assert calc('latent_fd').n == 11


@pytest.mark.parametrize('metric', ALL)
def test_conditional_networks_get_the_labels_of_the_data(metric):
    data = dict(DATA, label_dim=3)
    calc(metric, FakeLIA(c_dim=3), dataset_kwargs=data, batch=64, num=11)
    assert FakeLIA.last_labels.shape == (11, 3)
    if metric in RECONSTRUCTION:
        np.testing.assert_array_equal(FakeLIA.last_labels.argmax(dim=1), np.arange(11) % 3)
    with pytest.raises(UserError, match='3 dimensions, but the network takes 2'):
        calc(metric, FakeLIA(c_dim=2), dataset_kwargs=data)


@pytest.mark.parametrize('metric', ALL)
def test_networks_without_encoder_are_refused_in_one_line(metric):
    with pytest.raises(UserError, match='stage-1 network: train the encoder first: train.py --stage=encoder --resume='):
        calc(metric, StageOne())
    with pytest.raises(UserError, match='not a LIA network'):
        calc(metric, FakeGenerator())


@pytest.mark.parametrize('data, complaint', [
    (dict(resolution=16), r'\[1, 16, 16\], the network \[1, 12, 12\]; convert'),
    (dict(channels=3), r'\[3, 12, 12\], the network \[1, 12, 12\]; convert'),
])
def test_images_that_do_not_fit_are_refused(data, complaint):
    with pytest.raises(UserError, match=complaint):
        calc('recon_mse', dataset_kwargs=dict(DATA, **data))


def test_attributes_that_the_training_loop_reads():
    held_out = {name for name in ALL if metric_main.get_metric(name).held_out}
    assert held_out == set(RECONSTRUCTION)
    assert all(metric_main.get_metric(name).needs_encoder for name in ALL)


def test_a_network_that_gives_nan_gives_nan_not_an_error():
    for metric in ('recon_mse', 'recon_psnr', 'recon_ssim', 'latent_fd'):
        assert math.isnan(calc(metric, FakeLIA(gain=math.nan)).results[metric])


class Silence:
    verbose = False

    def sub(self, **kwargs):
        return self

    def update(self, cur_items):
        pass


class StockOptions:
    """What NVIDIA's hosts give a metric: no detector, num, batch, seed, notes or shared."""

    def __init__(self, G):
        self.G, self.G_kwargs, self.dataset_kwargs = G, {}, dict(DATA)
        self.num_gpus, self.rank, self.device, self.cache = 1, 0, CPU, False
        self.progress = Silence()


def test_on_a_stock_host_n_stands_among_the_numbers():
    results = lia_metrics.recon_mse(StockOptions(FakeLIA()))
    assert results == pytest.approx(dict(recon_mse=0.01, recon_mse_n=11), rel=1e-5)
    assert latent_metrics.cycle_y(StockOptions(FakeLIA(gain=1.1, offset=0)))['cycle_y'] == pytest.approx(0.1, rel=1e-4)
