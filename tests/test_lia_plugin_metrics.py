"""Metrics of an encoding network, on stand-ins whose answers are formulas."""

import copy
import math

import numpy as np
import pytest
import torch
from generator_fakes import save_script
from metric_fakes import Face, FakeGenerator, FakeImages, FakeLayers, FakeLIA, StageOne, save_corner_detector
from stand_in_vgg import save_vgg

from dnnlib.util import UserError
from lia_plugin import latent_metrics
from lia_plugin import metrics as lia_metrics
from metrics import metric_main

DATA = dict(class_name='metric_fakes.FakeImages', num=11)
CPU = torch.device('cpu')
DATA16 = dict(DATA, resolution=16)
RECONSTRUCTION = [
    'recon_mse', 'recon_psnr', 'recon_ssim', 'recon_lpips', 'recon_id', 'recon_fid', 'recon_fid_train', 'recon_swd',
    'latent_fd',
]  # fmt: skip
ALL = [*RECONSTRUCTION, 'cycle_y', 'cycle_z']
pytestmark = pytest.mark.filterwarnings('ignore:.*torch.jit:DeprecationWarning')


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    """What the metrics of a command share: the files that some of them need, and the training set."""
    folder = tmp_path_factory.mktemp('files')
    networks = dict(lpips=save_vgg(folder / 'vgg16.pt'), id_detector=save_script(Face(), folder / 'face.pt'))
    return dict(networks, training_set=dict(DATA16, num=20, xflip=True, max_size=3))


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


@pytest.mark.parametrize('metric', ALL)
@pytest.mark.parametrize('batch', [1, 4])
def test_batch_size_changes_nothing_and_no_image_is_lost(metric, batch, files):
    G = FakeLIA(gain=1.2, offset=0.1, side=16)
    kwargs = dict(dataset_kwargs=DATA16, cache=False, **(dict(num=9) if metric.startswith('cycle') else {}))
    small, whole = (calc(metric, G, batch=size, shared=dict(files), **kwargs) for size in (batch, 64))
    assert small.results == pytest.approx(whole.results, rel=1e-5)
    assert small.n == whole.n == (9 if metric.startswith('cycle') else 11)


@pytest.mark.parametrize('metric', RECONSTRUCTION)
def test_mirrored_copies_are_not_counted_and_options_stay_as_they_are(metric, files):
    data, shared = dict(DATA16, xflip=True), copy.deepcopy(files)
    result = calc(metric, FakeLIA(side=16), dataset_kwargs=data, shared=shared)
    assert result.n == 11 and data == dict(DATA16, xflip=True)
    assert {name: shared[name] for name in files} == files
    assert calc(metric, FakeLIA(side=16), dataset_kwargs=data, shared=dict(files), num=4).n == 4


@pytest.mark.parametrize('metric', ALL)
def test_conditional_networks_get_the_labels_of_the_data(metric, files):
    data, shared = dict(DATA16, label_dim=3), dict(files, training_set=dict(DATA16, label_dim=3))
    calc(metric, FakeLIA(c_dim=3, side=16), dataset_kwargs=data, batch=64, num=11, shared=shared)
    assert FakeLIA.last_labels.shape == (11, 3)
    if metric in RECONSTRUCTION:
        np.testing.assert_array_equal(FakeLIA.last_labels.argmax(dim=1), np.arange(11) % 3)
    with pytest.raises(UserError, match='3 dimensions, but the network takes 2'):
        calc(metric, FakeLIA(c_dim=2, side=16), dataset_kwargs=data, shared=dict(files))


@pytest.mark.parametrize('metric', RECONSTRUCTION)
def test_grey_and_colour(metric, files):
    data = dict(DATA16, channels=3)
    shared = dict(files, training_set=data)
    result = calc(metric, FakeLIA(channels=3, side=16), dataset_kwargs=data, shared=shared)
    assert math.isfinite(result.results[metric]) and result.n == 11


@pytest.mark.parametrize('metric', ALL)
def test_networks_without_encoder_are_refused_in_one_line(metric, files):
    with pytest.raises(UserError, match='stage-1 network: train the encoder first: train.py --stage=encoder --resume='):
        calc(metric, StageOne(side=16), shared=dict(files))
    plain = FakeGenerator()
    plain.img_resolution = 16
    with pytest.raises(UserError, match='not a LIA network'):
        calc(metric, plain, shared=dict(files))


@pytest.mark.parametrize('data, complaint', [
    (dict(resolution=16), r'\[1, 16, 16\], the network \[1, 12, 12\]; convert'),
    (dict(channels=3), r'\[3, 12, 12\], the network \[1, 12, 12\]; convert'),
])
def test_images_that_do_not_fit_are_refused(data, complaint):
    with pytest.raises(UserError, match=complaint):
        calc('recon_mse', dataset_kwargs=dict(DATA, **data))


# ---------------------------------------------------------------------------------------------------------------------
# MS-SSIM, LPIPS, identity


@pytest.mark.parametrize('batch', [1, 64])
def test_ms_ssim_agrees_with_pytorch_msssim(batch):
    pytorch_msssim = pytest.importorskip('pytorch_msssim')
    G = FakeLIA(gain=1.5, offset=-0.1, side=161)
    real, recon = (torch.from_numpy(x) for x in images_and_reconstructions(G, resolution=161))
    expected = pytorch_msssim.ms_ssim(real, recon, data_range=2)
    result = calc('recon_msssim', G, dataset_kwargs=dict(DATA, resolution=161), batch=batch)
    assert result.results.recon_msssim == pytest.approx(float(expected), abs=1e-6) and result.n == 11


def test_ms_ssim_needs_161_pixels():
    with pytest.raises(UserError, match='recon_msssim needs images of at least 161 pixels a side, the network'):
        calc('recon_msssim')


def test_lpips_is_the_distance_of_the_files_own_vectors(files):
    G = FakeLIA(gain=1.5, offset=-0.1, side=16)
    script = torch.jit.load(files['lpips'])
    pair = (torch.from_numpy((x + 1) * 127.5).float() for x in images_and_reconstructions(G, resolution=16))
    first, second = (script(x.repeat(1, 3, 1, 1), resize_images=False, return_lpips=True).detach() for x in pair)
    expected = (first - second).square().sum(dim=1).mean()
    result = calc('recon_lpips', G, dataset_kwargs=DATA16, shared=dict(files))
    assert result.results.recon_lpips == pytest.approx(float(expected), rel=1e-4)
    assert result.lpips.startswith('VGG16, vgg16-') and len(result.lpips) == len('VGG16, vgg16-01234567')


@pytest.mark.parametrize('nothing', [0.0, math.nan])
def test_identity_is_the_cosine_of_embeddings_and_failures_are_counted(nothing, tmp_path):
    G = FakeLIA(gain=-0.5, offset=0.02, channels=3)
    pairs = images_and_reconstructions(G, channels=3)
    first, second = (x.mean(axis=1).reshape(11, 2, 6, 2, 6).mean(axis=(2, 4)).reshape(11, 4) for x in pairs)
    cosines = (first * second).sum(axis=1) / np.linalg.norm(first, axis=1) / np.linalg.norm(second, axis=1)
    limit = float(np.sort(np.maximum(first.mean(axis=1), second.mean(axis=1)))[7:9].mean())  # Three images are above.
    failed = np.maximum(first.mean(axis=1), second.mean(axis=1)) > limit
    detector = save_script(Face(limit, nothing), tmp_path / 'face.pt')
    result = calc('recon_id', G, dataset_kwargs=dict(DATA, channels=3), shared=dict(id_detector=detector), batch=2)
    expected = np.where(failed, 0, cosines).mean()
    assert result.results == pytest.approx(dict(recon_id=expected, recon_id_failed=3), abs=1e-5)
    assert result.n == 11 and result.id_detector.startswith('face-')


def test_identity_of_perfect_reconstructions_is_one(files):
    perfect = calc('recon_id', FakeLIA(offset=0.0), shared=dict(files)).results
    assert perfect == pytest.approx(dict(recon_id=1, recon_id_failed=0), abs=1e-6)


@pytest.mark.parametrize('shared, complaint', [
    (dict(), 'recon_id needs --id-detector=FILE'),
    (dict(id_detector='none.pt'), '--id-detector: none.pt: no such file'),
])  # fmt: skip
def test_identity_without_its_network(shared, complaint):
    with pytest.raises(UserError, match=complaint):
        calc('recon_id', shared=shared)


def test_networks_that_embed_nothing_are_told(tmp_path):
    script = save_script(torch.nn.Identity(), tmp_path / 'same.pt')
    with pytest.raises(UserError, match=r'--id-detector: gave \[11, 3, 12, 12\] for 11 images, expected \[N, feat'):
        calc('recon_id', shared=dict(id_detector=script))


# ---------------------------------------------------------------------------------------------------------------------
# Distances of sets


def corner(levels):
    """Mean and covariance of what the corner detector finds."""
    rows = torch.from_numpy(levels[:, 0, 0, :4].astype(np.float64))
    return rows.mean(dim=0), torch.cov(rows.T, correction=0)


def test_both_fids_agree_with_torchmetrics(tmp_path):
    from torchmetrics.image.fid import _compute_fid

    G = FakeLIA(gain=1.5, offset=0.1)
    _real, recon = images_and_reconstructions(G)
    fakes = corner(np.floor(recon.astype(np.float32) * 127.5 + 128))  # To whole levels, as pictures are.
    same, training = (float(_compute_fid(*fakes, *corner(FakeImages(num=num).images))) for num in (11, 40))
    shared = dict(training_set=dict(DATA, num=40, xflip=True, max_size=3))
    detector = save_corner_detector(tmp_path / 'corner.pt')
    found = calc('recon_fid', G, detector=detector, shared=shared)
    assert found.results == pytest.approx(dict(recon_fid=same), rel=1e-4)
    found = calc('recon_fid_train', G, detector=detector, shared=shared)
    assert found.results == pytest.approx(dict(recon_fid_train=training), rel=1e-4)
    assert (found.n, found.n_real) == (11, 40), 'the whole training set, not mirrored, whatever part training used'


def test_fid_to_the_training_set_needs_to_know_it():
    with pytest.raises(UserError, match='recon_fid_train needs the training set, which metrics are not told here'):
        calc('recon_fid_train')


def test_swd_of_perfect_reconstructions_is_the_floor():
    perfect = calc('recon_swd', FakeLIA(offset=0.0, side=32), dataset_kwargs=dict(DATA, resolution=32)).results
    assert set(perfect) == {f'recon_swd{kind}{side}' for kind in ('', '_floor') for side in ('', '_32', '_16')}
    for side in ('', '_32', '_16'):
        assert perfect[f'recon_swd{side}'] == pytest.approx(perfect[f'recon_swd_floor{side}'], rel=1e-6)
    assert perfect.recon_swd > 0


def test_swd_sees_lost_detail_at_the_level_where_it_is_lost():
    class Blurred(FakeLIA):
        def decode(self, y, c=None, **kwargs):
            img = super().decode(y, c, **kwargs)
            return torch.nn.functional.avg_pool2d(img, 2).repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)

    found = calc('recon_swd', Blurred(offset=0.0, side=32), dataset_kwargs=dict(DATA, resolution=32)).results
    ratio = {side: found[f'recon_swd_{side}'] / found[f'recon_swd_floor_{side}'] for side in (16, 32)}
    assert ratio[32] > 1.5 and ratio[16] < 1.3


def test_swd_takes_a_random_part_of_large_sets(monkeypatch):
    from metrics import sliced_wasserstein

    monkeypatch.setattr(sliced_wasserstein, 'NUM_IMAGES', 6)
    first, again, other = (calc('recon_swd', FakeLIA(side=16), dataset_kwargs=DATA16, seed=seed, batch=batch)
                           for seed, batch in ((0, 64), (0, 2), (1, 64)))  # fmt: skip
    assert first.n == 6 and first.results == pytest.approx(again.results, rel=1e-6) and first.results != other.results


# ---------------------------------------------------------------------------------------------------------------------
# y+


def test_reconstructions_of_layers_and_of_the_base_code_alone():
    layers = calc('recon_mse', FakeLayers(detail=0.3))
    assert layers.results.recon_mse == pytest.approx(0.4**2, rel=1e-4) and layers.space == 'y+'
    base = calc('recon_mse', FakeLayers(detail=0.3), shared=dict(space='y'))
    assert base.results.recon_mse == pytest.approx(0.1**2, rel=1e-4) and base.space == 'y'
    with pytest.raises(UserError, match=r'--space: z: this network\'s encoder gives y\+; measure it in y\+ or y'):
        calc('recon_mse', FakeLayers(), shared=dict(space='z'))
    with pytest.raises(UserError, match=r'--space: y\+: this network\'s encoder gives y; measure it in y$'):
        calc('recon_mse', FakeLIA(), shared=dict(space='y+'))


def test_attributes_that_the_training_loop_reads():
    held_out = {name for name in ALL if metric_main.get_metric(name).held_out}
    assert held_out == set(RECONSTRUCTION)
    assert all(metric_main.get_metric(name).needs_encoder for name in ALL)


def test_the_host_says_how_many_processes_read_images(monkeypatch):
    asked = []
    monkeypatch.setattr('lia_plugin.host.loader_workers', lambda num_items: asked.append(num_items) or 0)
    n = calc('recon_mse').n
    assert asked == [n]


def test_a_network_that_gives_nan_gives_nan_not_an_error(files):
    G = FakeLIA(gain=math.nan, side=16)
    for metric in ('recon_mse', 'recon_psnr', 'recon_ssim', 'recon_lpips', 'latent_fd'):
        assert math.isnan(calc(metric, G, dataset_kwargs=DATA16, shared=dict(files)).results[metric])
    assert calc('recon_id', G, dataset_kwargs=DATA16, shared=dict(files)).results.recon_id_failed == 11


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
