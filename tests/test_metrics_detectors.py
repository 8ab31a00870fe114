"""Feature networks: names that tell what they are, one download, errors of one line."""

import http.server
import os
import threading

import pytest
import torch
from metric_fakes import save_corner_detector

import dnnlib
from dnnlib.util import UserError
from metrics import detectors, metric_utils


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv('DNNLIB_CACHE_DIR', str(tmp_path / 'cache'))
    return tmp_path / 'cache'


@pytest.fixture
def server(tmp_path):
    """A web server on the loopback that serves a tiny TorchScript network under Inception's name."""
    folder = tmp_path / 'served'
    folder.mkdir()
    save_corner_detector(folder / 'inception-2015-12-05.pt')
    requests = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, directory=str(folder), **kwargs)

        def log_message(self, *args):
            requests.append(self.path)

    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever, args=[0.01], daemon=True)
        thread.start()
        yield f'http://127.0.0.1:{httpd.server_port}/', requests
        httpd.shutdown()


def pixels(n=3, channels=3):
    return torch.arange(n * channels * 64, dtype=torch.uint8).reshape(n, channels, 8, 8)


def test_a_download_happens_once_and_an_altered_inception_is_called_by_its_hash(server, cache, capsys):
    base, requests = server
    url = base + 'inception-2015-12-05.pt'
    for _ in range(2):
        detector = metric_utils.get_feature_detector(url)
    torch.testing.assert_close(detector(pixels(), return_features=True), pixels()[:, 0, 0, :4].float())
    assert len(requests) == 1 and len(os.listdir(cache / 'downloads')) == 1
    (cached,) = (cache / 'downloads').iterdir()
    assert detector.name == f'inception-2015-12-05-{dnnlib.util.file_hash(cached)[:8]}'
    warning = capsys.readouterr().err.splitlines()[0]
    assert warning.startswith('Warning') and 'is not the published inception-2015-12-05' in warning


def test_the_right_hash_makes_the_name_inception_whatever_the_file_is_called(tmp_path, monkeypatch, capsys):
    path = save_corner_detector(tmp_path / 'copy.pt')
    assert metric_utils.get_feature_detector_name(path).startswith('copy-')
    monkeypatch.setattr(detectors, 'INCEPTION_SHA256', dnnlib.util.file_hash(path))
    assert metric_utils.get_feature_detector_name(path) == 'inception-2015-12-05'
    metric_utils.get_feature_detector(path)
    assert capsys.readouterr().err == ''


def test_offline_one_line_names_file_folder_and_the_way_without(cache, monkeypatch):
    monkeypatch.setattr('time.sleep', lambda seconds: None)
    monkeypatch.setitem(detectors.URLS, 'inception', 'http://127.0.0.1:9/inception-2015-12-05.pt')
    with pytest.raises(UserError) as caught:
        metric_utils.get_feature_detector(metric_utils.MetricOptions().detector_url('inception'))
    message = str(caught.value)
    assert 'inception-2015-12-05.pt' in message and str(cache / 'downloads') in message
    assert '--detector=' in message and '\n' not in message


@pytest.mark.parametrize('url, complaint', [
    ('nothing-here.pt', 'no such file'),
    ('random:', 'random:SEED'),
    ('random:-1', 'random:SEED'),
    ('random:4294967296', 'random:SEED'),
    (__file__, 'not a TorchScript file'),
])
def test_what_is_no_detector_is_refused_in_one_line(url, complaint):
    with pytest.raises(UserError, match=complaint) as caught:
        metric_utils.get_feature_detector(url)
    assert '\n' not in str(caught.value) and '--detector' in str(caught.value)


def test_a_detector_of_the_wrong_shape_is_refused(tmp_path):
    detector = metric_utils.get_feature_detector(save_corner_detector(tmp_path / 'corner.pt'))
    with pytest.raises(UserError, match=r'gave \[3, 3, 8, 8\] for 3 images, expected \[N, features\]'):
        detector(pixels(), return_features=False)


def test_random_detector_is_one_network_per_seed():
    first, same, other = (metric_utils.get_feature_detector(f'random:{seed}') for seed in (0, 0, 1))
    features = first(pixels())
    assert first.name == 'random:0' and features.shape == (3, 480)
    torch.testing.assert_close(features, same(pixels()), rtol=0, atol=0)
    assert (features - other(pixels())).abs().max() > 0.01
    # Frozen: another value means that the results of earlier versions no longer compare.
    assert float(features.double().sum()) == pytest.approx(196.617997, rel=1e-5)


def test_grey_images_are_seen_as_rgb():
    detector = metric_utils.get_feature_detector('random:0')
    torch.testing.assert_close(detector(pixels(channels=1)), detector(pixels(channels=1).repeat(1, 3, 1, 1)))
