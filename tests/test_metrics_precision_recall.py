"""Precision and recall: closed forms, scikit-learn as oracle, blocks that change nothing."""

import numpy as np
import pytest
import torch
from generator_fakes import Flat, LinearGenerator, save_script
from sklearn.neighbors import NearestNeighbors

from dnnlib.util import UserError
from metrics import metric_main, precision_recall
from metrics.precision_recall import kth_neighbour_distances, share_on_manifold

CPU = torch.device('cpu')


def pr(real, fake, k=3):
    tensors = [torch.as_tensor(np.asarray(x), dtype=torch.float32) for x in (real, fake)]
    return precision_recall.precision_recall(*tensors, k, CPU)


def oracle(real, fake, k):
    def share(probes, centres):
        # The first neighbour of each centre is itself.
        radii = NearestNeighbors(n_neighbors=k + 1).fit(centres).kneighbors(centres)[0][:, -1]
        distances = np.linalg.norm(probes[:, None] - centres[None], axis=2)
        return (distances <= radii).any(axis=1).mean()

    return share(fake, real), share(real, fake)


def clouds(n_real, n_fake, dim, shift, seed=0):
    stream = np.random.RandomState(seed)
    return stream.randn(n_real, dim), stream.randn(n_fake, dim) * 0.8 + shift


def test_a_set_against_itself_and_against_one_far_away():
    real, fake = clouds(60, 50, 5, 100)
    assert pr(real, real) == (1, 1)
    assert pr(real, fake) == (0, 0)


def test_a_generator_that_has_collapsed_is_precise_but_recalls_little():
    stream = np.random.RandomState(0)
    real = np.concatenate([stream.rand(40, 2), stream.rand(60, 2) + 10])
    precision, recall = pr(real, stream.rand(50, 2) * 0.5 + 0.25)
    assert precision == 1 and 0 < recall <= 0.4


def test_on_a_line_by_hand():
    # Neighbour 2 of 0, 1, 3, 7 is at distance 3, 2, 3, 6; of 10, 11, 14, 30: 4, 3, 4, 19.
    real, fake = [[0], [1], [3], [7]], [[10], [11], [14], [30]]
    radii = kth_neighbour_distances(torch.tensor(real, dtype=torch.float32), 2, CPU)
    assert radii.sqrt().tolist() == pytest.approx([3, 2, 3, 6])
    # 10, 11 lie within 6 of 7; and 7, not 3, within 4 of 10 (11 of 30: 19 reaches down to 11).
    assert pr(real, fake, k=2) == (0.5, 0.25)


@pytest.mark.parametrize('shift', [0, 0.5, 1.5])
@pytest.mark.parametrize('k', [1, 3])
def test_agrees_with_scikit_learn(shift, k):
    real, fake = clouds(150, 120, 6, shift)
    assert pr(real, fake, k) == pytest.approx(oracle(real, fake, k), abs=1e-9)


def test_features_far_from_the_origin_lose_no_digits():
    real, fake = clouds(150, 120, 6, 0.5)
    assert pr(real + 1000, fake + 1000) == pytest.approx(oracle(real, fake, 3), abs=0.01)


@pytest.mark.parametrize('tile', [1, 7, 64])
def test_blocks_of_any_size_give_the_same(tile, monkeypatch):
    real, fake = clouds(50, 43, 6, 0.7)
    whole = pr(real, fake)
    monkeypatch.setattr(precision_recall, 'TILE', tile)
    assert pr(real, fake) == whole


def test_ranks_divide_the_rows_and_add_up():
    real, fake = (torch.as_tensor(x, dtype=torch.float32) for x in clouds(50, 43, 6, 0.7))
    precision_recall.TILE, tile = 8, precision_recall.TILE
    try:
        whole = kth_neighbour_distances(real, 3, CPU)
        # Without a process group: what each rank of three would have sent.
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.distributed, 'all_reduce', lambda x: x)
            parts = [kth_neighbour_distances(real, 3, CPU, 3, rank) for rank in range(3)]
            shares = [share_on_manifold(fake, real, whole, 3, rank) for rank in range(3)]
        assert torch.equal(sum(parts), whole)
        assert sum(shares) == pytest.approx(share_on_manifold(fake, real, whole))
    finally:
        precision_recall.TILE = tile


def test_too_few_vectors_are_refused():
    with pytest.raises(ValueError, match='k: 3 neighbours need more than 3 vectors, got 3'):
        kth_neighbour_distances(torch.zeros([3, 2]), 3, CPU)


def calc(metric, detector, num=12, **kwargs):
    data = dict(class_name='metric_fakes.FakeImages', num=11, channels=3, resolution=16)
    return metric_main.calc_metric(
        metric, G=LinearGenerator(), num=num, device=CPU, detector=detector, dataset_kwargs=data, cache=False, **kwargs)


def test_metrics_name_what_they_rest_on_and_the_batch_size_changes_nothing(tmp_path):
    detector = save_script(Flat(), tmp_path / 'flat.pt')
    whole = calc('pr50k3_full', detector)
    assert set(whole.results) == {'pr50k3_full_precision', 'pr50k3_full_recall'}
    assert (whole.n, whole.n_real) == (12, 11) and whole.detector.startswith('flat-')
    assert calc('pr50k3_full', detector, batch=5).results == whole.results
    assert calc('pr50k3', detector, num=9).n_real == 9
    assert calc('pr50k3', 'random:1').detector == 'random:1'


def test_no_more_images_than_neighbours_are_refused():
    with pytest.raises(UserError, match='--num: neighbour 3 of an image needs more than 3 images a side'):
        calc('pr50k3_full', 'random:0', num=3)
