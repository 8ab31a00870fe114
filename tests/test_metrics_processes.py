"""Two gloo processes give what one gives: distances of features, one start of the processes for all checks."""

import os

import pytest
import torch
from metric_fakes import FakeGenerator, save_corner_detector

from metrics import metric_main
from metrics.feature_stats import FeatureStats, gather_interleaved
from torch_utils import distributed

DATA = dict(class_name='metric_fakes.FakeImages', num=11)


def share_work(rank, world_size, detector, cache_dir):
    """One process's part: (every metric's numbers, numbers of images, gathered rows)."""
    os.environ['DNNLIB_CACHE_DIR'] = cache_dir
    common = dict(num_gpus=world_size, rank=rank, device=torch.device('cpu'), batch=2, num=9)
    numbers, counts = {}, {}
    for metric in metric_main.list_valid_metrics():
        if not metric.startswith(('fid', 'kid')):
            continue  # Those of generated images are in test_metrics_shared_pass.py, the plugin's have their own too.
        result = metric_main.calc_metric(metric, G=FakeGenerator(), detector=detector, dataset_kwargs=DATA, **common)
        numbers.update(result.results)
        counts[metric] = result.n
    cached = metric_main.calc_metric('fid50k_full', G=FakeGenerator(), detector=detector, dataset_kwargs=DATA, **common)
    numbers['from the cache'] = cached.results.fid50k_full
    # Fewer images than processes: one of them has nothing to add but must not wait for ever.
    one_image = dict(common, G=FakeGenerator(), detector=detector, dataset_kwargs=dict(DATA, num=1), num=1)
    numbers['one image'] = metric_main.calc_metric('fid50k_full', **one_image).results.fid50k_full
    rows = gather_interleaved(torch.full([3 - rank, 2], float(rank)), world_size, rank)
    stats = FeatureStats(capture_all=True)
    stats.append_torch(torch.full([1, 2], float(rank)), world_size, rank)
    return numbers, counts, rows[:, 0].tolist(), stats.get_all()[:, 0].tolist()


def test_two_processes_give_what_one_gives(tmp_path):
    corner = save_corner_detector(tmp_path / 'corner.pt')
    one = share_work(0, 1, corner, str(tmp_path / 'one'))
    two = distributed.spawn(share_work, 2, (corner, str(tmp_path / 'two')), device='cpu')
    assert two[0] == pytest.approx(one[0], rel=1e-6)
    assert two[1] == one[1] and set(one[1].values()) == {9}
    assert two[2] == [0, 1, 0, 1, 0] and two[3] == [0, 1]
