"""Plans against real (tiny) pickles: what fits, what is taken from them, and what is refused before a run begins."""

import dataclasses
import pathlib
from typing import Any

import numpy as np
import PIL.Image
import pytest

import dnnlib
from lia_plugin import config, planning, stages
from lia_plugin.host import UserError
from lia_plugin.options import Options
from torch_utils import network_pickle

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
    return {**sets, **pickles, 'encoder': str(folder / 'encoder.pkl')}


def _encoder(files: dict[str, str], source: str, **said: Any) -> dict[str, Any]:
    options = Options(files['data'], stage='encoder', resume=files[source], device='cpu', batch=4, **said)
    return planning.plan(options)['encoder']


def test_an_encoder_is_as_wide_as_its_discriminator(files: dict[str, str]) -> None:
    stage = _encoder(files, 'lia')
    assert stage['G_kwargs']['encoder_kwargs'] == dict(arch='resnet', space='y', channel_base=64, channel_max=8)
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
    (dict(stage='encoder', resume='auto'), 'no training snapshot of --cfg=lia'),
    (dict(stage='encoder', resume='lia', data='large'), '16 pixels a side, the data set has 32'),
    (dict(stage='encoder', resume='lia', data='grey'), '3 channels, the data set has 1'),
    (dict(SMALL, resume='lia', data='large'), '16 pixels a side'),
    (dict(SMALL, resume='lia', cbase=32), r'synthesis.* is \[8, .*, these options make it'),
    (dict(SMALL, resume='auto', cmax=4), r'is \[8, .* make it \[4, '),
])
def test_pickles_that_do_not_fit(said: dict[str, Any], message: str, files: dict[str, str]) -> None:
    said = {'data': 'data', 'device': 'cpu', **said}
    options = Options(**{**said, 'data': files[said['data']], 'resume': files[said['resume']]})
    with pytest.raises(UserError, match=message) as caught:
        planning.plan(options)
    assert '\n' not in str(caught.value) and '.pkl' in str(caught.value)


@pytest.mark.parametrize('source', ['lia', 'auto'])
def test_transfer_takes_what_fits(source: str, files: dict[str, str]) -> None:
    """A plain StyleGAN2 lends its synthesis and discriminator to LIA; φ is new."""
    plan = planning.plan(Options(files['data'], resume=files[source], **SMALL))
    assert plan['gan']['resume_pkl'] == files[source]


def test_a_plan_is_a_function_of_its_options(files: dict[str, str]) -> None:
    options = Options(files['data'], **SMALL)
    assert planning.plan(options) == planning.plan(options)
    assert planning.plan(options)['options'] == dataclasses.asdict(options)
