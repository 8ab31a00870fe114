"""What `invert` was asked for, and whether it makes sense: before the network is read, and once it is known."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lia_plugin import noise_maps, spaces
from lia_plugin.host import UserError
from lia_plugin.outputs import check_output
from lia_plugin.refinement import Settings
from lia_plugin.tuning import TuneSettings

PERCEP_WEIGHTS = {'disc': 0.1, 'vgg16': 0.8, 'vgg16-conv4_3': 5e-5, 'none': 0.0}
TUNE_BATCH = 8  # Here it is no matter of memory alone: steps are of so many images.


@dataclass(frozen=True)
class InvertOptions:
    """The options of the command, by its parameters' names."""

    network: str
    targets: tuple[str, ...]
    outdir: str = 'out'
    trunc: float = 1.0
    batch: int | None = None  # None = as many as fit into memory.
    device: str | None = None
    precision: str | None = None
    seed: int = 0
    noise_mode: str = 'const'
    class_idx: int | None = None
    lpips_source: str | None = None
    calibration_file: str | None = None
    space: str | None = None
    init: str | None = None
    refine: int | None = None
    refine_optimizer: str | None = None
    refine_lr: float | None = None
    prior_weight: float = 0.0
    consistency_weight: float = 0.0
    offset_weight: float = 0.0
    refine_noise: bool = False
    percep: str | None = None
    percep_weight: float | None = None
    save_video: str | None = None
    tune: int | None = None
    tune_lr: float | None = None
    tune_save: str | None = None
    delta: str | None = None
    align: str | None = None
    check_alignment: bool = True
    trust_pickle: bool = False

    def check(self) -> None:
        """UserError, one line, for options that don't go together whatever the network."""
        check_output('--outdir', self.outdir, folder=True)
        if self.refine is None:
            self._refuse('--refine', 'refine_optimizer', 'refine_lr', 'prior_weight', 'consistency_weight',
                         'offset_weight', 'refine_noise', 'save_video')  # fmt: skip
            if self.space == 'z' or self.init == 'mean':
                raise UserError(f'{"--init=mean" if self.init == "mean" else "--space=z"}: only with --refine=N')
            if self.tune is None:
                self._refuse('--refine or --tune', 'percep', 'percep_weight')
                if self.init not in (None, 'encoder'):
                    raise UserError(f'--init={self.init}: only with --refine=N or --tune=N')
        if self.percep == 'none' and self.percep_weight:
            raise UserError('--percep-weight: not with --percep=none, which has no features to weigh')
        if self.tune is None:
            self._refuse('--tune', 'tune_lr', 'tune_save')
        if self.refine_noise and self.refine_optimizer == 'lbfgs':
            raise UserError('--refine-optimizer=lbfgs: not with --refine-noise, whose regulariser is too stiff for it')
        if self.tune_save == 'delta' and self.delta is not None:
            raise UserError('--tune-save=delta: a delta belongs to a network file, and --delta changes that; '
                            'save the network')
        self._check_offsets(self.space or 'y+')
        if self.optimises:
            if self.trunc != 1:
                raise UserError('--trunc: an optimisation works on the codes as they are; leave it out')
            if self.noise_mode != 'const':
                raise UserError('--noise-mode: an optimisation needs the constant noise; leave it out')

    def _check_offsets(self, space: str) -> None:
        if self.offset_weight and space != 'y+':
            raise UserError('--offset-weight: only with --space=y+, where each layer has a code of its own')

    def checks_alignment(self, G: Any) -> bool:
        """Whether centre crops are looked at: by the network's own encoder, if it has one."""
        return self.check_alignment and self.align is None and getattr(G, 'encoder', None) is not None

    @property
    def optimises(self) -> bool:
        return self.refine is not None or self.tune is not None

    def _refuse(self, needed: str, *names: str) -> None:
        """UserError if one of these options was given, which do nothing without another."""
        for name in names:
            if getattr(self, name) not in (None, False, 0.0):
                raise UserError(f'--{name.replace("_", "-")}: only with {needed}')

    def check_network(self, G: Any) -> None:
        """UserError for what this network has no part for, when its codes are refined."""
        if not spaces.has_prior(G):
            self._refuse_for('it has no φ, hence neither z nor log p', space_z=self.space == 'z',
                             prior_weight=bool(self.prior_weight))  # fmt: skip
            if self.class_idx is not None:
                raise UserError('--class: codes of a network without φ know no classes; leave it out')
        if getattr(G, 'encoder', None) is None:
            self._refuse_for('it has no encoder', init_encoder=self.init == 'encoder',
                             consistency_weight=bool(self.consistency_weight))  # fmt: skip
        if self.refine_noise and not noise_maps.initial_noise(G.synthesis, 1):
            raise UserError(f'--refine-noise: {self.network}: its synthesis network has no noise inputs')
        encoder_space = getattr(getattr(G, 'encoder', None), 'space', 'y')
        if self.space == 'y+' and encoder_space != 'y+' and self.refine is None and not self._from_file:
            raise UserError(f'--space=y+: the encoder gives {encoder_space}; only with --refine=N')

    @property
    def _from_file(self) -> bool:
        return self.init not in (None, 'encoder', 'mean')

    def _refuse_for(self, why: str, **given: bool) -> None:
        for name, is_given in given.items():
            if is_given:
                option = {'space_z': 'space=z', 'init_encoder': 'init=encoder'}.get(name, name.replace('_', '-'))
                raise UserError(f'--{option}: {self.network}: {why}')

    def start(self, G: Any) -> str:
        """'encoder', 'mean', or the file that codes start from."""
        return self.init or ('encoder' if getattr(G, 'encoder', None) is not None else 'mean')

    def chosen_space(self, G: Any, layered: bool = False) -> str:
        """Where codes are looked for: as asked, else as the file has them that they start from, or as the encoder gives
        them (y, if it gives z).

        `layered`: the file's codes differ from layer to layer.

        Raises:
            UserError: one line, for an option that does nothing there.
        """
        own = getattr(getattr(G, 'encoder', None), 'space', 'y')
        space = self.space or ('y+' if layered or own == 'y+' else 'y')
        self._check_offsets(space)
        return space

    def refine_settings(self, space: str, percep: str, start: str) -> Settings | None:
        """None without --refine. `start` is that of `start`."""
        if self.refine is None:
            return None
        settings = Settings(
            steps=self.refine, space=space, optimizer=self.refine_optimizer,
            lr=self.refine_lr, percep_weight=self._percep_weight(percep), prior_weight=self.prior_weight,
            consistency_weight=self.consistency_weight, offset_weight=self.offset_weight, noise=self.refine_noise,
        )  # fmt: skip
        return settings.resolved(given=start != 'mean')

    def tune_settings(self, percep: str) -> TuneSettings | None:
        """None without --tune."""
        if self.tune is None:
            return None
        return TuneSettings(
            steps=self.tune, lr=self.tune_lr or TuneSettings().lr, percep_weight=self._percep_weight(percep),
            batch=self.batch or TUNE_BATCH, seed=self.seed,
        )  # fmt: skip

    def _percep_weight(self, percep: str) -> float:
        return PERCEP_WEIGHTS[percep] if self.percep_weight is None else self.percep_weight
