"""The figures command, from tiny networks of every kind to a page, and each figure's own mathematics."""

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from test_lia_plugin_inversion import RESOLUTION, make_generator, save_pickle, save_pictures

import dnnlib
from lia_plugin import (
    canvas,
    cli,
    embedding,
    figure_lengths,
    figure_manipulation,
    figure_paths,
    figure_reconstruction,
    figures,
    targets,
)
from lia_plugin.directions import make_direction, save_directions
from lia_plugin.edit_session import Session
from lia_plugin.figure_base import CannotDraw, Exhibit, Options, mean_and_error, spread, with_error
from lia_plugin.host import UserError
from lia_plugin.networks import Generator
from lia_plugin.path_measures import FeatureSpace
from lia_plugin.results import save_json

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


def run(out: Path, *args: str) -> int:
    return cli.run(cli.load_command('figures'), ['--device=cpu', f'--outdir={out}', *args])


def read(out: Path) -> dict[str, Any]:
    return json.loads((out / 'figures.json').read_text(encoding='utf-8'))


def exhibit(G: Any, data: str | None = None, c: bool = False, **options: Any) -> Exhibit:
    small = dict(num=8, opt_num=3, pairs=2, samples=12, steps=3, refine=2, shown=2)
    items = [] if data is None else targets.collect([data], option='--data')
    session = Session(G, 'lia.pkl', torch.device('cpu'), batch=4, contents=dict(G_ema=G, D=None))
    return Exhibit(Options(**{**small, **options}), session, items)


# ---------------------------------------------------------------------------------------------------------------------
# The command


def test_a_page_with_all_figures(network: str, data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / 'out'
    assert run(out, f'--network={network}', f'--data={data}', f'--only={",".join(REALS)}', *SMALL) == 0
    found = read(out)
    assert list(found['figures']) == REALS and found['missing'] == {} and found['num'] == 8
    text = (out / 'index.html').read_text(encoding='utf-8')
    files = [file for figure in found['figures'].values() for file in figure['files']]
    assert len(files) == len(set(files)) and text.count('<img') == len(files)
    assert sorted(path.name for path in out.glob('*.png')) == sorted(files)
    assert 'src="http' not in text and re.search(r'[>\s+±]nan\b', text) is None
    assert len(found['figures']['paths']['pairs']) == 2 and found['figures']['paths']['features'] == 'pixels'
    assert set(found['figures']['reconstructions']['methods']) == {'encoder', 'refined', 'map', 'optimised'}
    assert 'index.html' in capsys.readouterr().out


def test_the_same_command_gives_the_same_numbers(network: str, data: str, tmp_path: Path) -> None:
    only = ['--only=paths,lengths,manipulation', *SMALL, f'--network={network}', f'--data={data}']
    outs = [tmp_path / name for name in ('a', 'b')]
    assert [run(out, *only, f'--seed={seed}') for out, seed in zip(outs, (3, 3))] == [0, 0]
    assert read(outs[0])['figures'] == read(outs[1])['figures']
    assert run(outs[1], *only, '--seed=4') == 0
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


def deep_generator() -> Any:
    torch.manual_seed(0)
    return Generator(
        z_dim=16, c_dim=0, w_dim=16, img_resolution=RESOLUTION, img_channels=1,
        mapping_kwargs=dict(phi_kwargs=dict(hidden_features=16)),
        synthesis_kwargs=dict(channel_base=128, channel_max=8),
        encoder_kwargs=dict(channel_base=128, channel_max=8, space='y+'),
    ).eval().requires_grad_(False)  # fmt: skip


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
    yield [*given, '--only=manipulation', f'--labels={folder / "text.csv"}', *SMALL], '--labels='
    yield [*given, '--percep=disc', '--only=paths', *SMALL], '--percep=disc: this pickle holds no discriminator'
    yield [*given, '--percep=none', '--lpips=vgg16.pt'], '--lpips: --percep=none takes no such file'
    yield [*given, '--class=1', '--only=lengths', *SMALL], '--class: this network has no classes'
    yield [*given, '--num=0'], '--num'
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


# ---------------------------------------------------------------------------------------------------------------------
# Paths


def test_pairs_are_disjoint_and_of_one_class() -> None:
    pairs = figure_paths.draw_pairs(None, 3, 0, 7)
    flat = [item for pair in pairs for item in pair]
    assert len(pairs) == 3 and len(set(flat)) == 6
    labels = torch.eye(2)[torch.tensor([0, 0, 0, 1, 1, 1])]
    assert all(bool((labels[a] == labels[b]).all()) for a, b in figure_paths.draw_pairs(labels, 9, 0, 6))
    with pytest.raises(CannotDraw, match='no two images'):
        figure_paths.draw_pairs(None, 3, 0, 1)
    with pytest.raises(CannotDraw, match='of one class'):
        figure_paths.draw_pairs(torch.eye(3), 3, 0, 3)


def test_paths_of_both_spaces_have_the_reconstructions_for_ends(G: Any, data: str) -> None:
    show = exhibit(G, data)
    pairs, points = [(0, 3), (5, 1)], 5
    ends = show.draw(show.reals.code, None)
    for space in ('y', 'z'):
        ways = figure_paths.walk(show, pairs, space, points, lambda share: None)
        torch.testing.assert_close(ways.images[:, 0], ends[[0, 5]])
        torch.testing.assert_close(ways.images[:, -1], ends[[3, 1]])
        assert ways.log_p is not None and ways.z_norm2 is not None
        # In z the length is interpolated, so its square lies below the chord of the squares.
        z = G.mapping.y_to_z(show.reals.code)
        expected = z.square().sum(dim=1).numpy()[np.array(pairs)] / 16
        np.testing.assert_allclose(ways.z_norm2[:, [0, -1]], expected, rtol=1e-4)
        if space == 'z':
            middle = ((expected**0.5).mean(axis=1)) ** 2
            np.testing.assert_allclose(ways.z_norm2[:, 2], middle, rtol=1e-3)
    faded = figure_paths.cross_fade(ways)
    torch.testing.assert_close(faded.images[:, 2], (ends[[0, 5]] + ends[[3, 1]]) / 2)


def test_a_cross_fade_of_pixels_is_straight(G: Any, data: str) -> None:
    show = exhibit(G, data)
    pairs = [(0, 3), (5, 1)]
    ways = figure_paths.cross_fade(figure_paths.walk(show, pairs, 'y', 5, lambda share: None))
    space = FeatureSpace(None)
    found = figure_paths.measure(ways, space, space.embed(show.originals), pairs)
    np.testing.assert_allclose(found.figures['straightness'], 1, rtol=1e-4)
    np.testing.assert_allclose(found.figures['evenness'], 1, rtol=1e-3)
    assert found.profiles['nearest'].shape == (2, 5) and 'log_p' not in found.figures


def test_two_images_have_no_others_to_be_near_to(G: Any, data: str) -> None:
    show = exhibit(G, data)
    ways = figure_paths.walk(show, [(0, 1)], 'y', 4, lambda share: None)
    space = FeatureSpace(None)
    assert 'nearest' not in figure_paths.measure(ways, space, space.embed(show.originals[:2]), [(0, 1)]).figures


def test_differences_go_pair_by_pair() -> None:
    y = dict(length=np.array([1.0, 2.0, 4.0]), nearest=np.array([1.0, 1.0, 1.0]))
    z = dict(length=np.array([1.5, 3.0, 4.0]), nearest=np.array([0.0, 2.0, 3.0]))
    found = figure_paths.differences(y, z)
    assert found['length']['mean'] == pytest.approx((0.5 + 0.5 + 0) / 3)
    assert found['length']['pairs_greater'] == pytest.approx(2 / 3)
    assert found['nearest']['mean'] == pytest.approx(2 / 3)
    assert found['nearest']['error'] == pytest.approx(np.std([-1, 1, 2], ddof=1) / 3**0.5)


def test_means_have_errors_where_there_are_several() -> None:
    assert mean_and_error([1.0, 3.0]) == dict(mean=2.0, error=1.0)
    assert math.isnan(mean_and_error([1.0])['error'])
    assert with_error(dict(mean=0.5, error=0.25), '+.2f') == '+0.50 ± 0.25'
    assert with_error(mean_and_error([2.0]), '.1f') == '2.0'


def test_a_map_keeps_clusters_apart() -> None:
    stream = np.random.default_rng(0)
    centres = stream.standard_normal([2, 80]) * 20
    rows = np.concatenate([centres[[i]] + stream.standard_normal([40, 80]) for i in range(2)]).astype(np.float32)
    found = embedding.tsne_map(rows, rows[[3, 50]])
    # What is laid in comes to lie among those that it is like.
    for laid, own, others in zip(found.laid, (slice(0, 40), slice(40, 80)), (slice(40, 80), slice(0, 40))):
        to_own, to_others = (np.linalg.norm(found.places[part] - laid, axis=1) for part in (own, others))
        assert to_own.max() < to_others.min()
    assert found.places.shape == (80, 2) and found.components == 50 and 0.9 < found.variance <= 1
    a, b = found.places[:40], found.places[40:]
    assert np.linalg.norm(a.mean(axis=0) - b.mean(axis=0)) > max(a.std(), b.std())
    with pytest.raises(CannotDraw, match='3 points'):
        embedding.tsne_map(rows[:3], rows[:1])


def test_neighbours_are_as_many_as_the_perplexity_says() -> None:
    square = np.random.default_rng(0).chisquare(20, 500) * 1e3
    for perplexity in (5.0, 30.0, 400.0):
        share = embedding.neighbours(square, perplexity)
        assert share.sum() == pytest.approx(1) and share.argmax() == square.argmin()
        assert math.exp(-(share[share > 0] * np.log(share[share > 0])).sum()) == pytest.approx(perplexity, rel=1e-3)


def test_the_place_in_a_map_is_an_optimum() -> None:
    stream = np.random.default_rng(0)
    places, share = stream.standard_normal([50, 2]) * 5, stream.dirichlet(np.ones(50))
    place = stream.standard_normal(2)
    value, slope = embedding._divergence(place, share, places)
    for axis in range(2):
        step = np.eye(2)[axis] * 1e-5
        ends = [embedding._divergence(place + sign * step, share, places)[0] for sign in (1, -1)]
        assert slope[axis] == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-4, abs=1e-7)
    weight = 1 / (1 + np.square(place - places).sum(axis=1))
    assert value == pytest.approx(-(share * np.log(weight / weight.sum())).sum())


# ---------------------------------------------------------------------------------------------------------------------
# Reconstructions and lengths


def test_reconstructions_are_measured_as_they_are_shown(G: Any, data: str) -> None:
    show = exhibit(G, data, refine=4)
    found = figures.draw_one(show, 'reconstructions')
    sitters, methods = figure_reconstruction.attempts(show, lambda share: None)
    mse = {name: (attempt.recon - sitters.img).square().mean(dim=[1, 2, 3]) for name, attempt in methods.items()}
    for name, row in found.numbers['methods'].items():
        assert row['mse']['mean'] == pytest.approx(float(mse[name].mean()), rel=1e-4)
    assert (mse['refined'] <= mse['encoder'] + 1e-6).all()
    # The prior takes some of the picture's likeness and gives likelihood for it.
    log_p = {name: G.mapping.log_prob(G.mapping.z_to_y(methods[name].z)).sum() for name in ('refined', 'map')}
    assert log_p['map'] > log_p['refined']
    rows = spread(len(show.reals), 3)
    assert rows == [0, 3, 6] and spread(2, 9) == [0, 1]
    torch.testing.assert_close(methods['encoder'].z, G.mapping.y_to_z(show.reals.code[rows]))
    torch.testing.assert_close(sitters.img, show.originals[rows])
    assert found.pictures[''][0].shape[0] == 3


def test_a_comparison_is_told_again(G: Any, data: str, tmp_path: Path) -> None:
    save_json(str(tmp_path / 'compare.json'), dict(
        summary=dict(shared={'lia-y': dict(mse=[0.1, None], psnr=[20.0, 0.5]), 'opt-100': dict(mse=[0.05, None])}),
        records=[dict(name='lia-y', label='LIA, y')]))  # fmt: skip
    content, grid = figure_reconstruction.read_comparison(str(tmp_path))
    assert grid is None
    assert figure_reconstruction.comparison_table(content) == (
        ['method', 'MSE', 'PSNR dB'], [['LIA, y', '0.1000', '20.00 ± 0.50'], ['opt-100', '0.0500', '']])
    found = figures.draw_one(exhibit(G, data, compare=str(tmp_path)), 'reconstructions')
    assert len(found.tables) == 2 and found.numbers['comparison'] == content['summary']


def test_lengths_against_the_prior() -> None:
    draws = stats.chi2(64).rvs(2000, random_state=0)
    found = figure_lengths.describe(draws, 64)
    assert found['mean'] == pytest.approx(64, abs=1) and found['std'] == pytest.approx(128**0.5, rel=0.1)
    assert found['ks'] == pytest.approx(stats.kstest(draws, 'chi2', args=(64,)).statistic)
    assert found['ks_p'] > 0.01 and found['typical'] == pytest.approx(0.95, abs=0.02)
    assert figure_lengths.describe(2 * draws, 64)['ks'] > 0.9
    assert figure_lengths.describe(2 * draws, 64)['typical'] < 0.05


def test_the_outline_of_prior_draws_follows_the_density(monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[np.ndarray] = []
    draw_line = canvas.Panel.line

    def spy(self: Any, points: Any, *args: Any, **kwargs: Any) -> None:
        lines.append(np.asarray(points, float))
        draw_line(self, points, *args, **kwargs)

    monkeypatch.setattr(canvas.Panel, 'line', spy)
    values = stats.chi2(32).rvs(20000, random_state=0)
    figure_lengths.picture(dict(encoder=values, refined=values[:3]), 32)
    outline, density = lines[0], lines[1]
    assert np.trapezoid(density[:, 1], density[:, 0]) == pytest.approx(1, abs=0.01)
    middle = (outline[::2, 0] + outline[1::2, 0]) / 2
    np.testing.assert_allclose(outline[::2, 1], np.interp(middle, density[:, 0], density[:, 1]), atol=0.25)
    assert len(lines) == 3 + 3  # The small set is three ticks, below the axis.
    assert all(tick[:, 1].max() < 0 for tick in lines[3:])


# ---------------------------------------------------------------------------------------------------------------------
# Manipulation


def test_given_directions_are_followed(G: Any, data: str, tmp_path: Path) -> None:
    vector = torch.zeros(16)
    vector[2] = 1
    path = tmp_path / 'd.npz'
    save_directions(path, [make_direction('third', vector, 'y', scale=0.5)])
    show = exhibit(G, data, directions=str(path))
    found = figures.draw_one(show, 'manipulation')
    assert found.numbers['directions'][0]['amounts'] == pytest.approx([-1.5, 0, 1.5])
    code = show.reals.code[:3].clone()
    torch.testing.assert_close(strip_middle(show, code, 0.0, vector), show.draw(code, None))
    moved = code + 1.5 * vector
    torch.testing.assert_close(strip_middle(show, code, 1.5, vector), show.draw(moved, None))


def strip_middle(show: Exhibit, code: torch.Tensor, amount: float, vector: torch.Tensor) -> torch.Tensor:
    """What the strips show in the column of an amount, caught on its way to the picture."""
    caught: list[torch.Tensor] = []
    draw = show.draw
    show.draw = lambda code, c: caught.append(draw(code, c)) or caught[-1]  # type: ignore[method-assign,func-returns-value]
    figure_manipulation.strips(show, code, None, make_direction('v', vector, 'y'), torch.tensor([-1.0, amount]))
    show.draw = draw  # type: ignore[method-assign]
    return torch.stack([row[1] for row in caught])


def test_labels_teach_directions(G: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    count = 60
    folder = save_pictures(tmp_path / 'set', count)
    show = exhibit(G, str(folder))
    first = show.reals.code[:, 0]
    names = [target.stored_name for target in show.items]
    order = {target.label: target.stored_name for target in show.items}
    positive = {order[source]: bool(value > first.median()) for source, value in zip(show.reals.sources, first)}
    rows = [f'{name},{"yes" if positive[name] else "no"},{i},train' for i, name in enumerate(names)]
    table = tmp_path / 'labels.csv'
    table.write_text('\n'.join(['file,smile,number,split', *rows]))
    show = exhibit(G, str(folder), labels=str(table))
    found = figures.draw_one(show, 'manipulation')
    assert [row['name'] for row in found.numbers['accuracies']] == ['smile=yes'], 'numbers and splits are no attributes'
    assert found.numbers['accuracies'][0]['y']['balanced_accuracy'] > 0.6
    # Going along raises what the label was made of.
    edit = figure_manipulation.find(show).edits[0]
    assert float(edit.direction.vector[0]) > 0


def test_a_pattern_is_how_codes_change_with_the_distance() -> None:
    """Of a Gaussian it is σ·Σv/(vᵀΣv), and a code moved by one unit has moved by one deviation of the distance."""
    stream = torch.Generator().manual_seed(0)
    root = torch.randn([5, 5], generator=stream)
    codes = torch.randn([4000, 5], generator=stream) @ root
    normal = make_direction('d', torch.tensor([1.0, -1, 0.5, 0, 2]), 'y')
    edit = figure_manipulation.pattern(normal, codes)
    cov = torch.cov(codes.double().t())
    v = normal.vector.double()
    expected = (cov @ v) / (v @ cov @ v) * (v @ cov @ v).sqrt()
    torch.testing.assert_close(edit.direction.vector.double() * edit.unit, expected, rtol=1e-3, atol=1e-4)
    spread = float((codes.double() @ v).std())
    assert float(edit.direction.vector.double() @ v * edit.unit) == pytest.approx(spread, rel=1e-3)


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
    assert re.search(r'[>\s+±]nan\b', (out / 'index.html').read_text(encoding='utf-8')) is None
