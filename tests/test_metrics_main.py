"""The host's metrics end to end on stand-ins: registry, options, cache, batches, processes, reports."""

import copy
import json
import math

import numpy as np
import pytest
import torch
from metric_fakes import FakeGenerator, FakeImages, save_corner_detector

from dnnlib.util import EasyDict, UserError
from metrics import metric_main, metric_utils
from metrics.feature_stats import FeatureStats
from metrics.frechet_inception_distance import frechet_distance

DATA = dict(class_name='metric_fakes.FakeImages', num=11)
CPU = torch.device('cpu')


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv('DNNLIB_CACHE_DIR', str(tmp_path / 'cache'))
    return tmp_path / 'cache'


@pytest.fixture
def corner(tmp_path):
    return save_corner_detector(tmp_path / 'corner.pt')


def calc(metric, detector, G=None, **kwargs):
    options = dict(dict(dataset_kwargs=DATA, num=10, device=CPU), **kwargs)
    return metric_main.calc_metric(metric, G=G or FakeGenerator(), detector=detector, **options)


def expected_fid(num, data=None):
    """By hand: the stand-in's pixels are tanh z, the detector's features the first four of them."""
    streams = [np.random.default_rng([0, item]) for item in range(num)]
    z = np.stack([stream.standard_normal(12, dtype=np.float32) for stream in streams])
    fake = np.clip(np.tanh(z[:, :4]) * np.float32(127.5) + 128, 0, 255).astype(np.uint8).astype(float)
    real = (data or FakeImages(num=11)).images[:, 0, 0, :4].astype(float)
    moments = [part for x in (fake, real) for part in (x.mean(axis=0), np.cov(x.T, bias=True))]
    return frechet_distance(*moments)


def test_fid_of_the_stand_ins_is_what_their_formulas_say(corner):
    result = calc('fid50k_full', corner)
    assert result.results.fid50k_full == pytest.approx(expected_fid(10), rel=1e-9)
    assert list(result)[:5] == ['results', 'metric', 'total_time', 'total_time_str', 'num_gpus']
    assert (result.n, result.n_real, result.metric) == (10, 11, 'fid50k_full')
    assert result.detector.startswith('corner-') and result.value_range == 'uint8 0..255'


@pytest.mark.parametrize('metric', ['fid50k_full', 'kid50k_full', 'fid50k', 'kid50k'])
@pytest.mark.parametrize('batch', [1, 3, 64])
def test_no_image_is_lost_at_the_tail_and_the_batch_size_changes_nothing(metric, batch, corner):
    one = calc(metric, corner, batch=batch, cache=False)
    whole = calc(metric, corner, batch=11, cache=False)
    assert one.results[metric] == pytest.approx(whole.results[metric], rel=1e-9)
    assert one.n == 10 and one.n_real == (11 if metric.endswith('full') else 10)


def test_full_metrics_see_every_image_once_and_unflipped_and_leave_the_options_alone(corner):
    data = EasyDict(DATA, xflip=True, max_size=5)
    before = copy.deepcopy(data)
    assert calc('fid50k_full', corner, dataset_kwargs=data).results.fid50k_full == pytest.approx(expected_fid(10))
    assert calc('fid50k', corner, dataset_kwargs=data, num=10).n_real == 10
    mirrored = calc('fid50k', corner, dataset_kwargs=data, num=22)
    assert mirrored.n_real == 22
    assert mirrored.results.fid50k == pytest.approx(expected_fid(22, FakeImages(num=11, xflip=True)))
    assert data == before


def test_kid_does_not_depend_on_the_global_random_state_but_on_the_seed(corner):
    values = []
    for state, seed in ((1, 0), (2, 0), (2, 5)):
        torch.manual_seed(state)
        np.random.seed(state)
        values.append(calc('kid50k', corner, FakeGenerator(noise=0.5), seed=seed).results.kid50k)
    assert values[0] == values[1] != values[2]


def test_a_metric_leaves_the_random_state_as_it_was(corner):
    torch.manual_seed(3)
    np.random.seed(3)
    calc('fid50k', corner, FakeGenerator(noise=0.5))
    drawn = torch.rand(2), np.random.rand(2)
    torch.manual_seed(3)
    np.random.seed(3)
    torch.testing.assert_close(drawn[0], torch.rand(2), rtol=0, atol=0)
    np.testing.assert_array_equal(drawn[1], np.random.rand(2))


def test_a_generator_in_training_is_neither_changed_nor_used_in_that_mode(corner):
    G = FakeGenerator().train()
    calc('fid50k', corner, G)
    assert G.training


def test_labels_come_from_the_data_set_and_must_fit(corner):
    labelled = dict(DATA, label_dim=3)
    opts = metric_utils.MetricOptions(G=FakeGenerator(c_dim=3), dataset_kwargs=labelled, device=CPU)
    _z, c = metric_utils.draw_inputs(opts, opts.G, FakeImages(num=11, label_dim=3), range(300))
    counts = c.sum(dim=0)
    assert c.shape == (300, 3) and counts.sum() == 300 and counts.min() > 60
    calc('fid50k', corner, FakeGenerator(c_dim=3), dataset_kwargs=labelled)
    with pytest.raises(UserError, match='labels have 3 dimensions, but the network takes 2'):
        calc('fid50k', corner, FakeGenerator(c_dim=2), dataset_kwargs=labelled)


def cached(cache):
    folder = cache / 'gan-metrics'
    return sorted(folder.iterdir()) if folder.exists() else []


def test_features_of_the_data_are_computed_once(corner, cache):
    first = calc('fid50k_full', corner)
    (path,) = cached(cache)
    assert path.name.startswith('fake-corner-') and path.suffix == '.npz'
    stats = FeatureStats.load(str(path))
    stats.raw_cov *= 2  # What is read back must show in the result.
    stats.save(str(path))
    assert calc('fid50k_full', corner).results != first.results
    fresh = calc('fid50k_full', corner, cache=False)
    assert fresh.results == first.results and len(cached(cache)) == 1


def test_a_cut_cache_file_is_replaced_with_a_warning(corner, cache, capsys):
    first = calc('fid50k_full', corner)
    (path,) = cached(cache)
    path.write_bytes(path.read_bytes()[:100])
    assert calc('fid50k_full', corner).results == first.results
    assert 'not feature statistics' in capsys.readouterr().err
    assert FeatureStats.load(str(path)).num_items == 11


def test_cache_knows_data_detector_and_file_content(corner, cache, tmp_path):
    path = tmp_path / 'data.zip'
    for content in (b'1', b'22'):
        path.write_bytes(content)
        calc('fid50k_full', corner, dataset_kwargs=dict(DATA, path=str(path)))
    calc('fid50k_full', 'random:0', dataset_kwargs=dict(DATA, path=str(path)))
    calc('kid50k_full', 'random:0', dataset_kwargs=dict(DATA, path=str(path)))
    assert len(cached(cache)) == 4


def test_cache_sees_a_file_that_changes_inside_a_folder(tmp_path):
    (tmp_path / 'a').mkdir()
    (tmp_path / 'a' / 'x.png').write_bytes(b'1')
    before = metric_utils._fingerprint(str(tmp_path))
    assert metric_utils._fingerprint(str(tmp_path)) == before != []
    (tmp_path / 'a' / 'x.png').write_bytes(b'22')
    assert metric_utils._fingerprint(str(tmp_path)) != before


def test_a_damaged_image_stays_one_line_through_a_worker():
    from metric_fakes import BrokenImages

    for workers in (0, 1):
        loader = metric_utils.iterate_dataset(BrokenImages(), [0, 1], 2, CPU, dict(num_workers=workers))
        with pytest.raises(UserError) as caught:
            next(loader)
        assert str(caught.value) == 'zip: image 3 is damaged'


def test_unknown_metrics_and_senseless_options_are_refused(corner):
    with pytest.raises(UserError, match='fid5k: unknown; there are fid50k_full'):
        calc('fid5k', corner)
    with pytest.raises(UserError, match='--num: got 0'):
        calc('fid50k', corner, num=0)
    with pytest.raises(UserError, match='--data'):
        calc('fid50k', corner, dataset_kwargs={})


def test_a_name_taken_twice_is_an_error(monkeypatch):
    monkeypatch.setattr(metric_main, '_registry', dict(metric_main._registry))

    def fid50k(opts):
        return {}

    with pytest.raises(ValueError, match='fid50k'):
        metric_main.register_metric(fid50k)
    fid50k.__name__ = 'new_metric'
    assert metric_main.register_metric(fid50k) is fid50k
    assert metric_main.is_valid_metric('new_metric') and 'new_metric' in metric_main.list_valid_metrics()


def test_reports_are_lines_of_json_in_order(tmp_path, capsys):
    result = EasyDict(results=EasyDict(fid50k=1.5), metric='fid50k', total_time=2.0, total_time_str='2s', num_gpus=1)
    for _ in range(2):
        metric_main.report_metric(result, run_dir=str(tmp_path), snapshot_pkl=str(tmp_path / 'network.pkl'))
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    stored = [json.loads(line) for line in (tmp_path / 'metric-fid50k.jsonl').read_text().splitlines()]
    assert printed == stored and len(stored) == 2
    assert list(stored[0]) == [*result, 'snapshot_pkl', 'timestamp']
    assert stored[0]['snapshot_pkl'] == 'network.pkl' and stored[0]['results'] == {'fid50k': 1.5}


def test_what_is_not_finite_is_null_in_the_report_and_said(capsys):
    result = EasyDict(results=dict(fid50k=math.nan), metric='fid50k')
    metric_main.report_metric(result)
    out, err = capsys.readouterr()
    assert json.loads(out)['results'] == {'fid50k': None} and 'fid50k is nan' in err


def test_progress_tells_items_and_the_share_of_the_whole(capsys):
    told = []
    monitor = metric_utils.ProgressMonitor(verbose=True, progress_fn=lambda now, total: told.append((now, total)))
    half = monitor.sub('features', num_items=4, flush_interval=1, rel_lo=0.5, rel_hi=1)
    for done in range(1, 5):
        half.update(done)
    assert told == [(0, 1000), (500, 1000)] + [(500 + 125 * done, 1000) for done in range(1, 5)]
    assert capsys.readouterr().err.startswith('features: 4 of 4 items')
