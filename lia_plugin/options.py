"""What the user can say to `train.py`, and whether it makes sense together. Nothing here needs torch."""

import dataclasses

from click import UsageError

STAGES = ('gan', 'encoder', 'both')
AUGPIPES = ('blit', 'geom', 'color', 'filter', 'noise', 'cutout', 'bg', 'bgc', 'bgcf', 'bgcfn', 'bgcfnc')
SPACES = ('y', 'y+', 'z')
STARTS = ('network', 'head', 'random')
SCHEDULES = ('cosine', 'step', 'constant')
PERCEPTUAL = ('disc', 'vgg16', 'vgg16-conv4_3', 'none')

# NVIDIA's transfer-learning sources for stylegan2-ada-pytorch.
_TRANSFER_FOLDER = 'https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/transfer-learning-source-nets/'
TRANSFER_SOURCES = {
    'ffhq256': _TRANSFER_FOLDER + 'ffhq-res256-mirror-paper256-noaug.pkl',
    'ffhq512': _TRANSFER_FOLDER + 'ffhq-res512-mirror-stylegan2-noaug.pkl',
    'ffhq1024': _TRANSFER_FOLDER + 'ffhq-res1024-mirror-stylegan2-noaug.pkl',
    'celebahq256': _TRANSFER_FOLDER + 'celebahq-res256-mirror-paper256-kimg100000-ada-target0.5.pkl',
    'lsundog256': _TRANSFER_FOLDER + 'lsundog-res256-paper256-kimg100000-noaug.pkl',
}


@dataclasses.dataclass(frozen=True)
class Options:
    """What the user said, field by field as the options of `train.py` (`--batch-gpu` is `batch_gpu`).

    None = by the preset, or by the automatic rule.
    """

    data: str
    cfg: str = 'lia'
    stage: str = 'both'
    gpus: int = 1
    device: str = 'auto'

    kimg: float | None = None
    enc_kimg: float | None = None
    batch: int | None = None
    batch_gpu: int | None = None
    enc_batch: int | None = None
    gamma: float | None = None
    glr: float | None = None
    dlr: float | None = None
    enc_lr: float | None = None

    cbase: int | None = None
    cmax: int | None = None
    latent_dim: int = 512
    map_depth: int | None = None
    noise_inputs: bool = True
    coupling: str = 'additive'
    phi_layers: int = 4
    mbstd_group: int | None = None

    cond: bool = False
    mirror: bool = False
    subset: int | None = None
    val: str | None = None
    aug: str = 'ada'
    p: float | None = None
    target: float | None = None
    augpipe: str | None = None

    enc_arch: str = 'resnet'
    enc_space: str = 'y'
    enc_iters: int | None = None
    enc_loss: str = 'default'
    enc_pixel: float | None = None
    enc_percep: float | None = None
    enc_adv: float | None = None
    enc_adv_start: float | None = None
    enc_latent: float | None = None
    enc_mix: float | None = None
    enc_offset: float | None = None
    enc_prior: float | None = None
    enc_schedule: str | None = None
    enc_start: str | None = None
    percep: str | None = None

    resume: str = 'noresume'
    freezed: int = 0
    trust_pickle: bool = False
    metrics: str | None = None
    detector: str | None = None
    snap: int | None = None
    tick: float | None = None
    seed: int = 0
    workers: int | None = None
    cache: str | int = 'auto'  # 'auto', 'off', or bytes.
    precision: str | None = None
    fp32: bool = False
    nhwc: bool = False
    nobench: bool = False
    keep_memory: bool = False
    allow_tf32: bool = False
    cuda_graphs: str | None = None
    desc: str | None = None

    @property
    def transfers(self) -> bool:
        """Whether training starts from another run's weights."""
        return self.resume != 'noresume'

    @property
    def has_gan_stage(self) -> bool:
        return self.cfg != 'lia' or self.stage != 'encoder'

    @property
    def has_encoder_stage(self) -> bool:
        return self.cfg == 'lia' and self.stage != 'gan'


# ---------------------------------------------------------------------------------------------------------------------
# Contradictions.

ENCODER_ONLY = ('enc_kimg', 'enc_batch', 'enc_lr', 'enc_arch', 'enc_space', 'enc_iters', 'enc_loss', 'enc_pixel',
                'enc_percep', 'enc_adv', 'enc_adv_start', 'enc_latent', 'enc_mix', 'enc_offset', 'enc_prior',
                'enc_schedule', 'enc_start', 'percep')
GAN_ONLY = ('kimg', 'glr', 'aug', 'p', 'target', 'augpipe', 'freezed')
PHI_ONLY = ('coupling', 'phi_layers')
FIXED_BY_PICKLE = ('latent_dim', 'map_depth', 'noise_inputs', 'mbstd_group', 'nhwc') + PHI_ONLY


def flag(field: str) -> str:
    """Field of Options → option of the command line."""
    return '--' + field.replace('_', '-')


def changed(options: Options, fields: tuple[str, ...]) -> str | None:
    """The first of `fields` that isn't at its default."""
    defaults = {f.name: f.default for f in dataclasses.fields(Options)}
    return next((name for name in fields if getattr(options, name) != defaults[name]), None)


def check(options: Options) -> None:
    """Raises click.UsageError, in one line, for options that contradict each other."""
    _check_stages(options)
    _check_augmentation(options)
    if options.fp32 and options.precision not in (None, 'fp32'):
        raise UsageError(f'--fp32: makes networks that compute in float32 on every host, which contradicts '
                         f'--precision={options.precision}')
    _check_encoder_loss(options)
    if options.cfg != 'lia' and options.map_depth == 0:
        raise UsageError(f'--map-depth: 0 is for --cfg=lia, whose φ stands in its place; --cfg={options.cfg} needs 1')


def _check_stages(options: Options) -> None:
    if options.cfg != 'lia':
        wrong = changed(options, ('stage',) + ENCODER_ONLY + PHI_ONLY)
        if wrong is not None:
            raise UsageError(f'{flag(wrong)}: only --cfg=lia has an encoder and φ, --cfg={options.cfg} has not')
    if options.stage == 'gan' and (wrong := changed(options, ENCODER_ONLY)) is not None:
        raise UsageError(f'{flag(wrong)}: belongs to the encoder, which --stage=gan doesn\'t train')
    if options.stage != 'encoder':
        return
    if not options.transfers:
        raise UsageError('--stage=encoder: needs the network of stage 1; add --resume=network-snapshot-….pkl')
    if (wrong := changed(options, GAN_ONLY)) is not None:
        raise UsageError(f'{flag(wrong)}: belongs to stage 1, which --stage=encoder doesn\'t train')
    if (wrong := changed(options, FIXED_BY_PICKLE)) is not None:
        raise UsageError(f'{flag(wrong)}: with --stage=encoder the network of --resume decides it; leave it out')


def _check_augmentation(options: Options) -> None:
    if options.aug == 'fixed' and options.p is None:
        raise UsageError('--aug=fixed: needs the probability, --p')
    if options.aug != 'fixed' and options.p is not None:
        raise UsageError(f'--p: goes with --aug=fixed, not with --aug={options.aug}')
    if options.aug != 'ada' and options.target is not None:
        raise UsageError(f'--target: goes with --aug=ada, not with --aug={options.aug}')
    if options.aug == 'noaug' and options.augpipe is not None:
        raise UsageError('--augpipe: contradicts --aug=noaug')


def _check_encoder_loss(options: Options) -> None:
    if options.percep == 'none' and options.enc_percep:
        raise UsageError('--enc-percep: contradicts --percep=none')
    # With --resume of a network that has an encoder its space is the encoder's: transfer.py asks again there.
    if options.enc_offset is not None and options.enc_space != 'y+' and options.stage != 'encoder':
        raise UsageError(f'--enc-offset: only --enc-space=y+ has offsets, {options.enc_space} has none')
    if options.enc_latent and options.enc_mix == 0:
        raise UsageError('--enc-latent: needs generated images, of which --enc-mix=0 leaves none')
    if options.enc_iters not in (None, 1) and options.enc_space == 'z':
        raise UsageError('--enc-iters: refines y; an encoder towards z has one pass')
    if options.enc_iters not in (None, 1) and options.enc_arch == 'paper':
        raise UsageError('--enc-iters: needs --enc-arch=resnet; batch norm would mix first and later answers')
