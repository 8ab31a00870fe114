"""Configurations: the automatic rule in numbers, presets, and what must be said together or not at all."""

import json
import math
from typing import Any

import click
import pytest

from lia_plugin import config, options
from lia_plugin.options import Options


def _info(resolution: int = 64, num_images: int = 1000, channels: int = 3) -> config.DataInfo:
    return config.DataInfo('faces', num_images, resolution, channels)


@pytest.mark.parametrize('cfg', ['auto', 'lia'])
@pytest.mark.parametrize('resolution, gpus, batch, mbstd, channel_base, lr, gamma, ema', [
    (32, 1, 32, 4, 16384, 0.0025, 0.0002 * 1024 / 32, 10),
    (256, 1, 16, 4, 16384, 0.0025, 0.8192, 5),
    (256, 8, 64, 4, 16384, 0.0025, 0.2048, 20),
    (512, 2, 16, 4, 32768, 0.0025, 3.2768, 5),
    (1024, 8, 32, 4, 32768, 0.002, 6.5536, 10),
    (1024, 128, 128, 1, 32768, 0.002, 1.6384, 40),  # More processes than images by the rule: one each.
])
def test_automatic_rule(cfg: str, resolution: int, gpus: int, batch: int, mbstd: int, channel_base: int, lr: float,
                        gamma: float, ema: float) -> None:
    preset = config.resolve(Options('x', cfg=cfg, gpus=gpus), resolution)
    assert (preset.batch, preset.mbstd_group, preset.channel_base, preset.lr) == (batch, mbstd, channel_base, lr)
    assert preset.gamma == pytest.approx(gamma)
    assert (preset.ema_kimg, preset.ema_rampup, preset.map_depth) == (ema, 0.05, 2 if cfg == 'auto' else 0)


@pytest.mark.parametrize('cfg, batch, mbstd, channel_base, lr, gamma, ema, depth, kimg', [
    ('stylegan2', 32, 4, 32768, 0.002, 10, 10, 8, 25000),
    ('paper256', 64, 8, 16384, 0.0025, 1, 20, 8, 25000),
    ('paper512', 64, 8, 32768, 0.0025, 0.5, 20, 8, 25000),
    ('paper1024', 32, 4, 32768, 0.002, 2, 10, 8, 25000),
    ('cifar', 64, 32, 32768, 0.0025, 0.01, 500, 2, 100000),
])
def test_host_presets(cfg: str, batch: int, mbstd: int, channel_base: int, lr: float, gamma: float, ema: float,
                      depth: int, kimg: int) -> None:
    p = config.resolve(Options('x', cfg=cfg), 32)
    assert (p.batch, p.mbstd_group, p.channel_base, p.lr, p.gamma, p.ema_kimg, p.map_depth, p.kimg) == (
        batch, mbstd, channel_base, lr, gamma, ema, depth, kimg)


def test_cifar_is_as_its_host_has_it() -> None:
    stage = config.gan_stage(Options('x', cfg='cifar'), _info(32), {}, [])
    assert stage['D_kwargs']['architecture'] == 'orig'
    assert stage['loss_kwargs']['pl_weight'] == stage['loss_kwargs']['style_mixing_prob'] == 0


def test_noise_inputs_can_be_left_out() -> None:
    with_noise, without = (config.generator_kwargs(said, config.resolve(said, 64))['synthesis_kwargs']
                           for said in (Options('x'), Options('x', noise_inputs=False)))
    assert 'use_noise' not in with_noise and without == {**with_noise, 'use_noise': False}


def test_what_is_said_wins() -> None:
    said = Options('x', batch=8, gamma=3, cbase=2048, cmax=64, glr=1e-3, kimg=7, map_depth=1, latent_dim=32)
    stage = config.gan_stage(said, _info(), {}, [])
    assert (stage['batch_size'], stage['batch_gpu'], stage['total_kimg']) == (8, 8, 7)
    assert stage['loss_kwargs']['r1_gamma'] == 3 and stage['G_opt_kwargs']['lr'] == 1e-3
    assert stage['D_opt_kwargs']['lr'] == 0.0025, '--glr says nothing about D'
    assert stage['D_kwargs']['channel_base'] == stage['G_kwargs']['synthesis_kwargs']['channel_base'] == 2048
    assert stage['G_kwargs']['z_dim'] == stage['G_kwargs']['w_dim'] == 32
    assert stage['G_kwargs']['mapping_kwargs'] == dict(
        num_layers=1, phi_kwargs=dict(num_couplings=4, coupling='additive', hidden_features=32, lr_multiplier=0.01))


def test_batch_alone_leaves_gamma_and_ema_as_they_are() -> None:
    """As in the host: the formula takes the rule's batch, not the user's."""
    rule, said = (config.resolve(Options('x', batch=b), 256) for b in (None, 4))
    assert said.batch == 4 and (said.gamma, said.ema_kimg) == (rule.gamma, rule.ema_kimg)


@pytest.mark.parametrize('resume, ada_kimg, rampup', [('noresume', 500, 0.05), ('ffhq256', 100, None)])
def test_transfer(resume: str, ada_kimg: int, rampup: float | None) -> None:
    stage = config.gan_stage(Options('x', resume=resume), _info(256), {}, [])
    assert (stage['ada_kimg'], stage['ema_rampup']) == (ada_kimg, rampup)
    assert (stage['resume_pkl'] or '').startswith('https://' if resume == 'ffhq256' else '')


@pytest.mark.parametrize('said, target', [
    (dict(), 0.6), (dict(target=0), 0), (dict(target=0.5), 0.5), (dict(aug='noaug'), None),
])
def test_aim_of_ada(said: dict[str, Any], target: float | None) -> None:
    assert config.gan_stage(Options('x', **said), _info(), {}, [])['ada_target'] == target


@pytest.mark.parametrize('cfg', config.PRESETS)
def test_configurations_survive_json(cfg: str) -> None:
    said = Options('x', cfg=cfg)
    stages: list[dict[str, Any]] = [config.gan_stage(said, _info(32), dict(xflip=1), ['fid50k'])]
    stages += [config.encoder_stage(said, _info(32))] if cfg == 'lia' else []
    assert json.loads(json.dumps(stages)) == stages


def test_paper_loss() -> None:
    stage = config.encoder_stage(Options('x', enc_loss='paper'), _info())
    assert stage['loss_kwargs'] == dict(
        class_name='lia_plugin.loss.EncoderLoss', pixel_weight=1, percep='vgg16-conv4_3', percep_weight=5e-5,
        adv_weight=0.1, adv_start=0, latent_weight=0, mix=0, r1_gamma=10, total_kimg=5000)
    assert stage['D_reg_interval'] is None, 'R1 at each step'
    for name in ('G_opt_kwargs', 'D_opt_kwargs'):
        assert stage[name] == dict(
            class_name='lia_plugin.optim.ScheduledAdam', lr=1e-4, betas=[0.9, 0.99], eps=1e-8, schedule='step',
            total_steps=math.ceil(5_000_000 / stage['batch_size']))
    weaker = config.encoder_stage(Options('x', enc_loss='paper', enc_adv=0, percep='none'), _info())
    assert weaker['loss_kwargs']['adv_weight'] == 0 and weaker['loss_kwargs']['percep'] == 'none'


def test_codes_are_supervised_on_generated_images() -> None:
    assert config.encoder_preset(Options('x')).mix == 0
    assert config.encoder_preset(Options('x', enc_latent=0.1)).mix == config.LATENT_MIX > 0
    assert config.encoder_preset(Options('x', enc_latent=0.1, enc_mix=0.25)).mix == 0.25


def test_a_constant_learning_rate_needs_no_optimiser_of_ours() -> None:
    stage = config.encoder_stage(Options('x', enc_schedule='constant'), _info())
    assert stage['G_opt_kwargs']['class_name'] == 'torch.optim.Adam'


def test_the_penalty_on_offsets_belongs_to_y_plus() -> None:
    assert 'offset_weight' not in config.encoder_stage(Options('x'), _info())['loss_kwargs']
    plus = config.encoder_stage(Options('x', enc_space='y+', enc_offset=0.5, enc_iters=3), _info())
    assert plus['loss_kwargs']['offset_weight'] == 0.5
    assert plus['G_kwargs']['encoder_kwargs']['space'] == 'y+' and plus['G_kwargs']['encoder_kwargs']['iters'] == 3


@pytest.mark.parametrize('enc_loss', config.ENCODER_PRESETS)
@pytest.mark.parametrize('percep, weight', [('disc', 0.1), ('vgg16', 0.1), ('vgg16-conv4_3', 5e-5), ('none', 0)])
def test_each_extractor_has_its_own_weight(enc_loss: str, percep: str, weight: float) -> None:
    assert config.encoder_preset(Options('x', enc_loss=enc_loss, percep=percep)).percep == weight
    louder = Options('x', enc_loss=enc_loss, percep=percep, enc_percep=0.3)
    if percep != 'none':
        assert config.encoder_preset(louder).percep == 0.3
        return
    with pytest.raises(click.UsageError, match='--enc-percep: needs features'):
        config.encoder_preset(louder)


@pytest.mark.parametrize('enc_loss, gamma, expected', [
    ('paper', None, 10), ('paper', 3, 3), ('paper', 0, 0), ('default', 3, 3), ('default', None, 0.0002 * 64 ** 2 / 32),
])
def test_gamma_of_stage_2(enc_loss: str, gamma: float | None, expected: float) -> None:
    stage = config.encoder_stage(Options('x', enc_loss=enc_loss, gamma=gamma), _info())
    assert stage['loss_kwargs']['r1_gamma'] == pytest.approx(expected)


@pytest.mark.parametrize('said', [
    dict(percep='none', enc_pixel=0), dict(enc_loss='paper', percep='none', enc_pixel=0),
    dict(enc_percep=0, enc_pixel=0, enc_adv=1), dict(percep='none', enc_pixel=0, enc_latent=0),
])
def test_a_loss_that_tells_nothing_about_the_image(said: dict[str, Any]) -> None:
    with pytest.raises(click.UsageError, match='--enc-pixel'):
        config.encoder_preset(Options('x', **said))
    assert config.encoder_preset(Options('x', **{**said, 'enc_latent': 1})).latent == 1


@pytest.mark.parametrize('said, num_images, held', [
    (dict(), 1000, 0.05), (dict(), 1_000_000, 0.005), (dict(cfg='auto'), 1000, None), (dict(val='0.1'), 1_000_000, 0.1),
    (dict(val='0'), 1000, None), (dict(val='none'), 1000, None), (dict(val='val.zip', cfg='auto'), 1000, 'val.zip'),
])
def test_held_out_share(said: dict[str, Any], num_images: int, held: float | str | None) -> None:
    assert config.held_out(Options('x', **said), num_images) == held


def test_training_and_held_out_sets_are_two_halves() -> None:
    said = Options('x.zip', mirror=True, subset=100)
    train, val = config.training_set_kwargs(said, _info()), config.val_set_kwargs(said, _info())
    assert val is not None and (train['split'], val['split']) == ('train', 'val')
    assert (train['val_share'], train['val_seed']) == (val['val_share'], val['val_seed'])
    assert train['xflip'] and not val['xflip'] and (train['max_size'], val['max_size']) == (100, None)
    assert 'split' not in config.training_set_kwargs(Options('x.zip', cfg='auto'), _info()), 'hosts know no such key'


@pytest.mark.parametrize('kimg, batch, tick, snap', [
    (25000, 32, 4, 50), (2000, 32, 4, 50), (100, 32, 2, 5), (1, 32, 0.32, 1), (10, 4, 0.2, 5),
])
def test_short_runs_report_more_often(kimg: float, batch: int, tick: float, snap: int) -> None:
    assert config.intervals(Options('x'), batch, kimg) == (tick, snap)
    assert kimg < 10 or math.ceil(kimg / tick) // snap >= 10


@pytest.mark.parametrize('said, named', [
    (dict(cfg='auto', stage='encoder'), '--stage'),
    (dict(cfg='auto', enc_kimg=5), '--enc-kimg'),
    (dict(cfg='auto', enc_arch='paper'), '--enc-arch'),
    (dict(cfg='stylegan2', coupling='affine'), '--coupling'),
    (dict(cfg='auto', map_depth=0), '--map-depth'),
    (dict(stage='gan', enc_lr=1e-3), '--enc-lr'),
    (dict(stage='gan', percep='none'), '--percep'),
    (dict(stage='encoder'), '--resume'),
    (dict(stage='encoder', resume='x.pkl', kimg=5), '--kimg'),
    (dict(stage='encoder', resume='x.pkl', aug='noaug'), '--aug'),
    (dict(stage='encoder', resume='x.pkl', latent_dim=64), '--latent-dim'),
    (dict(aug='fixed'), '--p'),
    (dict(p=0.5), '--p'),
    (dict(aug='noaug', target=0.5), '--target'),
    (dict(aug='noaug', augpipe='bg'), '--augpipe'),
    (dict(percep='none', enc_percep=0.5), '--enc-percep'),
])
def test_contradictions(said: dict[str, Any], named: str) -> None:
    with pytest.raises(click.UsageError) as caught:
        options.check(Options('x', **said))
    assert named in caught.value.message and '\n' not in caught.value.message


@pytest.mark.parametrize('said', [
    dict(), dict(cfg='auto'), dict(stage='gan'), dict(stage='encoder', resume='x.pkl', enc_kimg=5),
    dict(stage='encoder', resume='x.pkl', fp32=True),
    dict(aug='fixed', p=0.2), dict(aug='ada', target=0.5, augpipe='bg'), dict(batch=8, gpus=2),
    dict(percep='none', enc_percep=0),
])
def test_what_goes_together(said: dict[str, Any]) -> None:
    options.check(Options('x', **said))


def test_the_encoders_learning_rate_follows_its_width() -> None:
    narrow, wide = (config.encoder_stage(Options('x', cmax=cmax), _info())['G_opt_kwargs']['lr'] for cmax in (64, 512))
    assert narrow == pytest.approx(0.0125) and wide == pytest.approx(narrow / math.sqrt(8))
    assert config.encoder_stage(Options('x', enc_lr=0.5), _info())['G_opt_kwargs']['lr'] == 0.5


def test_the_encoders_head_sees_more_features_than_the_code_has_dimensions() -> None:
    for cmax, dim, expected in ((64, 128, 256), (512, 512, 1024), (512, 64, 512)):
        kwargs = config.encoder_stage(Options('x', cmax=cmax, latent_dim=dim), _info())['G_kwargs']['encoder_kwargs']
        assert kwargs['hidden_features'] == expected


@pytest.mark.parametrize('said, told', [
    (dict(enc_percep=0.1, enc_pixel=0.0), '--enc-percep: needs features'),
    (dict(enc_adv_start=0.3), '--enc-adv-start: there is no adversarial term'),
])
def test_what_would_count_for_nothing_is_refused(said: dict[str, Any], told: str) -> None:
    with pytest.raises(click.UsageError, match=told):
        config.encoder_preset(Options('x', **said))


def test_the_discriminator_has_no_momentum_but_in_the_papers_recipe() -> None:
    for enc_loss, betas in (('default', [0.0, 0.99]), ('paper', [0.9, 0.99])):
        assert config.encoder_stage(Options('x', enc_loss=enc_loss), _info())['D_opt_kwargs']['betas'] == betas
