"""Training configurations: the presets, the automatic rules, and pure functions that give JSON-able arguments.

The chain is: options (what the user said) + data (what the data set is) → arguments of the training loop, per stage.
Nothing here reads or writes files or needs torch.
"""

import dataclasses
import math
from typing import Any

from click import UsageError

from lia_plugin.options import TRANSFER_SOURCES, Options


@dataclasses.dataclass(frozen=True)
class DataInfo:
    """The facts about the training set that a configuration depends on."""

    name: str
    num_images: int  # Before the held-out share is taken, mirror images not counted.
    resolution: int
    num_channels: int
    label_dim: int = 0


@dataclasses.dataclass(frozen=True)
class Preset:
    """What a `--cfg` stands for. None = by the automatic rule of `resolve`."""

    kimg: int = 25000
    batch: int | None = None
    mbstd_group: int | None = None
    channel_base: int | None = None
    channel_max: int = 512
    lr: float | None = None
    gamma: float | None = None
    ema_kimg: float | None = None
    ema_rampup: float | None = 0.05  # None = full length from the start.
    map_depth: int = 2
    pl_weight: float = 2
    style_mixing: float = 0.9
    d_architecture: str = 'resnet'
    generator: str = 'training.networks.Generator'


def _paper(batch: int, channel_base: int, lr: float, gamma: float, **other: Any) -> Preset:
    shared = dict(mbstd_group=batch // 8, ema_kimg=batch * 10 / 32, ema_rampup=None, map_depth=8)
    return Preset(batch=batch, channel_base=channel_base, lr=lr, gamma=gamma, **{**shared, **other})


PRESETS = {
    'lia': Preset(map_depth=0, generator='lia_plugin.networks.Generator'),
    'auto': Preset(),
    'stylegan2': _paper(batch=32, channel_base=32768, lr=0.002, gamma=10),
    'paper256': _paper(batch=64, channel_base=16384, lr=0.0025, gamma=1),
    'paper512': _paper(batch=64, channel_base=32768, lr=0.0025, gamma=0.5),
    'paper1024': _paper(batch=32, channel_base=32768, lr=0.002, gamma=2),
    'cifar': _paper(batch=64, channel_base=32768, lr=0.0025, gamma=0.01, kimg=100000, mbstd_group=32, ema_kimg=500,
                    ema_rampup=0.05, map_depth=2, pl_weight=0, style_mixing=0, d_architecture='orig'),
}


@dataclasses.dataclass(frozen=True)
class EncoderPreset:
    """What an `--enc-loss` stands for: the loss and the optimiser of stage 2.

    The defaults were chosen at equal CPU time on 32×32 photographs of faces (benchmarks/results), by the error of
    reconstructions: a start that knows what the networks know, momentum, and the exact prior, which costs a twentieth
    of the error and keeps codes near the generated ones. D's features, its judgement and generated images in the batch
    cost more than they gave there; D makes reconstructions sharper, at a quarter more error.
    """

    kimg: int = 5000
    pixel: float = 1.0
    percep_network: str = 'none'
    percep: float | None = None  # None = PERCEP_WEIGHTS, by the network.
    adv: float = 0.0
    adv_start: float = 0.5  # The share of the run after which the adversarial term counts.
    latent: float = 0.0
    mix: float = 0.0  # Share of generated images in a batch.
    offset: float = 0.01  # y+: penalty on the layers' offsets from the base code.
    prior: float = 0.002  # Weight of the codes' likelihood under the exact prior.
    start: str = 'network'  # Or 'head', 'random': see lia_plugin.encoder_start.
    iters: int = 1  # Passes of the encoder; each but the first sees what the one before has made.
    schedule: str = 'cosine'
    lr: float | None = None  # None = by the network's width: encoder_lr.
    d_lr: float | None = None  # None = as in stage 1.
    d_betas: tuple[float, float] = (0.0, 0.99)
    d_schedule: str = 'constant'
    betas: tuple[float, float] = (0.9, 0.99)
    r1_gamma: float | None = None  # None = as in stage 1.
    r1_interval: int | None = 16  # None = each step.


ENCODER_PRESETS = {
    'default': EncoderPreset(),
    # The reference code's stage 2.
    'paper': EncoderPreset(percep_network='vgg16-conv4_3', adv=0.1, adv_start=0.0, prior=0.0, start='random',
                           lr=1e-4, schedule='step', d_lr=1e-4, d_betas=(0.9, 0.99), d_schedule='step', r1_gamma=10,
                           r1_interval=None),
}

# The extractors differ in scale by orders of magnitude, so each has a weight of its own.
PERCEP_WEIGHTS = {'disc': 0.1, 'vgg16': 0.1, 'vgg16-conv4_3': 5e-5, 'none': 0.0}

HIDDEN_SHARE = 2  # Features before the encoder's head, in units of the code's dimensions.
LATENT_MIX = 0.5  # Share of generated images where their codes are supervised and nothing else is said.

VAL_SHARE = 0.05  # Held out by default for cfg=lia …
VAL_MAX_IMAGES = 5000  # … but no more than this.
DEFAULT_METRICS = {'lia': 'recon_mse,recon_psnr,latent_fd'}  # These need no download.
HOST_METRICS = 'fid50k_full'


def resolve(options: Options, resolution: int) -> Preset:
    """The preset with every None filled: by the options, else by the automatic rule.

    auto: mb = max(min(gpus·min(4096//res, 32), 64), gpus), gamma = 0.0002·res²/mb, EMA half-life 10·mb/32 kimg.
    """
    preset, gpus = PRESETS[options.cfg], options.gpus
    # --batch alone changes neither gamma nor the EMA: the formula takes the preset's own batch, as in the host.
    mb = preset.batch or max(min(gpus * min(4096 // resolution, 32), 64), gpus)
    automatic: dict[str, Any] = dict(
        batch=mb,
        mbstd_group=min(mb // gpus, 4),
        channel_base=32768 if resolution >= 512 else 16384,
        lr=0.002 if resolution >= 1024 else 0.0025,
        gamma=0.0002 * resolution ** 2 / mb,
        ema_kimg=mb * 10 / 32,
    )
    preset = dataclasses.replace(preset, **{k: v for k, v in automatic.items() if getattr(preset, k) is None})
    said = dict(kimg=options.kimg, batch=options.batch, mbstd_group=options.mbstd_group, channel_base=options.cbase,
                channel_max=options.cmax, gamma=options.gamma, map_depth=options.map_depth)
    preset = _override(preset, said)
    return dataclasses.replace(preset, ema_rampup=None) if options.transfers else preset


def _override(preset: Any, said: dict[str, Any]) -> Any:
    return dataclasses.replace(preset, **{k: v for k, v in said.items() if v is not None})


def encoder_preset(options: Options) -> EncoderPreset:
    """The preset of stage 2 with the user's own weights, extractor, learning rates and length in it.

    UsageError if nothing that is left of the loss tells the encoder anything about its image.
    """
    said = dict(kimg=options.enc_kimg, pixel=options.enc_pixel, percep_network=options.percep, lr=options.enc_lr,
                percep=options.enc_percep, adv=options.enc_adv, adv_start=options.enc_adv_start,
                latent=options.enc_latent, mix=options.enc_mix, offset=options.enc_offset, prior=options.enc_prior,
                start=options.enc_start, iters=options.enc_iters,
                schedule=options.enc_schedule, d_lr=options.dlr, r1_gamma=options.gamma)
    preset = _override(ENCODER_PRESETS[options.enc_loss], said)
    if preset.latent and not preset.mix:
        preset = dataclasses.replace(preset, mix=LATENT_MIX)
    if preset.percep_network == 'none' and preset.percep:
        raise UsageError('--enc-percep: needs features; add --percep=disc or vgg16')
    if options.enc_adv_start is not None and not preset.adv:
        raise UsageError('--enc-adv-start: there is no adversarial term whose time could come; add --enc-adv')
    if preset.percep is None:
        preset = dataclasses.replace(preset, percep=PERCEP_WEIGHTS[preset.percep_network])
    # The adversarial term alone asks for any good image, not for this one.
    if not (preset.pixel or preset.percep or preset.latent):
        raise UsageError('--enc-pixel: all terms that tell the encoder anything about its image are 0')
    return preset


# ---------------------------------------------------------------------------------------------------------------------
# Data.


def held_out(options: Options, num_images: int) -> float | str | None:
    """What `--val` means for a data set of so many images: the share to hold out, another data set's path, or None.

    Default: 0.05 and at most 5000 images for cfg=lia, nothing else for others, as their host has it.
    """
    if options.val is None:
        return min(VAL_SHARE, VAL_MAX_IMAGES / num_images) if options.cfg == 'lia' else None
    try:
        share = float(options.val)
    except ValueError:
        return None if options.val == 'none' else options.val
    if not 0 <= share < 1:
        raise UsageError(f'--val: {options.val} is neither a share (0 <= share < 1) nor a data set')
    return share or None


def training_set_kwargs(options: Options, info: DataInfo) -> dict[str, Any]:
    """Arguments of the training set: the host's, and the split if a share is held out."""
    share = held_out(options, info.num_images)
    split = dict(split='train', val_share=share, val_seed=0) if isinstance(share, float) else {}
    return dict(_data_set(options, info, options.data), max_size=options.subset, xflip=options.mirror, **split)


def val_set_kwargs(options: Options, info: DataInfo) -> dict[str, Any] | None:
    """Arguments of the held-out set, which is never mirrored; None if there is none."""
    held = held_out(options, info.num_images)
    if held is None:
        return None
    if isinstance(held, str):
        return dict(_data_set(options, info, held), max_size=None, xflip=False)
    split = dict(split='val', val_share=held, val_seed=0)
    return dict(_data_set(options, info, options.data), max_size=None, xflip=False, **split)


def _data_set(options: Options, info: DataInfo, path: str) -> dict[str, Any]:
    return dict(class_name='training.dataset.ImageFolderDataset', path=path, use_labels=options.cond,
                resolution=info.resolution, random_seed=options.seed)


def _data_loader_kwargs(options: Options) -> dict[str, Any]:
    on_gpu = options.device.startswith('cuda')
    workers = options.workers if options.workers is not None else (3 if on_gpu else 1)
    return dict(pin_memory=on_gpu, num_workers=workers, prefetch_factor=2 if workers else None)


# ---------------------------------------------------------------------------------------------------------------------
# Networks and optimisers.


def _precision(options: Options) -> dict[str, Any]:
    # The networks use float16 on CUDA alone; elsewhere these say nothing.
    return dict(num_fp16_res=0, conv_clamp=None) if options.fp32 else dict(num_fp16_res=4, conv_clamp=256)


def generator_kwargs(options: Options, preset: Preset) -> dict[str, Any]:
    """Arguments of the generator of stage 1."""
    mapping: dict[str, Any] = dict(num_layers=preset.map_depth)
    if options.cfg == 'lia':
        mapping['phi_kwargs'] = dict(num_couplings=options.phi_layers, coupling=options.coupling,
                                     hidden_features=options.latent_dim, lr_multiplier=0.01)
    synthesis = dict(channel_base=preset.channel_base, channel_max=preset.channel_max, **_precision(options))
    if options.nhwc:
        synthesis['fp16_channels_last'] = True
    if not options.noise_inputs:
        synthesis['use_noise'] = False
    return dict(class_name=preset.generator, z_dim=options.latent_dim, w_dim=options.latent_dim,
                mapping_kwargs=mapping, synthesis_kwargs=synthesis)


def discriminator_kwargs(options: Options, preset: Preset) -> dict[str, Any]:
    """Arguments of the discriminator."""
    block: dict[str, Any] = dict(freeze_layers=options.freezed) if options.freezed else {}
    if options.nhwc:
        block['fp16_channels_last'] = True
    return dict(class_name='training.networks.Discriminator', architecture=preset.d_architecture,
                channel_base=preset.channel_base, channel_max=preset.channel_max, **_precision(options),
                block_kwargs=block, mapping_kwargs={}, epilogue_kwargs=dict(mbstd_group_size=preset.mbstd_group))


def _adam(
    lr: float | None, betas: tuple[float, float] = (0.0, 0.99), schedule: str = 'constant', steps: int = 0
) -> dict[str, Any]:
    adam = dict(class_name='torch.optim.Adam', lr=lr, betas=[float(b) for b in betas], eps=1e-8)
    if schedule == 'constant':
        return adam
    return {**adam, 'class_name': 'lia_plugin.optim.ScheduledAdam', 'schedule': schedule, 'total_steps': steps}


# ---------------------------------------------------------------------------------------------------------------------
# Stages.


def gan_stage(
    options: Options, info: DataInfo, augpipe_kwargs: dict[str, Any], metrics: list[str]
) -> dict[str, Any]:
    """Arguments of the training loop for stage 1, or for the whole of a plain StyleGAN2."""
    preset = resolve(options, info.resolution)
    loss = dict(class_name='training.loss.StyleGAN2Loss', r1_gamma=preset.gamma, pl_weight=preset.pl_weight,
                style_mixing_prob=preset.style_mixing)
    augment = dict(class_name='training.augment.AugmentPipe', **augpipe_kwargs) if options.aug != 'noaug' else None
    return dict(
        stage='gan',
        G_kwargs=generator_kwargs(options, preset),
        D_kwargs=discriminator_kwargs(options, preset),
        G_opt_kwargs=_adam(options.glr or preset.lr),
        D_opt_kwargs=_adam(options.dlr or preset.lr),
        loss_kwargs=loss,
        augment_kwargs=augment,
        augment_p=options.p or 0,
        ada_target=(0.6 if options.target is None else options.target) if options.aug == 'ada' else None,
        ada_kimg=100 if options.transfers else 500,
        ema_kimg=preset.ema_kimg,
        ema_rampup=preset.ema_rampup,
        metrics=metrics,
        resume_pkl=TRANSFER_SOURCES.get(options.resume, options.resume) if options.transfers else None,
        **_shared(options, info, preset.batch, preset.kimg),
    )


def encoder_stage(options: Options, info: DataInfo) -> dict[str, Any]:
    """Arguments of the training loop for stage 2. Those of the encoder itself are in G_kwargs.encoder_kwargs.

    The loss lacks `percep_network`, the run's encoder-init.pkl, which the caller adds when there is a run directory.
    """
    preset, encoder = resolve(options, info.resolution), encoder_preset(options)
    loss = dict(class_name='lia_plugin.loss.EncoderLoss', pixel_weight=encoder.pixel, percep=encoder.percep_network,
                percep_weight=encoder.percep, adv_weight=encoder.adv, adv_start=encoder.adv_start,
                latent_weight=encoder.latent, mix=encoder.mix, total_kimg=encoder.kimg,
                r1_gamma=preset.gamma if encoder.r1_gamma is None else encoder.r1_gamma)
    if options.enc_space == 'y+':
        loss['offset_weight'] = encoder.offset
    if encoder.prior:
        loss['prior_weight'] = encoder.prior
    batch = options.enc_batch or preset.batch
    assert batch is not None, 'resolve() fills it'
    steps = math.ceil(encoder.kimg * 1000 / batch)
    # A share of the run, for the EMA of a short stage 2 must forget the encoder's first steps.
    ema_kimg = min(preset.ema_kimg or 10, 0.05 * encoder.kimg)
    shown = val_set_kwargs(options, info) or training_set_kwargs(options, info)
    return dict(
        stage='encoder',
        G_kwargs=dict(generator_kwargs(options, preset), encoder_kwargs=encoder_kwargs(options, preset)),
        D_kwargs=discriminator_kwargs(options, preset),
        G_opt_kwargs=_adam(encoder.lr or encoder_lr(preset.channel_max), encoder.betas, encoder.schedule, steps),
        D_opt_kwargs=_adam(encoder.d_lr or preset.lr, encoder.d_betas, encoder.d_schedule, steps),
        loss_kwargs=loss,
        G_reg_interval=None,
        D_reg_interval=encoder.r1_interval,
        ema_kimg=ema_kimg,
        ema_rampup=None,
        metrics=metric_names(options),
        snapshot_fns=[dict(func_name='lia_plugin.images.save_reconstruction_grid', dataset_kwargs=shown)],
        **_shared(options, info, batch, encoder.kimg),
    )


def encoder_kwargs(options: Options, preset: Preset) -> dict[str, Any]:
    """Arguments of the encoder that stage 2 adds to the generator."""
    kwargs = dict(arch=options.enc_arch, space=options.enc_space, channel_base=preset.channel_base,
                  channel_max=preset.channel_max)
    if options.enc_arch == 'resnet':
        kwargs['hidden_features'] = hidden_features(preset.channel_max, options.latent_dim)
    iters = encoder_preset(options).iters
    return {**kwargs, 'iters': iters} if iters > 1 else kwargs


def encoder_lr(channel_max: int) -> float:
    """The encoder's learning rate, by its width: .0125 for 64 channels, which measured best, .0044 for 512.

    One step changes what a layer gives by the rate times √inputs (weights have unit variance and are scaled by
    1/√inputs where they are used), so that wider networks need a lower one.
    """
    return 0.1 / math.sqrt(channel_max)


def hidden_features(channel_max: int, code_dim: int) -> int:
    """Width before the encoder's head. Fewer features than the code has dimensions would cut it short."""
    return max(channel_max, HIDDEN_SHARE * code_dim)


def _shared(options: Options, info: DataInfo, batch: int | None, kimg: float) -> dict[str, Any]:
    assert batch is not None, 'resolve() fills it'
    tick, snap = intervals(options, batch, kimg)
    return dict(
        training_set_kwargs=training_set_kwargs(options, info),
        val_set_kwargs=val_set_kwargs(options, info),
        data_loader_kwargs=_data_loader_kwargs(options),
        cache=options.cache,
        metric_kwargs=dict(detector=options.detector) if options.detector else {},
        batch_size=batch,
        batch_gpu=min(options.batch_gpu or batch, batch // options.gpus),
        total_kimg=kimg,
        kimg_per_tick=tick,
        image_snapshot_ticks=snap,
        network_snapshot_ticks=snap,
        random_seed=options.seed,
        num_gpus=options.gpus,
        cudnn_benchmark=not options.nobench,
        allow_tf32=options.allow_tf32,
        cuda_graphs=options.cuda_graphs or 'off',
        precision=options.precision,
    )


def intervals(options: Options, batch: int, kimg: float) -> tuple[float, int]:
    """Length of a tick in kimg, and ticks between snapshots: the host's 4 and 50, and shorter ones for short runs.

    By default there are 50 ticks and 10 snapshots in a run at least, unless ten steps take longer than a tick.
    """
    tick = options.tick or min(4, max(round(kimg / 50, 3), 10 * batch / 1000))
    return tick, options.snap or min(50, max(1, math.ceil(kimg / tick / 10)))


# ---------------------------------------------------------------------------------------------------------------------
# Metrics.


def metric_names(options: Options) -> list[str]:
    """The metrics asked for, by default those that need no download (cfg=lia) or the host's."""
    asked = options.metrics if options.metrics is not None else DEFAULT_METRICS.get(options.cfg, HOST_METRICS)
    return [name for name in asked.replace(' ', '').split(',') if name and name != 'none']
