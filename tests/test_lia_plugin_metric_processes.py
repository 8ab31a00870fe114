"""Two gloo processes give what one gives: all metrics of an encoding network, one start of the processes for all."""

import os

import pytest
import torch
from generator_fakes import save_script
from metric_fakes import Face, FakeLayers, FakeLIA, save_corner_detector
from stand_in_vgg import save_vgg

from lia_plugin import host
from lia_plugin import metrics as _registers_ours  # noqa: F401
from metrics import metric_main
from torch_utils import distributed

DATA = dict(class_name='metric_fakes.FakeImages', num=21, resolution=16, label_dim=2)
pytestmark = pytest.mark.filterwarnings('ignore:.*torch.jit:DeprecationWarning')


def share_work(rank, world_size, shared, detector, cache_dir):
    """One process's part: every metric's numbers and numbers of images, of y and y+, together and alone."""
    os.environ['DNNLIB_CACHE_DIR'] = cache_dir
    common = dict(num_gpus=world_size, rank=rank, device=torch.device('cpu'), batch=2, num=19, detector=detector)
    names = [name for name in metric_main.list_valid_metrics() if hasattr(host.metric_function(name), 'needs_encoder')
             and name != 'recon_msssim']  # fmt: skip
    numbers, counts = {}, set()
    few = ['recon_swd', 'recon_fid', 'latent_fd', 'cycle_z']
    for kind, metrics in ((FakeLIA, names), (FakeLayers, few), (FakeLIA, ['recon_lpips'])):
        G, handed = kind(gain=1.2, offset=0.1, side=16, c_dim=2), dict(shared, metrics=metrics)
        for name in metrics:
            result = metric_main.calc_metric(name, G=G, dataset_kwargs=DATA, shared=handed, **common)
            numbers.update({f'{kind.__name__} {len(metrics)} {key}': value for key, value in result.results.items()})
            counts.add(result.n)
    G, large = FakeLIA(gain=1.2, side=161), dict(DATA, resolution=161, label_dim=0)
    numbers['ms_ssim'] = metric_main.calc_metric(
        'recon_msssim', G=G, dataset_kwargs=large, **dict(common, num=3)).results.recon_msssim
    return numbers, counts


def test_two_processes_give_what_one_gives(tmp_path):
    shared = dict(lpips=save_vgg(tmp_path / 'vgg16.pt'), id_detector=save_script(Face(), tmp_path / 'face.pt'),
                  training_set=dict(DATA, num=25))  # fmt: skip
    corner = save_corner_detector(tmp_path / 'corner.pt')
    one = share_work(0, 1, shared, corner, str(tmp_path / 'one'))
    two = distributed.spawn(share_work, 2, (shared, corner, str(tmp_path / 'two')), device='cpu')
    assert two[0] == pytest.approx(one[0], rel=1e-5, abs=1e-7)
    assert two[1] == one[1] == {19} and len(one[0]) > 30
