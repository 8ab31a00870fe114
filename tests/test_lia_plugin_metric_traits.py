"""Which metrics can be computed with what is there, and what `all-recon` stands for."""

import hashlib
import re

import pytest

from dnnlib.util import UserError
from lia_plugin import host, metric_traits, perceptual
from lia_plugin import metrics as _registers_ours  # noqa: F401
from lia_plugin.metric_traits import ALL_RECON, Situation

ALWAYS = ['recon_mse', 'recon_psnr', 'recon_ssim', 'recon_swd']


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv('DNNLIB_CACHE_DIR', str(tmp_path / 'cache'))
    return tmp_path / 'cache'


def left_out(notes):
    (line,) = notes
    assert line.startswith('all-recon leaves out ') and '\n' not in line
    return re.findall(r'(recon_\w+) \(', line)


def test_without_any_file_those_that_need_none_at_this_size():
    names, notes = metric_traits.expand([ALL_RECON], Situation(128))
    assert sorted(names) == sorted(ALWAYS)
    assert sorted(left_out(notes)) == ['recon_fid', 'recon_fid_train', 'recon_id', 'recon_lpips', 'recon_msssim']
    assert 'recon_msssim (needs images of at least 161 pixels a side, the network makes 128)' in notes[0]
    assert "recon_lpips (needs --lpips=FILE|URL (NVIDIA's vgg16.pt), which was never downloaded)" in notes[0]
    assert 'recon_id (needs --id-detector=FILE' in notes[0]
    names, _notes = metric_traits.expand([ALL_RECON], Situation(8))
    assert sorted(names) == ['recon_mse', 'recon_psnr']


def test_with_all_files_all_of_them():
    everything = Situation(256, detector='random:0', lpips='vgg16.pt', id_detector='face.pt')
    names, notes = metric_traits.expand([ALL_RECON], everything)
    assert sorted(names) == sorted(metric_traits.reconstruction_metrics()) and len(names) == 9 and notes == []
    names, notes = metric_traits.expand([ALL_RECON], Situation(256, 'and it is gone', 'a', 'b', 'c'))
    assert notes == ['all-recon leaves out recon_fid_train (needs the training set, and it is gone)']


def test_files_that_were_downloaded_before_count(cache):
    folder = cache / 'downloads'
    folder.mkdir(parents=True)
    for url in (perceptual.VGG16_URL, host.detector_url('inception')):
        name = hashlib.md5(url.encode()).hexdigest() + '_' + url.rsplit('/', 1)[1]
        (folder / name).write_bytes(b'')
    names, notes = metric_traits.expand([ALL_RECON], Situation(64))
    assert sorted(names) == sorted([*ALWAYS, 'recon_fid', 'recon_fid_train', 'recon_lpips'])
    assert left_out(notes) == ['recon_msssim', 'recon_id']


def test_other_names_stay_where_they_are_and_nothing_is_twice():
    names, _notes = metric_traits.expand(['latent_fd', ALL_RECON, 'recon_mse', 'fid50k'], Situation(16))
    assert names[0] == 'latent_fd' and names[-1] == 'fid50k' and names.count('recon_mse') == 1
    assert metric_traits.expand(['cycle_y'], Situation(16)) == (['cycle_y'], [])


@pytest.mark.parametrize('name, situation, complaint', [
    ('recon_msssim', Situation(160), 'recon_msssim needs images of at least 161 pixels a side, the network makes 160'),
    ('recon_id', Situation(64), 'recon_id needs --id-detector=FILE'),
    ('recon_fid_train', Situation(64, 'and it is gone'), 'recon_fid_train needs the training set, and it is gone'),
    ('recon_foo', Situation(64), 'recon_foo: unknown'),
])  # fmt: skip
def test_what_cannot_be_computed_is_said_in_one_line(name, situation, complaint):
    with pytest.raises(UserError, match=complaint):
        metric_traits.check([name], situation)


def test_what_can_be_fetched_is_no_obstacle():
    metric_traits.check(['recon_lpips', 'recon_fid', 'fid50k_full', 'recon_fid_train'], Situation(64))


def test_in_nvidias_checkouts_there_is_no_swd(monkeypatch):
    monkeypatch.setattr(host, 'OURS', False)
    monkeypatch.setattr(host, 'NAME', 'stylegan3')
    monkeypatch.setattr(host, 'metric_function', lambda name: host._own_metrics[name])
    assert 'stylegan3 comes before them here' in metric_traits.obstacle('recon_swd', Situation(64))
    with pytest.raises(UserError, match='stylegan3 has no sliced Wasserstein distance'):
        host.sliced_wasserstein()
