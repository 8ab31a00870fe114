"""Plans against real (tiny) pickles: what fits, what is taken from them, and what is refused before a run begins."""

import dataclasses
import pathlib
from typing import Any

import click
import numpy as np
import PIL.Image
import pytest

import dnnlib
from lia_plugin import attach_files, config, host, planning, stages
from lia_plugin.host import UserError, load_network_pkl, save_network_pkl
from lia_plugin.options import Options
from lia_plugin.phi_fit import Fit
from torch_utils import network_pickle
from training import networks_stylegan3

SMALL = dict(cbase=64, cmax=8, latent_dim=8, batch=4, aug='noaug', device='cpu')


def _data(folder: pathlib.Path, size: int = 16, mode: str = 'RGB') -> str:
    folder.mkdir()
    for i in range(10):
        PIL.Image.fromarray(np.full([size, size, 3], i, np.uint8)).convert(mode).save(folder / f'{i}.png')
    return str(folder)


def _snapshot(folder: pathlib.Path, cfg: str) -> str:
    """A snapshot as stage 1 of SMALL leaves it, untrained."""
    stage = config.gan_stage(Options('x', cfg=cfg, **SMALL), config.DataInfo('x', 10, 16, 3), {}, [])
    size = dict(c_dim=0, img_resolution=16, img_channels=3)
    G, D = (dnnlib.util.construct_class_by_name(**stage[k], **size).eval() for k in ('G_kwargs', 'D_kwargs'))
    path = folder / f'{cfg}.pkl'
    network_pickle.save(str(path), dict(training_set_kwargs=None, G=G, D=D, G_ema=G, augment_pipe=None))
    return str(path)


@pytest.fixture(scope='module')
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp('planning')
    sets = dict(data=_data(folder / 'data'), large=_data(folder / 'large', size=32))
    sets['grey'] = _data(folder / 'grey', mode='L')
    pickles = {cfg: _snapshot(folder, cfg) for cfg in ('lia', 'auto')}
    encoder = dict(arch='resnet', space='y', channel_base=32, channel_max=4)
    stages.prepare_encoder_stage(pickles['lia'], str(folder / 'encoder.pkl'), encoder)
    auto = load_network_pkl(pickles['auto'])
    save_network_pkl(str(folder / 'slim.pkl'), dict(G_ema=auto['G_ema']))
    attach_files.attach_file(pickles['auto'], str(folder / 'attached.pkl'), fit=Fit(steps=2, batch=8), num=4)
    alias_free = networks_stylegan3.Generator(8, 0, 8, 16, 3, channel_base=64, channel_max=8, num_layers=4).eval()
    save_network_pkl(str(folder / 'free.pkl'), dict(auto, G=alias_free, G_ema=alias_free))
    attach_files.attach_file(str(folder / 'free.pkl'), str(folder / 'free-phi.pkl'), fit=Fit(steps=2, batch=8), num=4)
    more = {name: str(folder / f'{name}.pkl') for name in ('encoder', 'slim', 'attached', 'free', 'free-phi')}
    return {**sets, **pickles, **more}


def _encoder(files: dict[str, str], source: str, **said: Any) -> dict[str, Any]:
    options = Options(files['data'], stage='encoder', resume=files[source], device='cpu', batch=4, **said)
    return planning.plan(options)['encoder']


@pytest.mark.parametrize('cfg, source', [('auto', 'free'), ('lia', 'free'), ('lia', 'free-phi')])
def test_stage_1_refuses_alias_free_networks(cfg: str, source: str, files: dict[str, str]) -> None:
    """It would copy the discriminator, and leave the synthesis network at random."""
    stage = 'gan' if cfg == 'lia' else 'both'
    with pytest.raises(UserError, match='is alias-free, and stage 1 trains StyleGAN2 alone'):
        planning.plan(Options(files['data'], cfg=cfg, stage=stage, resume=files[source], device='cpu', batch=4))


def test_an_encoder_is_as_wide_as_its_discriminator(files: dict[str, str]) -> None:
    stage = _encoder(files, 'lia')
    assert stage['G_kwargs']['encoder_kwargs'] == dict(
        arch='resnet', space='y', channel_base=64, channel_max=8, hidden_features=16)
    assert (stage['D_kwargs']['channel_base'], stage['D_kwargs']['channel_max']) == (64, 8)
    assert stage['G_kwargs']['z_dim'] == 8, 'the network is the pickle\'s, not the default'
    assert _encoder(files, 'lia', cbase=32)['G_kwargs']['encoder_kwargs']['channel_base'] == 32


def test_the_planned_networks_are_those_of_the_pickle(files: dict[str, str], tmp_path: pathlib.Path) -> None:
    """The loop builds G from the plan and fills it from encoder-init.pkl: both must be one network."""
    stage = _encoder(files, 'lia')
    encoder = stage['G_kwargs']['encoder_kwargs']
    prepared = stages.prepare_encoder_stage(files['lia'], str(tmp_path / 'init.pkl'), encoder)
    assert stage['G_kwargs'] == dict(class_name='lia_plugin.networks.Generator', **prepared)
    both = planning.plan(Options(files['data'], **SMALL))['encoder']['G_kwargs']
    assert both == dict(stage['G_kwargs'], encoder_kwargs=both['encoder_kwargs'])


def test_an_encoder_that_is_there_goes_on(files: dict[str, str]) -> None:
    stage = _encoder(files, 'encoder')
    assert stage['G_kwargs']['encoder_kwargs'] == dict(arch='resnet', space='y', channel_base=32, channel_max=4)
    with pytest.raises(UserError, match='space'):
        _encoder(files, 'encoder', enc_space='z')


@pytest.mark.parametrize('source', ['lia', 'encoder'])
def test_fp32_in_stage_2_changes_precision_alone(source: str, files: dict[str, str]) -> None:
    half, full = (_encoder(files, source, fp32=fp32) for fp32 in (False, True))
    assert half['D_kwargs']['num_fp16_res'] == half['G_kwargs']['synthesis_kwargs']['num_fp16_res'] == 4
    assert full['D_kwargs'] == {**half['D_kwargs'], 'num_fp16_res': 0}
    synthesis = {**half['G_kwargs']['synthesis_kwargs'], 'num_fp16_res': 0}
    assert full['G_kwargs'] == {**half['G_kwargs'], 'synthesis_kwargs': synthesis}


@pytest.mark.parametrize('said, message', [
    (dict(stage='encoder', resume='lia', data='large'), '16 pixels a side, the data set has 32'),
    (dict(stage='encoder', resume='lia', data='grey'), '3 channels, the data set has 1'),
    (dict(SMALL, resume='lia', data='large'), '16 pixels a side'),
    (dict(SMALL, resume='lia', cbase=32), r'synthesis.* is \[8, .*, these options make it'),
    (dict(SMALL, resume='auto', cmax=4), r'is \[8, .* make it \[4, '),
    (dict(SMALL, resume='auto', map_depth=2), '--map-depth: 2 contradicts --resume'),
    (dict(SMALL, resume='auto', latent_dim=16), '--latent-dim: 16 contradicts --resume: .* has 8'),
    (dict(SMALL, resume='lia', coupling='affine'), '--coupling: affine contradicts --resume: .* has additive'),
    (dict(SMALL, resume='lia', phi_layers=6), '--phi-layers: 6 contradicts'),
    (dict(SMALL, cfg='auto', resume='lia'), 'would start at random; give --cfg=lia'),
    (dict(SMALL, cfg='auto', resume='auto', map_depth=3), '--map-depth: 3 contradicts .* has 2'),
    (dict(stage='encoder', resume='slim', percep='disc'), '--percep=disc: .* no discriminator'),
    (dict(SMALL, resume='slim'), 'holds no D'),
])
def test_pickles_that_do_not_fit(said: dict[str, Any], message: str, files: dict[str, str]) -> None:
    said = {'data': 'data', 'device': 'cpu', **said}
    options = Options(**{**said, 'data': files[said['data']], 'resume': files[said['resume']]})
    with pytest.raises((UserError, click.UsageError), match=message) as caught:
        planning.plan(options)
    assert '\n' not in str(caught.value) and '.pkl' in str(caught.value)


@pytest.mark.parametrize('source', ['lia', 'auto', 'attached'])
def test_transfer_leaves_no_part_of_the_mapping_at_random(source: str, files: dict[str, str]) -> None:
    """The network of the plan has exactly the tensors of the pickle that the loop is given."""
    plan = planning.plan(Options(files['data'], resume=files[source], **SMALL))
    size = dict(c_dim=0, img_resolution=16, img_channels=3)
    wanted = dnnlib.util.construct_class_by_name(**plan['gan']['G_kwargs'], **size).state_dict()
    given = 'attached' if source == 'auto' else source
    assert wanted.keys() == load_network_pkl(files[given])['G_ema'].state_dict().keys()
    assert plan['encoder']['G_kwargs'].items() >= plan['gan']['G_kwargs'].items()
    assert plan['gan']['resume_pkl'] == files[source]
    told = ' '.join(plan['notes'] + plan['transfer'])
    if source == 'auto':
        assert plan['attach']['network'] == files['auto'] and 'has no φ' in told
        assert 'new, fitted to the old mapping network: mapping.phi' in told
        assert 'not taken over: mapping.fc0 (2)' in told
    else:
        assert plan['attach'] is None and 'G_ema: all' in told and 'new' not in told


def test_a_plain_mapping_is_as_deep_as_the_pickles(files: dict[str, str]) -> None:
    plan = planning.plan(Options(files['data'], cfg='paper256', resume=files['auto'], metrics='none', **SMALL))
    assert plan['gan']['G_kwargs']['mapping_kwargs']['num_layers'] == 2
    assert any('2 mapping layers' in note for note in plan['notes'])


def test_stage_2_of_a_plain_pickle_plans_to_attach(files: dict[str, str]) -> None:
    options = Options(files['data'], stage='encoder', resume=files['auto'], device='cpu', batch=4)
    plan = planning.plan(options)
    attached = planning.plan(dataclasses.replace(options, resume=files['attached']))
    assert plan['attach']['mode'] == 'replace' and attached['attach'] is None
    assert plan['encoder']['G_kwargs'] == attached['encoder']['G_kwargs']
    assert plan['encoder']['D_kwargs'] == attached['encoder']['D_kwargs']


@pytest.mark.parametrize('said, message', [
    (dict(cuda_graphs='on'), '--cuda-graphs=on: needs a CUDA GPU, and this run is on cpu'),
    (dict(workers=10**4), '--workers: 10000 processes on this machine, which has 2 CPUs for them; 64 at most'),
    (dict(workers=33, gpus=2), '--workers: 66 processes'),
    (dict(gpus=1000), '--gpus: 1000 processes on this machine'),
    (dict(device='meta'), '--device=meta: cannot be used here'),
    (dict(precision='fp16'), '--precision=fp16: on a CPU there are bf16 and fp32'),
])
def test_what_this_machine_cannot_do(
    said: dict[str, Any], message: str, files: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host, '_usable_cpus', lambda: 2)
    with pytest.raises(UserError, match=message):
        planning.plan(Options(files['data'], **{**SMALL, **said}), dry=True)


def test_graphs_that_nobody_insists_on_are_told_of(files: dict[str, str]) -> None:
    plan = planning.plan(Options(files['data'], **SMALL, cuda_graphs='auto'), dry=True)
    assert '--cuda-graphs=auto: none on cpu; they are for CUDA GPUs' in plan['notes']


def test_without_a_discriminator_stage_2_says_what_it_does(files: dict[str, str]) -> None:
    plan = planning.plan(Options(files['data'], stage='encoder', resume=files['slim'], device='cpu', batch=4))
    assert (plan['encoder']['D_kwargs']['channel_base'], plan['encoder']['D_kwargs']['channel_max']) == (64, 8)
    assert any('makes a new one' in note for note in plan['notes'])


def test_a_plan_is_a_function_of_its_options(files: dict[str, str]) -> None:
    options = Options(files['data'], **SMALL)
    assert planning.plan(options) == planning.plan(options)
    assert planning.plan(options)['options'] == dataclasses.asdict(options)


# ---------------------------------------------------------------------------------------------------------------------
# Metrics


def test_all_recon_stands_for_what_can_be_measured_here(
    files: dict[str, str], tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv('DNNLIB_CACHE_DIR', str(tmp_path))
    plan = planning.plan(Options(files['data'], metrics='all-recon,latent_fd', detector='random:0', **SMALL))
    found = plan['encoder']['metrics']
    recon = {f'recon_{name}' for name in ('mse', 'psnr', 'ssim', 'swd', 'fid', 'fid_train')}
    assert set(found) == {'latent_fd', *recon} and len(found) == 7
    assert plan['gan']['metrics'] == [] and plan['options']['metrics'] == 'all-recon,latent_fd'
    (note,) = plan['notes']
    assert note.startswith('all-recon leaves out') and 'recon_lpips' in note and 'recon_fid' not in note


@pytest.mark.parametrize('said, complaint', [
    (dict(metrics='recon_msssim'), 'recon_msssim needs images of at least 161 pixels a side, the network makes 16'),
    (dict(metrics='recon_mse,recon_id'), 'recon_id needs --id-detector'),
    (dict(metrics='all-recon', stage='gan'), 'recon_mse needs an encoder, which this command'),
    (dict(metrics='all-recons'), 'all-recons: unknown'),
])  # fmt: skip
def test_metrics_that_this_run_cannot_measure(files: dict[str, str], said: dict[str, str], complaint: str) -> None:
    with pytest.raises((UserError, click.UsageError), match=complaint):
        planning.plan(Options(files['data'], **said, **SMALL))


def test_what_an_encoder_that_is_there_was_made_for(files: dict[str, str], tmp_path: Any) -> None:
    made = str(tmp_path / 'plus.pkl')
    encoder = dict(arch='resnet', space='y+', channel_base=64, channel_max=8)
    stages.prepare_encoder_stage(files['lia'], made, encoder, start='random')
    stage = _encoder(dict(files, plus=made), 'plus')
    assert stage['G_kwargs']['encoder_kwargs']['space'] == 'y+' and stage['loss_kwargs']['offset_weight'] == 0.01
    assert _encoder(dict(files, plus=made), 'plus', enc_offset=0.5)['loss_kwargs']['offset_weight'] == 0.5
    with pytest.raises(click.UsageError, match='--enc-iters: 2, but the encoder of --resume was made for 1'):
        _encoder(dict(files, plus=made), 'plus', enc_iters=2)
    with pytest.raises(click.UsageError, match='--enc-offset: only y\\+ has offsets, this encoder leads to y'):
        _encoder(files, 'lia', enc_offset=0.5)
