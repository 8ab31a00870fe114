"""The audit command, from a data set with planted faults to a filtered data set."""

import csv
import io
import json
import os
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from test_lia_plugin_inversion import RESOLUTION, make_generator, save_pickle

from lia_plugin import audit, audit_report, calibration, charts, cli, host, prior, targets
from lia_plugin.audit import Rules
from lia_plugin.host import UserError
from training.dataset import ImageFolderDataset
from training.dataset_convert import Options, convert
from training.dataset_sources import open_source, read_names

CPU = torch.device('cpu')
N = 60


def photo(seed: int, channels: int = 3) -> np.ndarray:
    """Images of one family, in which even a random encoder sees what is foreign: a soft blob on a gradient."""
    stream = np.random.default_rng(seed)
    y, x = np.mgrid[0:RESOLUTION, 0:RESOLUTION] / RESOLUTION
    cx, cy, slope = stream.uniform(0.2, 0.8), stream.uniform(0.2, 0.8), stream.uniform(-1, 1)
    grey = 110 + 60 * slope * (x - 0.5) + 90 * np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / 0.03)
    tint = stream.uniform(0.8, 1.0, [channels])
    return (grey[:, :, None] * tint).clip(0, 255).astype(np.uint8)


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    PIL.Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(buffer, format='PNG')
    return buffer.getvalue()


def name(i: int) -> str:
    return f'00000/img{i:03d}.png'


def planted(channels: int = 3) -> dict[int, np.ndarray]:
    """The family with duplicates (20 of 4, 21 mirrored of 5, 22 nearly 6) and foreign images (30: checkerboard,
    31: noise)."""
    images = {i: photo(i, channels) for i in range(N)}
    images[20] = images[4]
    images[21] = images[5][:, ::-1]
    images[22] = (images[6].astype(int) + np.random.default_rng(0).integers(-3, 4, images[6].shape)).clip(0, 255)
    board = np.indices([RESOLUTION, RESOLUTION]).sum(axis=0) % 2 * 255
    images[30] = np.repeat(board[:, :, None], channels, axis=2)
    images[31] = np.random.default_rng(1).integers(0, 256, images[0].shape)
    return images


def save_set(path: Path, channels: int = 3, labels: bool = False, extra: dict[str, bytes] | None = None) -> str:
    with zipfile.ZipFile(path, 'w') as archive:
        for i, image in planted(channels).items():
            archive.writestr(name(i), png(image.astype(np.uint8)))
        for other, content in (extra or {}).items():
            archive.writestr(other, content)
        if labels:
            archive.writestr('dataset.json', json.dumps({'labels': [[name(i), i % 3] for i in range(N)]}))
    return str(path)


@pytest.fixture(autouse=True)
def short_page(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing a hundred pictures takes longer than the audit of a small set."""
    if 'page' not in request.node.name:
        monkeypatch.setattr(audit_report, 'SHOWN', 2)


@pytest.fixture(scope='module')
def network(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_pickle(tmp_path_factory.mktemp('network') / 'lia.pkl', make_generator())


@pytest.fixture(scope='module')
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_set(tmp_path_factory.mktemp('data') / 'set.zip', labels=True)


def run(network: str, data: str, out: Path, *args: str) -> int:
    command = ['--device=cpu', '--near=0.01', f'--network={network}', f'--data={data}', f'--outdir={out}', *args]
    return cli.run(cli.load_command('audit'), command)


def read_csv(out: Path) -> dict[str, dict[str, str]]:
    with open(out / 'audit.csv', encoding='utf-8', newline='') as file:
        return {row['file']: row for row in csv.DictReader(file)}


def kept(out: Path) -> list[str]:
    lines = (out / 'keep.txt').read_text(encoding='utf-8').splitlines()
    return [line for line in lines if not line.startswith('#')]


def test_planted_faults_are_found(network: str, data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(network, data, tmp_path / 'out') == 0
    rows = read_csv(tmp_path / 'out')
    assert list(rows) == [name(i) for i in range(N)]
    repeats = {i: (rows[name(i)]['duplicate_kind'], rows[name(i)]['duplicate_of']) for i in (20, 21, 22)}
    assert repeats == {20: ('exact', name(4)), 21: ('mirrored', name(5)), 22: ('near', name(6))}
    assert sum(row['duplicate_kind'] != '' for row in rows.values()) == 3
    assert rows[name(20)]['duplicate_group'] == rows[name(4)]['duplicate_group'] != ''
    by_error = sorted(rows, key=lambda key: int(rows[key]['rank_error']))
    by_code = sorted(rows, key=lambda key: int(rows[key]['rank_atypical']))
    assert set(by_error[:2]) == set(by_code[:2]) == {name(30), name(31)}
    assert all('code' in rows[name(i)]['odd'] for i in (30, 31))
    assert {key for key, row in rows.items() if row['odd']} == {name(30), name(31)}
    assert kept(tmp_path / 'out') == [name(i) for i in range(N) if i != 20]
    said = capsys.readouterr().out
    assert 'odd by error: 2: ' in said and 'odd by code: 2: ' in said
    assert '1 exact, 1 mirrored, 1 near' in said and 'keep 59, drop 1' in said


def test_figures_are_those_of_the_network(network: str, data: str, tmp_path: Path) -> None:
    run(network, data, tmp_path / 'out')
    G, rows = make_generator(), read_csv(tmp_path / 'out')
    img = torch.from_numpy(np.stack([planted()[i] for i in range(N)]).transpose(0, 3, 1, 2)) / 127.5 - 1
    y, z = G.invert(img.float(), None)
    recon = G.decode(y, None, noise_mode='const').clamp(-1, 1)
    for key, expected in (
        ('mse', (img - recon).square().mean(dim=[1, 2, 3])), ('z_norm2', prior.squared_norm(z)),
        ('log_prob', G.mapping.log_prob(y)), ('typicality', prior.typicality(z)),
    ):  # fmt: skip
        found = [float(rows[name(i)][key]) for i in range(N)]
        np.testing.assert_allclose(found, expected.numpy(), rtol=2e-4, atol=1e-12)
    norms = prior.squared_norm(z.double()).numpy()
    own = [2 * min((norms <= t).sum(), (norms >= t).sum()) / N for t in norms]
    assert [float(rows[name(i)]['typicality_set']) for i in range(N)] == pytest.approx(np.minimum(own, 1), abs=1e-5)


def test_the_kept_images_become_a_data_set_with_their_labels(network: str, data: str, tmp_path: Path) -> None:
    options = ['--drop-duplicates=all', '--drop-worst=0.04', '--drop-atypical=0.04']
    assert run(network, data, tmp_path / 'out', *options) == 0
    expected = [i for i in range(N) if i not in (20, 21, 22, 30, 31)]
    assert kept(tmp_path / 'out') == [name(i) for i in expected]
    reasons = {i: read_csv(tmp_path / 'out')[name(i)]['reasons'] for i in (21, 30)}
    assert reasons[21] == f'mirrored duplicate of {name(5)}'
    assert 'worst reconstruction: rank' in reasons[30] and 'least typical code: rank' in reasons[30]
    args = [f'--source={data}', f'--dest={tmp_path / "clean.zip"}', f'--include={tmp_path / "out" / "keep.txt"}']
    assert cli.run(cli.load_command('dataset_tool'), args) == 0
    clean = ImageFolderDataset(str(tmp_path / 'clean.zip'), use_labels=True)
    assert len(clean) == len(expected)
    for place, i in enumerate(expected):
        image, label = clean[place]
        np.testing.assert_array_equal(image, planted()[i].transpose(2, 0, 1))
        assert label.argmax() == i % 3


@pytest.mark.parametrize('options', [['--batch=7', '--num=60'], pytest.param(['--gpus=2'], marks=pytest.mark.slow)])
def test_batches_and_processes_change_nothing(network: str, data: str, tmp_path: Path, options: list[str]) -> None:
    assert run(network, data, tmp_path / 'a') == run(network, data, tmp_path / 'b', *options) == 0
    one, other = read_csv(tmp_path / 'a'), read_csv(tmp_path / 'b')
    assert (tmp_path / 'a' / 'keep.txt').read_bytes() == (tmp_path / 'b' / 'keep.txt').read_bytes()
    for key in one:
        for column in ('mse', 'log_prob', 'distance', 'p_distance'):
            assert float(one[key][column]) == pytest.approx(float(other[key][column]), rel=1e-3), column


def test_tf32_is_off_in_all_that_an_audit_computes(
    network: str, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, bool] = {}

    def watched(function: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            seen[function.__name__] = torch.backends.cudnn.allow_tf32 or torch.backends.cuda.matmul.allow_tf32
            result = function(*args, **kwargs)
            if function is not judge:  # That of another process, where there are several.
                torch.backends.cudnn.allow_tf32 = True
            return result

        return call

    measure, judge, save = audit.measure, audit.judge, audit_report.save_all
    monkeypatch.setattr(torch.backends.cudnn, 'allow_tf32', True)
    monkeypatch.setattr(audit, 'measure', watched(measure))
    monkeypatch.setattr(audit, 'judge', watched(judge))
    monkeypatch.setattr(audit_report, 'save_all', watched(save))
    assert run(network, data, tmp_path / 'out') == 0
    assert seen == {'measure': False, 'judge': False, 'save_all': False}


def test_unreadable_images_are_counted_and_named(
    network: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    extra = {'a/bad.png': b'not a png', 'notes.txt': b'x', '#1.png': png(photo(99))}
    broken = save_set(tmp_path / 'set.zip', extra=extra)
    assert run(network, broken, tmp_path / 'out') == 1
    err = capsys.readouterr().err
    assert '1 of 62 images could not be read: a/bad.png' in err
    row = read_csv(tmp_path / 'out')['a/bad.png']
    assert row['suggestion'] == 'drop' and 'not an image file' in row['reasons'] and row['mse'] == ''
    assert 'a/bad.png' not in kept(tmp_path / 'out') and './#1.png' in kept(tmp_path / 'out')
    assert json.loads((tmp_path / 'out' / 'audit.json').read_text())['unreadable'] == ['a/bad.png']


def test_the_list_names_just_what_the_data_set_has(network: str, tmp_path: Path) -> None:
    """Also with what macOS leaves in zips, and names that Windows' tools write."""
    debris = {'__MACOSX/00000/._img000.png': b'x', 'b/._c.png': b'x'}
    data = save_set(tmp_path / 'set.zip', extra={**debris, 'sub\\d.png': png(photo(70)), 'e.JPG': png(photo(71))})
    assert run(network, data, tmp_path / 'out', '--drop-duplicates=no') == 0
    source = open_source(data)
    assert kept(tmp_path / 'out') == sorted(source.name(i).replace('\\', '/') for i in range(len(source)))
    report = convert(data, str(tmp_path / 'all.zip'), Options(workers=0, include=str(tmp_path / 'out' / 'keep.txt')))
    assert report.num_images == N + 2


@pytest.mark.skipif(os.name == 'nt' or sys.platform == 'darwin', reason='such names do not exist there')
def test_names_that_are_not_utf_8_come_through_the_list_and_leave_the_terminal_alone(
    network: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / b'set\xfe'.decode('utf-8', 'surrogateescape')
    folder.mkdir()
    for i in range(12):
        (folder / f'{i:02d}.png').write_bytes(png(photo(i)))
    more = {b'\xff\xe9.png': png(photo(50)), b'\xff.png': png(photo(3)), b'\xe9.png': b'x', b'\x1b[2J.png': b'x',
            'ü.png'.encode(): png(planted()[31].astype(np.uint8))}  # fmt: skip
    for other, content in more.items():
        (folder / os.fsdecode(other)).write_bytes(content)
    out = tmp_path / 'out'
    assert run(network, str(folder), out) == 1
    said = capsys.readouterr()
    assert '2 of 17 images could not be read: \\x1b[2J.png, \\udce9.png' in said.err and '\x1b' not in said.err
    assert 'ü.png' in said.out
    (out / 'audit.csv').read_text(encoding='utf-8')
    told = json.loads((out / 'audit.json').read_text(encoding='utf-8'))
    assert told['unreadable'] == ['\x1b[2J.png', '\\udce9.png'] and told['calibration']['data'] == 'set\\udcfe'
    assert '03.png; \\udcff.png (exact' in (out / 'index.html').read_text(encoding='utf-8')
    assert read_csv(out)['\\udcff.png']['duplicate_of'] == '03.png'
    lines = [line for line in (out / 'keep.txt').read_bytes().split(b'\n') if line and not line.startswith(b'#')]
    assert lines == [b'%02d.png' % i for i in range(12)] + ['ü.png'.encode(), b'\xff\xe9.png']
    report = convert(str(folder), str(tmp_path / 'all.zip'), Options(workers=0, include=str(out / 'keep.txt')))
    assert report.num_images == 14


@pytest.mark.parametrize('name, listed', [('\udcff', True), ('a\nb', False), ('\ud800', False), ('ü', True)])
def test_which_names_a_list_can_hold(name: str, listed: bool, tmp_path: Path) -> None:
    others = [targets.Target(f'{name}.png', None, 'x', '.')]
    audit_report.save_keep(str(tmp_path / 'keep.txt'), [], others, 'set.zip')
    names = [*read_names(str(tmp_path / 'keep.txt'))] if listed else kept(tmp_path)
    assert names == [f'{name}.png'] * listed


@pytest.mark.parametrize('channels, c_dim', [(1, 0), (3, 3), (1, 3)])
def test_grey_and_conditional_networks(tmp_path: Path, channels: int, c_dim: int) -> None:
    G = make_generator(c_dim=c_dim, channels=channels)
    network = save_pickle(tmp_path / 'lia.pkl', G)
    data = save_set(tmp_path / 'set.zip', channels=channels, labels=True)
    assert run(network, data, tmp_path / 'out') == 0
    rows = read_csv(tmp_path / 'out')
    img = torch.from_numpy(photo(1, channels).transpose(2, 0, 1)[None] / 127.5 - 1).float()
    c = torch.eye(3)[[1]] if c_dim else None
    assert float(rows[name(1)]['log_prob']) == pytest.approx(float(G.mapping.log_prob(G.encode(img, c), c)), rel=1e-4)
    assert rows[name(20)]['duplicate_kind'] == 'exact'


def test_part_of_a_set_and_what_was_not_looked_at_is_kept(network: str, data: str, tmp_path: Path) -> None:
    assert run(network, data, tmp_path / 'out', '--num=30', '--drop-worst=0.1') == 0
    rows, names = read_csv(tmp_path / 'out'), kept(tmp_path / 'out')
    assert list(rows) == [name(i) for i in range(0, N, 2)] and len(names) == N - 3
    assert set(names) >= {name(i) for i in range(1, N, 2)}
    assert '30 of them were not looked at' in (tmp_path / 'out' / 'keep.txt').read_text()


def test_a_set_is_compared_with_another_ones_calibration(network: str, data: str, tmp_path: Path) -> None:
    run(network, data, tmp_path / 'first')
    made = tmp_path / 'first' / 'calibration.npz'
    usual = calibration.load(made, make_generator())
    assert (usual.n, usual.data) == (N, 'set.zip')
    folder = tmp_path / 'new'
    folder.mkdir()
    for i in range(100, 112):
        (folder / f'{i}.png').write_bytes(png(photo(i) if i != 105 else planted()[31].astype(np.uint8)))
    assert run(network, str(folder), tmp_path / 'second', f'--calibration={made}') == 0
    rows = read_csv(tmp_path / 'second')
    assert float(rows['105.png']['p_distance']) <= 3 / (N + 1) < 0.06 and rows['105.png']['rank_atypical'] == '1'
    assert not (tmp_path / 'second' / 'calibration.npz').exists()
    told = json.loads((tmp_path / 'second' / 'audit.json').read_text())
    assert told['calibration']['data'] == 'set.zip' and told['n'] == 12


def test_the_page_and_the_figures_of_the_set(network: str, data: str, tmp_path: Path) -> None:
    run(network, data, tmp_path / 'out')
    text = (tmp_path / 'out' / 'index.html').read_text(encoding='utf-8')
    for heading in ('Worst reconstructions', 'Least typical codes', 'Most typical', 'Duplicates', 'Look-alikes'):
        assert f'<h2>{heading}' in text
    assert text.count('<img') > 60 and f'{name(4)}; {name(20)} (exact' in text
    told = json.loads((tmp_path / 'out' / 'audit.json').read_text())
    G = make_generator()
    assert told['network_hash'] == calibration.network_hash(G) and told['n'] == N and told['kept'] == N - 1
    mse = [float(row['mse']) for row in read_csv(tmp_path / 'out').values()]
    assert told['quantiles']['mse']['0.5'] == pytest.approx(np.median(mse), rel=1e-4)
    assert '2 images are odd by their error, 2 by their code, 2 by both' in text
    assert set(told['worst'][:2]) == {name(30), name(31)} and set(told['units']) == set(audit.UNITS)


@pytest.mark.parametrize('args, reason', [
    (['--data=nowhere.zip'], '--data=nowhere.zip: no such file'),
    (['--drop-worst=1'], '--drop-worst'),
    (['--drop-atypical=nan'], '--drop-atypical'),
    (['--drop-duplicates=maybe'], '--drop-duplicates'),
    (['--calibration=none.npz'], 'none.npz: no such file'),
    (['--class=3'], '--class'),
    (['--num=5'], '5 images are too few'),
    (['--network=none.pkl'], 'none.pkl'),
    (['--outdir={tmp}/file', '--network=none.pkl'], '--outdir: '),
])
def test_bad_calls_are_one_line_and_leave_nothing(
    network: str, data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], args: list[str], reason: str
) -> None:
    (tmp_path / 'file').write_bytes(b'')
    assert run(network, data, tmp_path / 'out', *(arg.format(tmp=tmp_path) for arg in args)) == 2
    err = capsys.readouterr().err.strip()
    assert err.startswith('Error: ') and reason in err and '\n' not in err
    assert not (tmp_path / 'out').exists()


def test_a_pattern_of_several_folders_is_refused_and_of_one_taken(
    network: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for i in range(20):
        folder = tmp_path / f'set{i % 2}' / 'inner'
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f'{i:02d}.png').write_bytes(png(photo(i)))
        (tmp_path / f'{i:02d}.png').write_bytes(png(photo(i)))
    for pattern in ('set*', '*.png'):
        assert run(network, str(tmp_path / pattern), tmp_path / 'out') == 2
        assert 'several places or images; an audit takes one folder or zip' in capsys.readouterr().err
    assert not (tmp_path / 'out').exists()
    assert run(network, str(tmp_path / '*1'), tmp_path / 'out') == 0
    assert kept(tmp_path / 'out') == [f'inner/{i:02d}.png' for i in range(1, 20, 2)]


def test_sets_that_can_not_be_audited(network: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / 'one.png').write_bytes(png(photo(0)))
    with zipfile.ZipFile(tmp_path / 'bad.zip', 'w') as archive:
        archive.writestr('a.png', b'x')
    stage_one = save_pickle(tmp_path / 'one.pkl', make_generator(encoder=False))
    for pickle, path, reason in ((network, 'one.png', 'a single image'), (network, 'bad.zip', 'none of its 1 images'),
                                 (stage_one, 'bad.zip', 'has no encoder')):  # fmt: skip
        assert run(pickle, str(tmp_path / path), tmp_path / 'out') == 2
        assert reason in capsys.readouterr().err and not (tmp_path / 'out').exists()


# ---------------------------------------------------------------------------------------------------------------------
# Functions


def test_the_score_of_spread() -> None:
    values = np.arange(101.0)
    assert audit.spread_score(np.array([50.0, 100, 0, 225]), values).tolist() == [0, 1, -1, 3.5]
    assert (audit.spread_score(np.full(9, 3.0)) == 0).all()


def test_pair_mse_is_the_mean_squared_difference_of_two_random_images(data: str) -> None:
    G = make_generator()
    measured = audit.measure(G, targets.collect([data]), CPU, batch=13)
    img = np.stack([planted()[i] for i in range(N)]) / 127.5 - 1
    every = [np.square(a - b).mean() for a in img for b in img]  # With replacement.
    assert measured.pair_mse == pytest.approx(np.mean(every), rel=1e-6)


def test_parts_of_processes_come_together(data: str) -> None:
    G, items = make_generator(), targets.collect([data])
    whole = audit.measure(G, items, CPU)
    merged = audit.merge([audit.measure(G, items, CPU, rank=rank, world_size=3) for rank in (2, 0, 1)])
    assert merged.items.tolist() == list(range(N)) and merged.hashes.tobytes() == whole.hashes.tobytes()
    np.testing.assert_allclose(merged.z, whole.z, atol=1e-4)
    assert merged.pair_mse == pytest.approx(whole.pair_mse) and merged.failures == {}


@pytest.mark.slow
def test_many_images_are_read_by_other_processes(data: str, monkeypatch: pytest.MonkeyPatch) -> None:
    G, items = make_generator(), targets.collect([data])
    expected = audit.measure(G, items, CPU)
    monkeypatch.setattr(host, 'loader_workers', lambda num_items: num_items // N)
    told: list[tuple[int, int]] = []
    found = audit.measure(G, items, CPU, progress=lambda done, total: told.append((done, total)))
    assert found.hashes.tobytes() == expected.hashes.tobytes() and told == [(32, N), (N, N)]


def test_codes_that_are_not_finite_are_refused(data: str) -> None:
    G = make_generator()
    measured = audit.measure(G, targets.collect([data])[:12], CPU)
    measured.z[3] = np.nan
    with pytest.raises(UserError, match='not finite'):
        audit.judge(measured, None, Rules(), lambda index: torch.zeros([3, 16, 16]), 'hash', 'set.zip')


def test_perfect_reconstructions_are_no_oddity(data: str) -> None:
    G = make_generator()
    measured = audit.measure(G, targets.collect([data])[:12], CPU)
    measured.mse[:] = 0
    judged = audit.judge(measured, None, Rules(near=0), lambda index: torch.zeros([3, 16, 16]), 'hash', 'set.zip')
    assert not judged.odd_error.any() and np.isinf(judged.figures['psnr']).all()


def test_a_label_that_does_not_fit_is_one_line(data: str) -> None:
    read = audit.label_reader(SimpleNamespace(c_dim=2), None, targets.collect([data]))
    labels = [read(target) for target in targets.collect([data])[:2]]
    assert [label.tolist() for label in labels if label is not None] == [[1, 0], [0, 1]]
    with pytest.raises(UserError, match='is of class 2'):
        read(targets.collect([data])[2])


def test_a_histogram_shows_values_and_what_was_expected_of_them() -> None:
    values = np.random.default_rng(0).normal(size=4000)
    picture = charts.histogram(values, 'x', lambda x: np.exp(-x**2 / 2) / np.sqrt(2 * np.pi))
    assert picture.shape == (3, charts.HEIGHT, charts.WIDTH) and picture.dtype == torch.uint8
    bars = (picture[2].int() - picture[0].int() > 60).sum(dim=0)[charts.LEFT : -charts.RIGHT]
    middle = bars[len(bars) // 3 : -len(bars) // 3].float().mean()
    assert middle > 3 * bars[:60].float().mean()
    far = charts.axis_range(np.append(values, 1e6))
    assert far[1] < 10 and charts.axis_range(np.full(5, 2.0)) == (1.5, 2.5)


def test_nothing_in_a_name_reaches_the_page_as_html(network: str, tmp_path: Path) -> None:
    evil: Any = {'<script>alert(1)</script>.png': png(planted()[31].astype(np.uint8))}
    data = save_set(tmp_path / 'set.zip', extra=evil)
    assert run(network, data, tmp_path / 'out') == 0
    assert '<script' not in (tmp_path / 'out' / 'index.html').read_text(encoding='utf-8')
