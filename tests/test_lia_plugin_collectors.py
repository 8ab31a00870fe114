"""One pass for all metrics of a command: what is gathered once, what is kept, and when there is a pass of its own."""

import collections

import pytest
import torch
from generator_fakes import save_script
from metric_fakes import Face, FakeLIA
from stand_in_vgg import save_vgg

from dnnlib.util import UserError
from lia_plugin import collectors
from lia_plugin import metrics as _registers_ours  # noqa: F401
from metrics import metric_main

DATA = dict(class_name='metric_fakes.FakeImages', num=11, resolution=16, label_dim=2)
NAMES = [
    'recon_mse', 'recon_psnr', 'recon_ssim', 'recon_lpips', 'recon_id', 'recon_fid', 'recon_fid_train', 'recon_swd',
    'latent_fd', 'ls',
]  # fmt: skip
pytestmark = pytest.mark.filterwarnings('ignore:.*torch.jit:DeprecationWarning')


class Counted(FakeLIA):
    """Counts the images that pass through it."""

    seen = collections.Counter()

    def encode(self, img, c=None):
        self.seen['encoded'] += len(img)
        return super().encode(img, c)

    def decode(self, y, c=None, **kwargs):
        self.seen['decoded'] += len(y)
        return super().decode(y, c, **kwargs)


@pytest.fixture(autouse=True)
def fresh(tmp_path, monkeypatch):
    monkeypatch.setenv('DNNLIB_CACHE_DIR', str(tmp_path / 'cache'))
    Counted.seen.clear()


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp('files')
    return dict(lpips=save_vgg(folder / 'vgg16.pt'), id_detector=save_script(Face(), folder / 'face.pt'),
                training_set=dict(DATA, num=20))  # fmt: skip


def calc(metric, G, shared, **kwargs):
    options = dict(dict(dataset_kwargs=DATA, device=torch.device('cpu'), detector='random:0', batch=4), **kwargs)
    return metric_main.calc_metric(metric, G=G, shared=shared, **options)


def test_images_are_encoded_and_decoded_once_for_all_metrics_with_the_numbers_of_separate_runs(files):
    G = Counted(gain=1.2, offset=0.05, side=16, c_dim=2)
    shared = dict(files, metrics=NAMES)
    together = {name: calc(name, G, shared).results for name in NAMES}
    assert Counted.seen == dict(encoded=11, decoded=11)
    for name in NAMES:
        alone = calc(name, G, dict(files)).results
        assert together[name] == alone
    assert Counted.seen['encoded'] == 11 * (1 + len(NAMES))


def test_only_what_is_asked_for_is_gathered(files):
    G = Counted(side=16)
    calc('latent_fd', G, dict(files, metrics=['latent_fd']))
    assert Counted.seen == dict(encoded=11)
    found = collectors.collect(fake_options(G, dict(metrics=['recon_mse', 'latent_fd'])), 'mse')
    assert Counted.seen == dict(encoded=22, decoded=11) and len(found[0].values) == 11


def fake_options(G, shared):
    from metrics.metric_utils import MetricOptions

    return MetricOptions(G=G, dataset_kwargs=DATA, device=torch.device('cpu'), shared=shared)


def test_another_network_data_set_or_number_has_a_pass_of_its_own(files):
    G, shared = Counted(side=16), dict(metrics=['recon_mse'])
    first = calc('recon_mse', G, shared)
    assert calc('recon_psnr', G, shared).n == 11 and Counted.seen['encoded'] == 11
    other = calc('recon_mse', Counted(side=16, offset=0.3), shared)
    assert other.results.recon_mse == pytest.approx(0.09, rel=1e-4) != first.results.recon_mse
    assert calc('recon_mse', G, shared, num=3).n == 3
    assert calc('recon_mse', G, shared, dataset_kwargs=dict(DATA, num=7)).n == 7
    assert calc('recon_mse', G, shared, G_kwargs=dict(truncation_psi=0.5)).n == 11
    assert Counted.seen['encoded'] == 11 + 11 + 3 + 7 + 11


def test_without_anything_to_share_each_metric_still_works():
    G = Counted(side=16)
    assert calc('recon_mse', G, None).n == calc('recon_mse', G, {}).n == 11
    assert Counted.seen['encoded'] == 22


def test_what_one_of_them_lacks_is_said_before_the_pass(files):
    with pytest.raises(UserError, match='recon_id needs --id-detector'):
        calc('recon_mse', Counted(side=16), dict(metrics=['recon_mse', 'recon_id']))
    assert not Counted.seen


def test_what_is_kept_is_small(files):
    """After the pass there are figures of each image, and a covariance; no image, no network but the measured one."""
    G, shared = Counted(side=16), dict(files, metrics=[name for name in NAMES if name != 'ls'])
    calc('recon_mse', G, shared)
    kept = [value[1] for key, value in shared.items() if key[0] == 'lia_plugin.collectors']
    assert len(kept) == 8
    for found in kept:
        for value in vars(found).values():
            assert not callable(value) and getattr(value, 'size', 0) <= 480**2, type(found)


def test_batches_are_freed(files, monkeypatch):
    import weakref

    alive, most = weakref.WeakSet(), [0]
    init = collectors.Batch.__init__

    def watched(self, *args):
        init(self, *args)
        alive.add(self)
        most[0] = max(most[0], len(alive))

    monkeypatch.setattr(collectors.Batch, '__init__', watched)
    calc('recon_mse', Counted(side=16), dict(files, metrics=NAMES[:-1]), batch=1)
    assert most[0] <= 2


def test_identity_of_directions_in_closed_form():
    def embed(x):
        return x.flatten(1)

    a = torch.tensor([[3.0, 4.0], [1.0, 0.0], [0.0, 0.0], [float('inf'), 1.0], [2.0, 0.0]])[:, :, None, None]
    b = torch.tensor([[4.0, 3.0], [0.0, 5.0], [1.0, 0.0], [1.0, 1.0], [-7.0, 0.0]])[:, :, None, None]
    found = collectors.identity_similarity(embed, a, b)
    torch.testing.assert_close(found[[0, 1, 4]], torch.tensor([24 / 25, 0.0, -1.0]))
    assert found[[2, 3]].isnan().all()
