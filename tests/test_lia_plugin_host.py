"""What lia_plugin.host does in NVIDIA's checkouts, as far as it shows outside of them; test_host_inside is inside."""

from __future__ import annotations

import hashlib
import os
import pathlib
import signal

import pytest

import dnnlib
from lia_plugin import files, host, options
from training.augment import augpipe_specs


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a checkout of stylegan2-ada-pytorch."""
    monkeypatch.setattr(host, 'OURS', False)


def test_a_stage_starts_in_a_folder_of_its_own_and_goes_on_from_what_it_left(
    elsewhere: None, tmp_path: pathlib.Path
) -> None:
    kwargs = dict(run_dir=str(tmp_path), stage='gan', total_kimg=10, resume_pkl='theirs.pkl')
    (tmp_path / 'gan-init.pkl').touch()
    first = host.place_stage(kwargs, 'state.pt')
    assert first == {**kwargs, 'run_dir': f'{tmp_path}/gan-part00', 'start_kimg': 0}
    for part, names in enumerate([['000000', '000004', '000002'], ['000000', '000001'], ['000000']]):
        (tmp_path / f'gan-part{part:02d}').mkdir()
        for name in names:
            (tmp_path / f'gan-part{part:02d}' / f'network-snapshot-{name}.pkl').touch()
    # The last part came to nothing: its kimg 0 is older than the second's 1.
    newest = f'{tmp_path}/gan-part01/network-snapshot-000001.pkl'
    assert host.place_stage(kwargs, 'state.pt') == dict(
        run_dir=f'{tmp_path}/gan-part03', stage='gan', total_kimg=5, resume_pkl=newest, start_kimg=0)
    # Five kimg of eight are over: what follows a schedule begins there.
    timed = dict(kwargs, total_kimg=8, batch_size=16, G_opt_kwargs=dict(lr=1, total_steps=500), D_opt_kwargs=dict(lr=1),
                 loss_kwargs=dict(total_kimg=8))
    later = host.place_stage(timed, 'state.pt')
    assert later['G_opt_kwargs'] == dict(lr=1, total_steps=500, first_step=round(5000 / 16))
    assert later['D_opt_kwargs'] == dict(lr=1) and later['loss_kwargs'] == dict(total_kimg=8, first_kimg=5)
    # Stage 2's count begins where stage 1 ended in our loop, at 0 in NVIDIA's.
    later = host.place_stage(dict(kwargs, stage='encoder', start_kimg=10, total_kimg=13), 'state.pt')
    assert (later['start_kimg'], later['total_kimg'], later['resume_pkl']) == (0, 3, 'theirs.pkl')


def test_in_our_host_the_exact_state_is_named(tmp_path: pathlib.Path) -> None:
    kwargs = dict(run_dir=str(tmp_path), stage='gan', total_kimg=10)
    assert host.place_stage(kwargs, 'state.pt')['resume_state'] is None
    (tmp_path / 'state.pt').touch()
    assert host.place_stage(kwargs, 'state.pt') == {**kwargs, 'resume_state': f'{tmp_path}/state.pt'}


@pytest.mark.parametrize('name', options.AUGPIPES)
def test_augmentation_pipes_are_named_alike(name: str, elsewhere: None) -> None:
    assert host.augpipe(name) == dict(augpipe_specs[name])


def test_which_network_a_metric_looks_through_is_its_trait_here_and_known_by_family_elsewhere(
    monkeypatch: pytest.MonkeyPatch
) -> None:
    import lia_plugin.metrics  # noqa: F401
    from metrics import metric_main

    ours = {name: host.needed_detector(name) for name in metric_main.list_valid_metrics()}
    expected = dict(fid50k='inception', recon_fid='inception', is50k='inception', pr50k3_full='vgg16', ppl_zend='vgg16',
                    swd=None, recon_mse=None, cycle_z=None)
    assert ours.items() >= expected.items()
    monkeypatch.setattr(host, 'OURS', False)
    monkeypatch.setattr(metric_main, 'is_valid_metric', lambda name: True)
    theirs = dict(fid50k_full='inception', kid50k='inception', pr50k3='vgg16', ppl2_wend='vgg16', is50k='inception',
                  eqt50k_int=None, recon_fid='inception', recon_mse=None)
    assert {name: host.needed_detector(name) for name in theirs} == theirs


def test_only_our_host_has_a_sliced_wasserstein_distance(monkeypatch: pytest.MonkeyPatch) -> None:
    assert host.sliced_wasserstein().NUM_IMAGES == 16384
    monkeypatch.setattr(host, 'OURS', False)
    with pytest.raises(host.UserError, match='--metrics: .* has no sliced Wasserstein distance'):
        host.sliced_wasserstein()


@pytest.mark.parametrize('metrics, networks', [
    (['recon_mse', 'swd', 'cycle_y'], []), (['fid50k', 'kid50k', 'recon_fid'], ['inception']),
    (['ppl2_wend', 'is50k', 'pr50k3'], ['inception', 'vgg16']),
])
def test_each_network_that_is_needed_is_fetched_once(
    metrics: list[str], networks: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import lia_plugin.metrics  # noqa: F401
    from metrics import detectors, metric_main

    opened: list[str] = []
    monkeypatch.setattr(detectors, 'get_feature_detector', lambda url, verbose: opened.append(url))
    host.fetch_detectors(metrics, None)
    assert opened == [detectors.URLS[network] for network in networks]
    opened.clear()
    monkeypatch.setattr(host, 'OURS', False)
    monkeypatch.setattr(metric_main, 'is_valid_metric', lambda name: True)
    monkeypatch.setattr(host, '_own_metrics', {name: metric_main.get_metric(name) for name in metrics if '_' in name
                                               and name.startswith(('recon', 'cycle'))})
    monkeypatch.setattr(host, 'fetch', opened.append)
    host.fetch_detectors(metrics, None)
    assert len(opened) == len(networks) and all('nvlabs' in url and url.endswith('.pt') for url in opened)


def test_labels_are_read_alike(elsewhere: None) -> None:
    assert host.parse_labels(b'{"labels": [["a.png", 1], ["b.png", [0.5, 2]]]}', 'x') == {'a.png': 1, 'b.png': [0.5, 2]}
    assert host.parse_labels(b'{"labels": null}', 'x') is None
    for damaged in (b'', b'[]', b'{}', b'{"labels": [1]}', b'{"labels": [["a"]]}'):
        with pytest.raises(host.UserError, match='^x: must be'):
            host.parse_labels(damaged, 'x')


def test_networks_get_the_names_of_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = dict(G_kwargs=dict(class_name='lia_plugin.networks.Generator'),
                 D_kwargs=dict(class_name='training.networks.Discriminator', channel_max=8))
    assert host.adapt_stage(stage) == stage
    monkeypatch.setattr(host, 'networks_module', lambda: 'training.networks_stylegan2')
    assert host.adapt_stage(stage) == dict(
        G_kwargs=stage['G_kwargs'],
        D_kwargs=dict(class_name='training.networks_stylegan2.Discriminator', channel_max=8))


def test_the_first_ctrl_c_asks_and_the_second_breaks(capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), host._interruptible() as interrupted:
        assert not interrupted()
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupted() and 'Stopping at the end of this tick' in capsys.readouterr().out
        os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


class StockOptions:
    """What NVIDIA's hosts give a metric: no notes, nothing to share."""


def test_metrics_elsewhere_get_the_options_of_our_command_and_their_notes_reach_the_result(
    elsewhere: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from metrics import metric_main

    seen = []

    def calc(metric: str, dataset_kwargs: dict[str, object], progress: object, G: str) -> dict[str, object]:
        """Theirs: takes no option of ours."""
        opts = StockOptions()
        seen.append([host.metric_option(opts, name) for name in ('space', 'lpips', 'num')])
        shared = host.metric_option(opts, 'shared')
        shared['passes'] = shared.get('passes', 0) + 1
        return dict(metric=metric, results=host.say(opts, dict(mine=1.0), 7, space='y'), max_size=dataset_kwargs)

    monkeypatch.setattr(metric_main, 'calc_metric', calc)
    shared = dict(space='y', lpips=None)
    for _ in range(2):
        result = host.calc_metric('mine', dict(path='x'), False, dict(num=5, batch=None), shared, G='G')
    assert seen == [['y', None, None]] * 2 and shared['passes'] == 2
    assert result == dict(metric='mine', results=dict(mine=1.0), n=7, space='y', max_size=dict(path='x', max_size=5))
    # In their training loop there is no command of ours: n stands among the numbers.
    assert host.metric_option(StockOptions(), 'space') is None
    assert host.say(StockOptions(), dict(mine=1.0), 7, space='y') == dict(mine=1.0, mine_n=7)


def test_names_of_images_are_found_alike(elsewhere: None) -> None:
    class Stock:
        """NVIDIA's data sets keep names and order to themselves."""

        _image_fnames = ['a.png', 'b.png', 'c.png']

        def __len__(self) -> int:
            return 2

        def get_details(self, idx: int) -> dnnlib.EasyDict:
            return dnnlib.EasyDict(raw_idx=[2, 0][idx])

    assert host.image_names(Stock()) == ['c.png', 'a.png']


def test_hashes_are_those_of_the_content(tmp_path: pathlib.Path) -> None:
    path = tmp_path / 'file'
    path.write_bytes(b'abc' * 10**6)
    assert files.file_hash(str(path)) == host.file_hash(str(path)) == hashlib.sha256(b'abc' * 10**6).hexdigest()
