"""What `--resume` of train.py gives a run: the networks that it takes over, and what it must not leave at random.

Nothing is trained or written here: a plan says what will be done.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from click import UsageError

import dnnlib
from lia_plugin import attach, config, host, stages
from lia_plugin.options import Options, changed, flag
from lia_plugin.phi_fit import Fit


def check_network(G: Any, source: str, info: config.DataInfo) -> None:
    """A network to go on from must be made for such images and labels."""
    made_for = (G.img_resolution, G.img_channels, G.c_dim)
    wanted = (info.resolution, info.num_channels, info.label_dim)
    for what, got, expected in zip(('pixels a side', 'channels', 'label dimensions'), made_for, wanted, strict=True):
        if got != expected:
            raise host.UserError(f'--resume: {source}: made for {got} {what}, the data set has {expected}')


def plan_attach(result: dict[str, Any], G: Any, source: str, options: Options, fit: Fit) -> None:
    """Puts into a plan that φ is to be attached first. UserError if it can't be."""
    attach.check_network(G, source)
    result['attach'] = dict(network=source, mode='replace', fit=dataclasses.asdict(fit),
                            data=options.data if G.c_dim else None, detector=host.local_detector())
    result['notes'].append(
        f'{source} has no φ: before training, one is fitted to its mapping network and takes its place (as the command '
        'attach does); the network with φ is kept as attached.pkl in the run directory'
    )


# ---------------------------------------------------------------------------------------------------------------------
# Stage 2


def plan_encoder(result: dict[str, Any], source: str, options: Options, info: config.DataInfo) -> None:
    """Puts into stage 2's arguments the networks that the pickle has, which it must be able to go on with."""
    stage = result['encoder']
    data = host.load_network_pkl(source, trust=options.trust_pickle)
    check_network(data['G_ema'], source, info)
    if not attach.has_phi(data['G_ema']):
        plan_attach(result, data['G_ema'], source, options, Fit())
    D_kwargs = _discriminator(result, data, source, options)
    # What isn't said is as the pickle's encoder has it, or else as wide as its discriminator.
    wanted, there = stage['G_kwargs']['encoder_kwargs'], data['G_ema'].init_kwargs.get('encoder_kwargs') or D_kwargs
    for key, field in dict(arch='enc_arch', space='enc_space', channel_base='cbase', channel_max='cmax').items():
        if changed(options, (field,)) is None:
            wanted[key] = there.get(key, wanted[key])
    _shape_encoder(wanted, data['G_ema'], options)
    if wanted['space'] == 'y+':
        stage['loss_kwargs']['offset_weight'] = config.encoder_preset(options).offset
    elif options.enc_offset is not None:
        raise UsageError(f'--enc-offset: only y+ has offsets, this encoder leads to {wanted["space"]}')
    if config.encoder_preset(options).lr is None:
        stage['G_opt_kwargs']['lr'] = config.encoder_lr(wanted['channel_max'])
    G_kwargs = stages.generator_kwargs(data['G_ema'], wanted, source)
    if options.fp32:  # Precision alone: conv_clamp belongs to the function that the networks were trained to be.
        G_kwargs['synthesis_kwargs'] = dict(G_kwargs.get('synthesis_kwargs', {}), num_fp16_res=0)
        D_kwargs['num_fp16_res'] = 0
    stage['G_kwargs'] = dict(class_name=stage['G_kwargs']['class_name'], **G_kwargs)
    stage['D_kwargs'] = dict(class_name=stage['D_kwargs']['class_name'], **D_kwargs)


def _shape_encoder(wanted: dict[str, Any], G: Any, options: Options) -> None:
    """What no option decides alone: an encoder that is there stays as it is, a new one fits the pickle's codes."""
    there = G.init_kwargs.get('encoder_kwargs')
    if there is not None:
        asked, has = options.enc_iters, there.get('iters', 1)
        if asked not in (None, has):
            raise UsageError(f'--enc-iters: {asked}, but the encoder of --resume was made for {has}; leave it out, or '
                             'start from the stage-1 pickle')
        for key in ('hidden_features', 'iters'):
            wanted.pop(key, None)
            wanted.update({key: there[key]} if key in there else {})
    if there is None and wanted['arch'] == 'resnet':
        wanted['hidden_features'] = config.hidden_features(wanted['channel_max'], G.z_dim)


def _discriminator(result: dict[str, Any], data: dict[str, Any], source: str, options: Options) -> dict[str, Any]:
    """Arguments of the pickle's discriminator; of a new one, with what that changes, if it has none."""
    stage = result['encoder']
    if data.get('D') is not None:
        kwargs = {k: v for k, v in data['D'].init_kwargs.items() if k not in stages.LOOP_KEYS}
        return host.said_precision(data['D'], kwargs)
    loss = stage['loss_kwargs']
    if loss['percep'] == 'disc' and loss['percep_weight']:
        raise UsageError(f'--percep=disc: {source} holds no discriminator whose features it could use; leave it '
                         'out, or --percep=vgg16')
    told = f'{source} holds no discriminator: stage 2 makes a new one, which has learned nothing'
    result['notes'].append(told)
    kwargs = {k: v for k, v in stage['D_kwargs'].items() if k != 'class_name'}
    widths = attach.synthesis_kwargs(data['G_ema'])
    for key, field in dict(channel_base='cbase', channel_max='cmax').items():
        if changed(options, (field,)) is None and key in widths:
            kwargs[key] = widths[key]
    return kwargs


# ---------------------------------------------------------------------------------------------------------------------
# Stage 1


def plan_gan(result: dict[str, Any], options: Options, info: config.DataInfo, source: str) -> None:
    """Lets stage 1 start from a pickle: its latent spaces decide what isn't said, and no part of them is left behind.

    What the pickle and the stage's networks both have must have one shape. What only one of both has may differ outside
    the mapping network, and is told in `result['transfer']`.
    """
    stage = result['gan']
    data = host.load_network_pkl(source, trust=options.trust_pickle)
    G = data['G_ema']
    check_network(G, source, info)
    if attach.is_alias_free(G):
        raise host.UserError(f'--resume: {source}: is alias-free, and stage 1 trains StyleGAN2 alone; '
                             '--stage=encoder takes it')
    if options.cfg != 'lia':
        _take_plain_mapping(result, G, options, source)
    elif attach.has_phi(G):
        _take_phi(result, G, options, source)
    else:
        _fit_phi(result, G, options, source)
    if result['encoder'] is not None:
        encoder = result['encoder']['G_kwargs']['encoder_kwargs']
        result['encoder']['G_kwargs'] = dict(stage['G_kwargs'], encoder_kwargs=encoder)
    made_for: dict[str, Any] = dict(
        c_dim=info.label_dim, img_resolution=info.resolution, img_channels=info.num_channels
    )
    for name, kwargs in (('G_ema', stage['G_kwargs']), ('D', stage['D_kwargs'])):
        if data.get(name) is None:
            raise host.UserError(f'--resume: {source}: holds no {name}; give a training snapshot')
        wanted = dnnlib.util.construct_class_by_name(**kwargs, **made_for).state_dict()
        _check_shapes(name, wanted, data[name].state_dict(), source)
        fresh = 'fitted to the old mapping network' if result['attach'] and name == 'G_ema' else 'at random'
        result['transfer'] += host.describe_transfer(name, wanted, data[name].state_dict(), fresh)


def _check_shapes(name: str, wanted: dict[str, Any], there: dict[str, Any], source: str) -> None:
    for key, tensor in there.items():
        if key in wanted and wanted[key].shape != tensor.shape:
            raise host.UserError(
                f'--resume: {source}: {name}.{key} is {list(tensor.shape)}, these options make it '
                f'{list(wanted[key].shape)}; give those (--cbase, --cmax, …) that the pickle was trained with'
            )


def _said(options: Options, field: str, there: Any, source: str) -> None:
    """UserError if the user said something else than the pickle has."""
    value = getattr(options, field)
    if changed(options, (field,)) is not None and value != there:
        raise host.UserError(f'{flag(field)}: {value} contradicts --resume: {source} has {there}; leave it out')


def _take_latents(result: dict[str, Any], G: Any, options: Options, source: str) -> None:
    _said(options, 'latent_dim', G.w_dim, source)
    result['gan']['G_kwargs'].update(z_dim=G.z_dim, w_dim=G.w_dim)


def _take_plain_mapping(result: dict[str, Any], G: Any, options: Options, source: str) -> None:
    """A plain mapping network must be as deep as the pickle's: half of one is worth nothing."""
    if attach.has_phi(G):
        raise host.UserError(
            f'--resume: {source}: is a LIA network, and --cfg={options.cfg} has no place for its φ: its mapping '
            'network would start at random; give --cfg=lia, or a pickle of a plain StyleGAN2'
        )
    _take_latents(result, G, options, source)
    mapping = result['gan']['G_kwargs']['mapping_kwargs']
    depth = G.mapping.num_layers
    _said(options, 'map_depth', depth, source)
    if mapping['num_layers'] != depth:
        result['notes'].append(f'{depth} mapping layers, as {source} has, in place of {mapping["num_layers"]} of '
                               f'--cfg={options.cfg}')
        mapping['num_layers'] = depth


def _take_phi(result: dict[str, Any], G: Any, options: Options, source: str) -> None:
    """φ and what else is between z and w are as in the pickle."""
    there = host.plain(dict(G.init_kwargs)).get('mapping_kwargs') or {}
    phi = there.get('phi_kwargs') or {}
    _said(options, 'map_depth', there.get('num_layers', 0), source)
    _said(options, 'coupling', phi.get('coupling', 'additive'), source)
    _said(options, 'phi_layers', phi.get('num_couplings', 4), source)
    _take_latents(result, G, options, source)
    result['gan']['G_kwargs']['mapping_kwargs'] = there


def _fit_phi(result: dict[str, Any], G: Any, options: Options, source: str) -> None:
    """φ is fitted to a plain network's mapping first; the run trains that φ."""
    if options.map_depth:
        raise host.UserError(f'--map-depth: {options.map_depth} contradicts --resume: {source} has no φ, and the one '
                             'that is fitted to its mapping network stands in its place; leave it out')
    fit = Fit() if changed(options, ('phi_layers',)) is None else Fit(couplings=options.phi_layers)
    plan_attach(result, G, source, options, fit)
    kwargs = attach.lia_kwargs(G, 'replace', fit)
    _said(options, 'latent_dim', G.w_dim, source)
    result['gan']['G_kwargs'].update({k: kwargs[k] for k in ('z_dim', 'w_dim', 'mapping_kwargs')})


def keep_networks(result: dict[str, Any], recorded: dict[str, Any]) -> None:
    """A run that goes on has the networks that it began with; the pickle of --resume may be gone."""
    for stage in ('gan', 'encoder'):
        if result[stage] is not None:
            result[stage]['G_kwargs'] = recorded[stage]['G_kwargs']
