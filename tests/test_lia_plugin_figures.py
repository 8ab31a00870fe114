"""The figures command, from tiny networks of every kind to a page, and what becomes of bad inputs."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from figure_exhibits import deep_generator, exhibit, read, run, words
from test_lia_plugin_inversion import make_generator, save_pickle, save_pictures

import dnnlib
from lia_plugin import embedding, figure_lengths, figure_paths, figures
from lia_plugin.directions import make_direction, save_directions
from lia_plugin.host import UserError

SMALL = ['--num=8', '--opt-num=3', '--pairs=2', '--samples=12', '--steps=3', '--refine=2', '--shown=2', '--batch=4']
REALS = ['paths', 'reconstructions', 'manipulation', 'lengths']


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('DNNLIB_CACHE_DIR', str(tmp_path / 'cache'))


@pytest.fixture(scope='module')
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_pictures(tmp_path_factory.mktemp('data') / 'set', 10))


@pytest.fixture(scope='module')
def G() -> Any:
    return make_generator()


@pytest.fixture(scope='module')
def network(G: Any, tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_pickle(tmp_path_factory.mktemp('network') / 'lia.pkl', G)


# ---------------------------------------------------------------------------------------------------------------------
# The command


def test_a_page_with_all_figures(network: str, data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / 'out'
    assert run(out, f'--network={network}', f'--data={data}', f'--only={",".join(REALS)}', *SMALL) == 0
    found = read(out)
    assert list(found['figures']) == REALS and found['missing'] == {} and found['num'] == 8
    text = words(out)
    files = [file for figure in found['figures'].values() for file in figure['files']]
    assert len(files) == len(set(files)) and text.count('<img') == len(files)
    assert sorted(path.name for path in out.glob('*.png')) == sorted(files)
    assert 'src="http' not in text and re.search(r'[>\s+±]nan\b', text) is None
    measured = found['figures']['paths']
    lengths = measured['per_pair']['z']['length']
    assert len(lengths) == 2 and sum(lengths) / 2 == pytest.approx(measured['paths']['z']['length']['mean'])
    assert len(measured['pairs']) == 2 and measured['features'] == 'pixels'
    assert set(found['figures']['reconstructions']['methods']) == {'encoder', 'refined', 'map', 'optimised'}
    assert 'index.html' in capsys.readouterr().out


def test_the_same_command_gives_the_same_numbers(network: str, data: str, tmp_path: Path) -> None:
    given = [*SMALL, f'--network={network}', f'--data={data}']
    outs = [tmp_path / name for name in ('a', 'b')]
    assert [run(out, *given, '--only=paths,lengths,manipulation', '--seed=3') for out in outs] == [0, 0]
    assert read(outs[0])['figures'] == read(outs[1])['figures']
    assert run(outs[1], *given, '--only=paths', '--seed=4') == 0
    assert read(outs[0])['figures']['paths']['pairs'] != read(outs[1])['figures']['paths']['pairs']


def test_the_swiss_roll_needs_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lia_plugin import figure_swiss_roll

    for name in ('PAIRS', 'SHOWN', 'HELD_OUT', 'STEPS'):
        monkeypatch.setattr(figure_swiss_roll, name, 20)
    assert run(tmp_path / 'out', '--only=swiss-roll', '--roll-steps=2') == 0
    assert read(tmp_path / 'out')['figures']['swiss-roll']['pairs'] == 20


def test_stage_1_has_what_needs_no_encoder(tmp_path: Path, data: str, capsys: pytest.CaptureFixture[str]) -> None:
    network = save_pickle(tmp_path / 'stage1.pkl', make_generator(encoder=False))
    out = tmp_path / 'out'
    assert run(out, f'--network={network}', f'--data={data}', f'--only={",".join(REALS)}', *SMALL) == 1
    found = read(out)
    assert set(found['figures']) == {'reconstructions', 'manipulation', 'lengths'}
    assert set(found['figures']['reconstructions']['methods']) == {'optimised'}
    assert found['missing']['paths'] == 'needs an encoder, and this network is of stage 1'
    assert found['missing']['paths'] in (out / 'index.html').read_text(encoding='utf-8')
    assert f'paths: left out: {found["missing"]["paths"]}' in capsys.readouterr().err


def test_without_data_there_are_directions_alone(network: str, tmp_path: Path) -> None:
    out = tmp_path / 'out'
    assert run(out, f'--network={network}', f'--only={",".join(REALS)}', *SMALL) == 1
    assert list(read(out)['figures']) == ['manipulation']
    assert set(read(out)['missing'].values()) == {'needs real images: give --data'}


def test_codes_of_layers_and_grey_images(data: str, tmp_path: Path) -> None:
    out, network = tmp_path / 'out', save_pickle(tmp_path / 'deep.pkl', deep_generator())
    assert run(out, f'--network={network}', f'--data={data}', f'--only={",".join(REALS)}', *SMALL) == 0
    found = read(out)['figures']
    assert found['paths']['space'] == 'y+'
    assert set(found['reconstructions']['methods']) == {'encoder', 'encoder-y', 'refined', 'map', 'optimised'}


def test_a_conditional_network(tmp_path: Path) -> None:
    folder = save_pictures(tmp_path / 'set', 8)
    names = sorted(path.name for path in folder.glob('*.png'))
    (folder / 'dataset.json').write_text(json.dumps({'labels': [[name, i % 2] for i, name in enumerate(names)]}))
    out, network = tmp_path / 'out', save_pickle(tmp_path / 'c.pkl', make_generator(c_dim=2))
    assert run(out, f'--network={network}', f'--data={folder}', f'--only={",".join(REALS)}', *SMALL) == 0
    for a, b in read(out)['figures']['paths']['pairs']:
        assert int(Path(a).stem[-1]) % 2 == int(Path(b).stem[-1]) % 2, 'both of one class'


def test_bad_images_are_counted_and_the_rest_is_done(
    network: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = save_pictures(tmp_path / 'set', 6)
    (folder / 'broken.png').write_bytes(b'no image')
    out = tmp_path / 'out'
    assert run(out, f'--network={network}', f'--data={folder}', '--only=paths,lengths', *SMALL) == 1
    assert read(out)['unreadable'] == 1 and set(read(out)['figures']) == {'paths', 'lengths'}
    assert '1 images could not be used' in capsys.readouterr().err


def test_without_scikit_learn_the_map_is_left_out(
    network: str, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedding, 'is_installed', lambda: False)
    out = tmp_path / 'out'
    assert run(out, f'--network={network}', f'--data={data}', '--only=paths', *SMALL) == 0
    assert read(out)['figures']['paths']['files'] == ['paths.png', 'paths-profiles.png']
    assert 'scikit-learn' in (out / 'index.html').read_text(encoding='utf-8')


def bad_calls(folder: Path, network: str, data: str) -> Iterator[tuple[list[str], str]]:
    stock = dnnlib.util.construct_class_by_name(
        class_name='training.networks.Generator', z_dim=8, c_dim=0, w_dim=8, img_resolution=16, img_channels=3,
        synthesis_kwargs=dict(channel_base=128, channel_max=8))  # fmt: skip
    given = [f'--network={network}', f'--data={data}']
    empty = folder / 'empty'
    empty.mkdir()
    (folder / 'broken').mkdir()
    (folder / 'broken' / 'a.png').write_bytes(b'no image')
    (folder / 'text.csv').write_text('file,smile\nnobody.png,1\n')
    yield [], "Missing option '--network'"
    yield ['--only=swiss-rolls'], '--only: swiss-rolls: there are swiss-roll, paths'
    yield ['--only=,'], '--only: none named'
    yield ['--only=swiss-roll', *given], '--network: swiss-roll needs none'
    yield [f'--network={folder / "none.pkl"}', f'--data={data}'], 'none.pkl'
    yield [f'--network={save_pickle(folder / "stock.pkl", stock)}', f'--data={data}'], 'not a LIA network'
    yield [f'--network={network}', f'--data={empty}'], 'holds no image file'
    yield [f'--network={network}', '--data=nowhere'], '--data=nowhere: no such file'
    yield [*given, '--only=lengths', f'--data={folder / "broken"}'], 'none of its 1 images can be read'
    yield [*given, f'--compare={empty}'], 'holds no compare.json'
    yield [*given, '--labels=none.csv'], '--labels=none.csv: no such file'
    yield [*given, '--directions=none.npz'], '--directions=none.npz: no such file'
    yield [*given, '--labels=a', '--directions=b'], 'not both'
    yield [*given, '--force'], '--force: only with --directions'
    yield [*given, '--direction-space=z'], '--direction-space: only with --directions'
    foreign = make_direction('other', torch.ones(16), 'y', network_hash='0-0')
    save_directions(folder / 'foreign.npz', [foreign])
    yield [*given, f'--directions={folder / "foreign.npz"}'], 'with another network, whose codes mean other things'
    yield [*given, '--split=val'], '--split: only with --labels'
    yield [*given, '--group-column=look'], '--group-column: only with --labels'
    (folder / 'few.csv').write_text('file,smile\npicture0.png,1\n')
    yield [*given, f'--labels={folder / "few.csv"}', '--group-column=look'], "no column 'look'; it has smile"
    yield [*given, '--only=manipulation', f'--labels={folder / "text.csv"}', *SMALL], '--labels='
    yield [*given, '--percep=disc', '--only=paths', *SMALL], '--percep=disc: this pickle holds no discriminator'
    yield [*given, '--percep=none', '--lpips=vgg16.pt'], '--lpips: --percep=none takes no such file'
    yield [*given, '--class=1', '--only=lengths', *SMALL], '--class: this network has no classes'
    yield [*given, '--num=0'], '--num'
    yield [*given, '--samples=1000000000'], '--samples'
    yield [*given, f'--outdir={folder / "text.csv"}'], '--outdir: '


def test_bad_calls_are_one_line_exit_code_2_and_nothing_written(
    network: str, data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for args, complaint in bad_calls(tmp_path, network, data):
        out = tmp_path / 'out'
        assert run(out, *args) == 2, args
        error = capsys.readouterr().err.strip().splitlines()
        assert error[-1].startswith('Error: ') and complaint in error[-1], (args, error)
        assert not out.exists(), args


def test_the_list_of_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path / 'out', '--only=list') == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(figures.CONTENTS)
    assert figures.parse_only('lengths, paths') == ('paths', 'lengths')


def test_progress_goes_from_nothing_to_all(G: Any, data: str) -> None:
    for name in REALS:
        shares: list[float] = []
        figures.draw_one(exhibit(G, data), name, shares.append)
        assert shares == sorted(shares) and (not shares or 0 < shares[-1] <= 1), name


def test_a_table_of_two_sets_needs_its_split(
    network: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As the demo's table: train and val have files of the same names."""
    folder, out = save_pictures(tmp_path / 'set', 40), tmp_path / 'out'
    names = sorted(path.name for path in folder.glob('*.png'))
    rows = [f'{split},{name},{(i + k) % 2}' for k, split in enumerate(('train', 'val')) for i, name in enumerate(names)]
    (tmp_path / 'labels.csv').write_text('\n'.join(['split,file,odd', *rows]))
    args = [f'--network={network}', f'--data={folder}', f'--labels={tmp_path / "labels.csv"}', '--only=manipulation',
            *SMALL, '--num=40']  # fmt: skip
    assert run(out, *args) == 2 and not out.exists()
    assert '--split=train of figures' in capsys.readouterr().err.splitlines()[-1]
    assert run(out, *args, '--split=val') == 0
    assert [row['name'] for row in read(out)['figures']['manipulation']['accuracies']] == ['odd=1']


# ---------------------------------------------------------------------------------------------------------------------
# Independence


def test_a_figure_that_fails_stops_no_other(G: Any, data: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any) -> Any:
        raise UserError('the moon is\nin the way')

    monkeypatch.setattr(figure_paths, 'draw', fail)
    outcome = figures.draw_all(exhibit(G, data), ('paths', 'lengths'))
    assert list(outcome.figures) == ['lengths'] and outcome.missing == {'paths': 'the moon is in the way'}


def test_what_is_drawn_is_kept_when_a_defect_ends_the_command(
    network: str, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(figure_lengths, 'draw', lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(tmp_path / 'out', f'--network={network}', f'--data={data}', '--only=manipulation,lengths', *SMALL)
    assert list(read(tmp_path / 'out')['figures']) == ['manipulation']


def test_codes_that_are_not_finite_are_refused(
    data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    G = make_generator()
    G.encoder.output_mean.fill_(float('nan'))
    network = save_pickle(tmp_path / 'nan.pkl', G)
    assert run(tmp_path / 'out', f'--network={network}', f'--data={data}', '--only=paths,lengths', *SMALL) == 2
    assert 'codes that are not finite' in capsys.readouterr().err.splitlines()[-1]


def test_one_image_is_enough_where_one_is_enough(network: str, tmp_path: Path) -> None:
    folder, out = save_pictures(tmp_path / 'set', 1), tmp_path / 'out'
    only = '--only=paths,reconstructions,lengths'
    assert run(out, f'--network={network}', f'--data={folder}', only, *SMALL) == 1
    assert read(out)['missing'] == {'paths': 'no two images of --data to interpolate'}
    assert re.search(r'[>\s+±]nan\b', words(out)) is None


def test_one_pair_has_no_standard_error(network: str, tmp_path: Path) -> None:
    folder, out = save_pictures(tmp_path / 'set', 2), tmp_path / 'out'
    assert run(out, f'--network={network}', f'--data={folder}', '--only=paths,lengths', *SMALL) == 0
    text = words(out)
    assert re.search(r'\bnan\b', text.split('<h2>1.')[1]) is None
    assert re.search(r'Arcs in z are \d+\.\d% (longer|shorter) than in y', text)
