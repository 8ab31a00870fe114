"""The parts of a comparison: which methods and options, that each is what its name says, figures, tables, pictures."""

import copy
import dataclasses
import json
import math
import pathlib
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from click import UsageError

from lia_plugin import (
    attach,
    compare,
    compare_measure,
    compare_report,
    compare_run,
    compare_training,
    images,
    similarity,
    stages,
)
from lia_plugin import options as opts
from lia_plugin.compare import DEFAULTS, METHODS, STAGE1, STAGE1_MLP, Settings
from lia_plugin.host import UserError
from lia_plugin.networks import Generator
from lia_plugin.phi_fit import Fit, Labels
from torch_utils import network_pickle
from training.networks import Discriminator
from training.networks import Generator as PlainGenerator

WIDTHS: dict[str, int] = dict(channel_base=256, channel_max=8)
CPU = torch.device('cpu')


def make_data(folder: pathlib.Path, count: int = 20) -> str:
    folder.mkdir(parents=True)
    stream = np.random.RandomState(0)
    for i in range(count):
        PIL.Image.fromarray(stream.randint(0, 256, [16, 16, 3]).astype(np.uint8)).save(folder / f'{i:03d}.png')
    return str(folder)


@pytest.fixture(scope='module')
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_data(tmp_path_factory.mktemp('compare') / 'data')


@pytest.fixture(scope='module')
def plain() -> PlainGenerator:
    torch.manual_seed(0)
    return PlainGenerator(8, 0, 8, 16, 3, synthesis_kwargs=WIDTHS).eval().requires_grad_(False)


@pytest.fixture(scope='module')
def lia() -> Generator:
    torch.manual_seed(0)
    return Generator(8, 0, 8, 16, 3, synthesis_kwargs=WIDTHS, encoder_kwargs=WIDTHS).eval().requires_grad_(False)


def settings(data: str, outdir: Any, **changes: Any) -> Settings:
    training: dict[str, Any] = dict(
        data=data, kimg=2, enc_kimg=1, batch=8, cbase=256, cmax=8, latent_dim=8, aug='noaug', val='0.3', device='cpu')
    training.update(changes.pop('training', {}))
    return Settings(outdir=str(outdir), training=training, **changes)


# ---------------------------------------------------------------------------------------------------------------------
# What is asked for


def test_all_methods_by_default_and_others_by_name() -> None:
    assert compare.parse_methods(None) == DEFAULTS
    assert compare.parse_methods('opt-300, lia-y,opt-300') == ('opt-300', 'lia-y')
    assert all(compare.method(name).name == name for name in DEFAULTS)
    assert len({compare.method(name).caption for name in DEFAULTS}) == len(DEFAULTS)


def test_optimisations_of_any_length_are_methods() -> None:
    method = compare.method('refine-30-y+')
    assert (method.steps, method.space, method.needs, method.trains) == (30, 'y+', 'lia-y', False)
    assert (compare.method('opt-7').steps, compare.method('opt-7').needs) == (7, None)
    assert [compare.method(name).optimizer for name in ('opt-7', 'lbfgs-7', 'refine-7')] == ['adam', 'lbfgs', 'lbfgs']
    families = [compare.method(name).family for name in ('opt-7', 'lbfgs-7', 'refine-7', 'map-7', 'opt-7-y+')]
    assert len(set(families)) == 5 and compare.method('opt-8').family == families[0]
    exact = compare.method('map-7-y+')
    settings = compare_measure.optimisation(exact)
    assert (settings.steps, settings.space, settings.optimizer, settings.prior_weight) == (
        7, 'y+', 'lbfgs', compare.MAP_WEIGHT)
    assert (exact.needs, exact.space, exact.prior_weight) == ('lia-y', 'y+', compare.MAP_WEIGHT)


@pytest.mark.parametrize('text', ['lia', 'opt-', 'opt-0', 'opt-5-z', ',', 'refine-1e3'])
def test_methods_that_are_none_are_refused_by_name(text: str) -> None:
    with pytest.raises(UsageError, match='--methods: .*there are lia-y, '):
        compare.parse_methods(text)


@pytest.mark.parametrize('value, reason', [
    ('lia-y', 'expected NAME=PICKLE_OR_RUN'), ('=x.pkl', 'nothing is trained under that name'),
    ('opt-100=x.pkl', 'nothing is trained'), ('bigan=', 'expected NAME='),
])  # fmt: skip
def test_what_can_not_be_taken(value: str, reason: str) -> None:
    with pytest.raises(UsageError, match=f'--take: .*{reason}'):
        compare.parse_taken([value])


def test_a_network_is_given_once() -> None:
    assert compare.parse_taken(['stage1=a.pkl', 'lia-y=b=c.pkl']) == {'stage1': 'a.pkl', 'lia-y': 'b=c.pkl'}
    with pytest.raises(UsageError, match='--take: bigan: given twice'):
        compare.parse_taken(['bigan=a.pkl', 'bigan=b.pkl'])


@pytest.mark.parametrize('methods, taken, trained, bases', [
    (('lia-y',), {}, ['lia-y'], [STAGE1]),
    (('mlp-w',), {}, ['mlp-w'], [STAGE1_MLP]),
    (('mlp-w',), {'mlp-w': 'x'}, ['mlp-w'], []),
    (('opt-9',), {}, [], [STAGE1]),
    (('refine-9',), {}, ['lia-y'], [STAGE1]),
    (('refine-9',), {'lia-y': 'x'}, ['lia-y'], []),
    (('bigan', 'opt-9'), {'bigan': 'x', STAGE1: 'y'}, ['bigan'], [STAGE1]),
])  # fmt: skip
def test_no_network_is_trained_in_vain(methods: Any, taken: Any, trained: Any, bases: Any) -> None:
    wanted = Settings('out', {}, methods=methods, taken=taken)
    assert (wanted.trained, wanted.bases) == (trained, bases)


def test_a_given_network_has_no_seeds_and_what_is_trained_upon_it_has() -> None:
    wanted = Settings('out', {}, seeds=3, taken={STAGE1: 'x'})
    names = (STAGE1, STAGE1_MLP, 'lia-y', 'opt-9', 'refine-9')
    assert [len(wanted.seeds_of(name)) for name in names] == [1, 3, 3, 1, 3]


# ---------------------------------------------------------------------------------------------------------------------
# Options of the trainings


def test_budgets_are_equal(data: str, tmp_path: pathlib.Path) -> None:
    full = compare_training.complete(settings(data, tmp_path))
    stage1 = [compare_training.stage1_options(full, 0, base) for base in (STAGE1, STAGE1_MLP)]
    encoders = [compare_training.encoder_options(full, 0, m.name, 'x.pkl') for m in METHODS]
    assert {o.kimg for o in stage1} == {2} and {o.enc_kimg for o in encoders} == {1}
    assert compare_training.joint_options(full, 0).kimg == 3
    assert {o.val for o in [*stage1, *encoders]} == {'0.3'} and {o.metrics for o in [*stage1, *encoders]} == {'none'}
    for options in [*stage1, *encoders, compare_training.joint_options(full, 4)]:
        opts.check(options)


def test_the_plain_generator_differs_in_its_mapping_alone(data: str, tmp_path: pathlib.Path) -> None:
    full = settings(data, tmp_path, mlp_depth=5)
    ours, plain = (dataclasses.asdict(compare_training.stage1_options(full, 3, base)) for base in (STAGE1, STAGE1_MLP))
    different = {name for name in ours if ours[name] != plain[name]}
    assert different == {'cfg', 'stage', 'map_depth'} and plain['map_depth'] == 5 and plain['seed'] == 3


@pytest.mark.parametrize('name, said', [
    ('lia-y', dict(enc_space='y')), ('lia-y+', dict(enc_space='y+')), ('encoder-z', dict(enc_space='z')),
    ('mlp-w', dict(enc_space='y', enc_prior=0.0)), ('lia-y-disc', dict(enc_space='y', percep='disc')),
    ('no-disc', dict(enc_space='y', percep='none', enc_adv=0.0, enc_start='head')), ('bigan', dict(enc_space='z')),
])  # fmt: skip
def test_each_encoder_is_what_its_name_says(name: str, said: dict[str, Any], data: str) -> None:
    full = settings(data, 'out', training=dict(percep='vgg16', enc_percep=0.3, enc_adv=0.2, phi_layers=6))
    options = compare_training.encoder_options(full, 0, name, 'x.pkl')
    assert {key: getattr(options, key) for key in said} == said
    assert (options.stage, options.resume, options.phi_layers) == ('encoder', 'x.pkl', 4)
    if name == 'lia-y':
        assert (options.percep, options.enc_percep, options.enc_adv) == ('vgg16', 0.3, 0.2)
    if name == 'no-disc':
        assert options.enc_percep is None


def test_what_is_held_out_by_default_is_said(data: str, tmp_path: pathlib.Path) -> None:
    full = compare_training.complete(settings(data, tmp_path, training=dict(val=None)))
    assert full.training['val'] == '0.05'
    assert compare_training.stage1_options(full, 0, STAGE1_MLP).val == '0.05', 'a plain --cfg holds nothing out'


def test_without_held_out_images_there_is_no_comparison(data: str, tmp_path: pathlib.Path) -> None:
    with pytest.raises(UsageError, match='--val=none: nothing is held out'):
        compare_training.complete(settings(data, tmp_path, training=dict(val='none')))


def test_fewer_held_out_images_are_among_more(data: str, tmp_path: pathlib.Path) -> None:
    from training.dataset import ImageFolderDataset

    full = settings(data, tmp_path)

    def keys(num: int) -> set[bytes]:
        kwargs = {k: v for k, v in compare_training.held_out_set(full, num).items() if k != 'class_name'}
        dataset = ImageFolderDataset(**kwargs)
        return {dataset[i][0].tobytes() for i in range(len(dataset))}

    assert len(keys(2)) == 2 and keys(2) < keys(4) < keys(100) and len(keys(100)) == 6


# ---------------------------------------------------------------------------------------------------------------------
# Networks that are given


def _pickle(path: pathlib.Path, G: Any, **more: Any) -> str:
    network_pickle.save(path, dict(G=G, D=None, G_ema=G, **more))
    return str(path)


def test_the_newest_snapshot_of_a_run_is_taken(tmp_path: pathlib.Path) -> None:
    for kimg in (4, 12):
        (tmp_path / f'network-snapshot-{kimg:06d}.pkl').write_bytes(b'')
    assert compare_training.taken_pickle('lia-y', str(tmp_path)) == str(tmp_path / 'network-snapshot-000012.pkl')
    with pytest.raises(UserError, match='--take lia-y=.*: no such file'):
        compare_training.taken_pickle('lia-y', str(tmp_path / 'other.pkl'))
    (tmp_path / 'empty').mkdir()
    with pytest.raises(UserError, match='holds no network-snapshot'):
        compare_training.taken_pickle('lia-y', str(tmp_path / 'empty'))


@pytest.mark.parametrize('share, fails', [(0.3, False), (0.1, True), (None, True)])
def test_a_network_that_knows_held_out_images_is_refused(
    share: float | None, fails: bool, data: str, lia: Generator, tmp_path: pathlib.Path
) -> None:
    kwargs = dict(class_name='training.dataset.ImageFolderDataset', path='/elsewhere/data')
    if share is not None:
        kwargs.update(split='train', val_share=share, val_seed=0)  # type: ignore[arg-type]
    path = _pickle(tmp_path / 'network.pkl', lia)
    (tmp_path / 'training_options.json').write_text(json.dumps(dict(gan=dict(training_set_kwargs=kwargs))))
    wanted = settings(data, tmp_path, methods=('opt-3',), taken={STAGE1: path})
    if fails:
        with pytest.raises(UserError, match='was trained on images that are held out here'):
            compare_training.complete(wanted)
    else:
        compare_training.complete(wanted)
    elsewhere = make_data(tmp_path / 'held-out', 3)
    compare_training.complete(settings(data, tmp_path, methods=('opt-3',), taken={STAGE1: path},
                                       training=dict(val=elsewhere)))


def test_networks_that_are_compared_are_of_one_size(data: str, lia: Generator, tmp_path: pathlib.Path) -> None:
    path = _pickle(tmp_path / 'network.pkl', lia)
    wanted = settings(data, tmp_path, methods=('mlp-w', 'opt-3'), taken={STAGE1: path}, training=dict(cmax=16))
    with pytest.raises(UserError, match='--cmax: 16, but .*network.pkl has 8: networks that are compared must'):
        compare_training.complete(wanted)


def test_a_given_encoder_has_the_generator_of_the_given_stage_1(
    data: str, lia: Generator, tmp_path: pathlib.Path
) -> None:
    path = _pickle(tmp_path / 'network.pkl', lia)
    taken = {STAGE1: path, 'lia-y': path}
    compare_training.complete(settings(data, tmp_path, methods=('lia-y',), taken=taken))
    other = copy.deepcopy(lia)
    other.synthesis.b4.conv1.weight.mul_(2)
    taken['lia-y'] = _pickle(tmp_path / 'other.pkl', other)
    with pytest.raises(UserError, match='--take lia-y: .*other.pkl: its generator is another than that of stage1'):
        compare_training.complete(settings(data, tmp_path, methods=('lia-y',), taken=taken))


def test_budgets_are_that_of_a_given_network(data: str, lia: Generator, tmp_path: pathlib.Path) -> None:
    path = _pickle(tmp_path / 'network.pkl', lia)
    wanted = settings(data, tmp_path, taken={STAGE1: path}, training=dict(kimg=None))
    with pytest.raises(UsageError, match='--kimg: needed'):
        compare_training.complete(wanted)
    named = _pickle(tmp_path / 'network-snapshot-000007.pkl', lia)
    wanted = settings(data, tmp_path, taken={STAGE1: named}, training=dict(kimg=None))
    assert compare_training.complete(wanted).training['kimg'] == 7
    with pytest.raises(UserError, match='--kimg: 60, but .*000007.pkl has seen 7: budgets must be equal'):
        compare_training.complete(settings(data, tmp_path, taken={STAGE1: named}, training=dict(kimg=60)))


@pytest.mark.parametrize('name, reason', [('encoder-z', 'its encoder leads to y, that of encoder-z to z'),
                                          ('bigan', 'its encoder leads to y, that of bigan to z')])
def test_an_encoder_to_another_space_is_refused(name: str, reason: str, lia: Generator) -> None:
    with pytest.raises(UserError, match=reason):
        compare_run.check_encoder(lia, compare.method(name), 'x.pkl')
    compare_run.check_encoder(lia, compare.method('lia-y'), 'x.pkl')
    with pytest.raises(UserError, match='has no encoder, which lia-y needs'):
        compare_run.check_encoder(Generator(8, 0, 8, 16, 3, synthesis_kwargs=WIDTHS), compare.method('lia-y'), 'x.pkl')


# ---------------------------------------------------------------------------------------------------------------------
# Methods


def test_an_encoder_behind_an_mlp_leads_to_its_w(plain: PlainGenerator, tmp_path: pathlib.Path) -> None:
    """As compare does it for mlp-w, without training: the code decodes to the plain generator's picture of that w."""
    D = Discriminator(0, 16, 3, **WIDTHS)
    start = dict(G=plain, D=D, G_ema=plain)
    with_phi, _fitted = attach.attach(start, 'x.pkl', Labels(0), fit=Fit(steps=0))
    source, out = (str(tmp_path / name) for name in ('phi.pkl', 'init.pkl'))
    network_pickle.save(source, with_phi)
    stages.prepare_encoder_stage(source, out, dict(WIDTHS, space='y'), start='random')
    G = network_pickle.load(out)['G_ema']
    img = torch.rand([3, 3, 16, 16]) * 2 - 1
    found = compare_measure.reconstructor(compare.method('mlp-w'), G)(img, None)
    assert found.code.shape == (3, plain.w_dim)
    expected = plain.synthesis(found.code[:, None].repeat([1, plain.num_ws, 1]), noise_mode='const').clamp(-1, 1)
    torch.testing.assert_close(found.recon, expected, rtol=1e-5, atol=1e-5)
    # It starts where this mapping network's w are.
    w = plain.mapping(torch.randn([4096, 8]), None)[:, 0]
    spread = (w - w.mean(dim=0)).norm(dim=1).mean()
    assert (G.encoder.output_mean - w.mean(dim=0)).norm() < 0.2 * spread


def test_one_pass_is_encode_and_decode(lia: Generator) -> None:
    img = torch.rand([2, 3, 16, 16]) * 2 - 1
    found = compare_measure.reconstructor(compare.method('lia-y'), lia)(img, None)
    torch.testing.assert_close(found.code, lia.encode(img))
    torch.testing.assert_close(found.recon, lia.decode(lia.encode(img), noise_mode='const').clamp(-1, 1))


def test_optimisation_starts_from_the_mean_and_refinement_from_the_code(lia: Generator) -> None:
    img = torch.rand([2, 3, 16, 16]) * 2 - 1

    def error(name: str) -> torch.Tensor:
        return similarity.mse(compare_measure.reconstructor(compare.method(name), lia)(img, None).recon, img)

    mean = stages.code_statistics(lia.mapping, 'y')[0]
    from_mean = similarity.mse(lia.decode(mean.expand(2, -1), noise_mode='const').clamp(-1, 1), img)
    assert (error('opt-20') < from_mean).all()
    assert (error('refine-20') < error('lia-y')).all()
    plus = compare_measure.reconstructor(compare.method('opt-2-y+'), lia)(img, None)
    assert plus.code.shape == (2, lia.num_ws, 8)


# ---------------------------------------------------------------------------------------------------------------------
# Figures


def test_metrics_are_handed_the_reconstructions_that_are_there(data: str, lia: Generator, tmp_path: Any) -> None:
    """The registry's own figures of the network, and of what was replayed, are the same."""
    import lia_plugin.metrics  # noqa: F401

    full = settings(data, tmp_path)
    kwargs = compare_training.held_out_set(full, 6)
    names, options = ('recon_mse', 'recon_ssim', 'recon_fid'), dict(detector='random:0')
    direct = compare_measure.registry(names, lia, kwargs, CPU, options)
    batches = list(compare_measure.batches(kwargs, lia, CPU, 4, 'test'))
    reconstruct = compare_measure.reconstructor(compare.method('lia-y'), lia)
    recon = torch.cat([reconstruct(img, c).recon for img, c in batches])
    replay = compare_measure.Replay(lia, torch.cat([img for img, _ in batches]), recon)
    replayed = compare_measure.registry(names, replay, kwargs, CPU, options)
    assert replayed['recon_mse'] > 0 and replayed['recon_fid_notes']['detector'] == 'random:0'
    for name in names:
        assert replayed[name] == pytest.approx(direct[name], rel=1e-5), name


def test_figures_are_means_over_all_images(data: str, lia: Generator, tmp_path: Any) -> None:
    kwargs = compare_training.held_out_set(settings(data, tmp_path), 5)
    reconstruct = compare_measure.reconstructor(compare.method('lia-y'), lia)
    found, other = (compare_measure.measure(
        reconstruct, lia, kwargs, CPU, batch, 'test', dict(detector='random:0'), shown=2) for batch in (2, 5))
    img = torch.cat([img for img, _ in compare_measure.batches(kwargs, lia, CPU, 5, 'test')])
    errors = similarity.mse(reconstruct(img, None).recon, img)
    assert found.figures['n'] == 5
    assert found.figures['mse'] == pytest.approx(float(errors.mean()), rel=1e-5)
    assert found.figures['mse_error'] == pytest.approx(float(errors.std(correction=0)) / math.sqrt(5), rel=1e-4)
    z = lia.mapping.y_to_z(lia.encode(img))
    assert found.figures['z_norm2'] == pytest.approx(float(z.square().mean()), rel=1e-4)
    assert found.figures['log_p'] == pytest.approx(float(lia.mapping.log_prob(lia.encode(img)).mean() / 8), rel=1e-4)
    np.testing.assert_array_equal(found.shown, images.to_uint8(reconstruct(img[:2], None).recon).numpy())
    for name in ('mse', 'psnr', 'recon_fid', 'log_p'):
        assert other.figures[name] == pytest.approx(found.figures[name], rel=1e-4), 'whatever the batch'


def test_a_metric_that_can_not_be_had_is_left_out_with_its_reason(lia: Generator, data: str, tmp_path: Any) -> None:
    kwargs = compare_training.held_out_set(settings(data, tmp_path), 3)
    found = compare_measure.registry(('recon_fid', 'unknown'), lia, kwargs, CPU, dict(detector='/no/such.pt'))
    assert list(found) == ['recon_fid_left_out'] and '/no/such.pt' in found['recon_fid_left_out']


def test_labels_of_the_data_or_of_a_file_tell_how_separable_codes_are(lia: Generator, tmp_path: Any) -> None:
    path = make_data(tmp_path / 'data')
    data = dict(class_name='training.dataset.ImageFolderDataset', path=path)
    assert 'ls_y' not in compare_measure.encoder_figures(lia, data, CPU, {})
    names = [f'{i:03d}.png' for i in range(20)]
    csv = tmp_path / 'labels.csv'
    csv.write_text('file,kind\n' + ''.join(f'{name},{i % 2}\n' for i, name in enumerate(names)))
    from_file = compare_measure.encoder_figures(lia, data, CPU, {}, str(csv))
    labels = dict(labels=[[name, i % 2] for i, name in enumerate(names)])
    (tmp_path / 'data' / 'dataset.json').write_text(json.dumps(labels))
    from_data = compare_measure.encoder_figures(lia, data, CPU, {})
    assert from_data['ls_chance'] == pytest.approx(2) and from_data['latent_fd'] > 0
    for name in ('ls_y', 'ls_z', 'ls_chance'):
        assert from_file[name] == from_data[name]


def test_slow_methods_are_timed_once(monkeypatch: pytest.MonkeyPatch, lia: Generator, data: str, tmp_path: Any) -> None:
    kwargs = compare_training.held_out_set(settings(data, tmp_path), 3)
    calls: list[int] = []

    def reconstruct(img: torch.Tensor, c: Any) -> compare_measure.Reconstructed:
        calls.append(len(img))
        return compare_measure.Reconstructed(img, img)

    found = compare_measure.seconds_per_image(reconstruct, lia, kwargs, CPU, 3)
    assert calls == [1] * 6 + [3] * 6 and found['timed_batch'] == 3
    calls.clear()
    monkeypatch.setattr(compare_measure, 'SLOW', 0.0)
    assert set(compare_measure.seconds_per_image(reconstruct, lia, kwargs, CPU, 3)) == {'seconds'} and calls == [1]


# ---------------------------------------------------------------------------------------------------------------------
# Report


def record(name: str, seed: int, mse: float, full: Settings) -> dict[str, Any]:
    figures = dict(n=3, mse=mse, seconds=0.01, recon_fid=2.0, recon_fid_notes=dict(detector='random:0'))
    method = compare.method(name)
    return dict(name=name, label=method.label, seed=seed, shared=figures, all=None if method.optimises else figures,
                machine='a machine', **compare_report.budget(full, method))


def test_tables_give_mean_and_spread_over_seeds(data: str, tmp_path: pathlib.Path) -> None:
    full = settings(data, tmp_path, methods=('lia-y', 'bigan', 'opt-7'), seeds=2, command='lia compare --x')
    results = compare_report.Results(full)
    shown = np.zeros([2, 3, 16, 16], np.uint8)
    for name, seed, mse in (('lia-y', 0, 0.25), ('lia-y', 1, 0.35), ('bigan', 0, 0.5), ('opt-7', 0, 0.125)):
        results.add(record(name, seed, mse, full), shown)
    results.fail('bigan', 1, 'it diverged')
    results.write()
    text = (tmp_path / 'compare.md').read_text()
    assert '| LIA, y | 0.3000 ± 0.0707 | 2.000 ± 0.000 | 0.01 ± 0 | 2 + 1 kimg | 2 |' in text
    assert '| BiGAN/ALI | 0.5000 | 2.000 | 0.01 | 3 kimg | 1 |' in text
    assert '| Adam, 7 steps | 0.1250 | 2.000 | 0.01 | 2 kimg, 7 steps | 1 |' in text
    assert 'bigan, seed 1: failed: it diverged' in text and 'lia compare --x' in text and 'FID by random:0' in text
    assert 'Timed on a machine.' in text
    content = json.loads((tmp_path / 'compare.json').read_text())
    assert content['summary']['shared']['lia-y']['mse'] == pytest.approx([0.3, math.sqrt(0.005)])
    assert content['summary']['all'].keys() == {'lia-y', 'bigan'}
    assert [r['seed'] for r in content['records']] == [0, 1, 0, 0] and content['failed'][0]['name'] == 'bigan'
    page = (tmp_path / 'index.html').read_text()
    assert 'Adam, 7 steps' in page and page.count('data:image/png') == 2
    # Original, three methods; two images.
    assert PIL.Image.open(tmp_path / 'grid.png').size == (4 * 132 - 4, images.CAPTION_HEIGHT + 2 * 132 - 4)
    assert PIL.Image.open(tmp_path / 'curve.png').size[0] > 100


def test_the_grid_has_a_row_for_each_image() -> None:
    reals = torch.arange(2, dtype=torch.uint8).mul(100).reshape(2, 1, 1, 1).repeat([1, 1, 128, 128])
    columns = {'a': (reals + 10).numpy(), 'b': (reals + 20).numpy()}
    picture = compare_report.grid(reals, columns)
    top = images.CAPTION_HEIGHT
    for row, level in enumerate((0, 100)):
        found = [int(picture[0, top + row * 132 + 64, column * 132 + 64]) for column in range(3)]
        assert found == [level, level + 10, level + 20]
    assert (picture[:, top + 128 : top + 132] == images.WHITE).all()
