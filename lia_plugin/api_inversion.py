"""The Python API's part that finds the codes of images: in one pass of the encoder, or by optimisation."""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from lia_plugin import api_checks, codes, inversion, invert_run, spaces
from lia_plugin.api_base import Latents, Network
from lia_plugin.api_checks import in_python
from lia_plugin.api_images import Given
from lia_plugin.calibration import Calibration
from lia_plugin.codes import made_codes, unique_names
from lia_plugin.initial_codes import StartingPoint
from lia_plugin.invert_options import InvertOptions
from lia_plugin.inverter import Inverter


def _bar(groups: int, steps: int) -> tqdm[Any]:
    """How far it is, with an ETA, on stderr: in a terminal or a notebook, and where there is more than one thing to do.

    The refinement tells of its start and of each step.
    """
    total = groups * (steps + 1)
    wanted = False if 'ipykernel' in sys.modules else None  # Whose stderr is no terminal, but is looked at.
    return tqdm(total=total, desc='Refining' if steps else 'Inverting', unit='step' if steps else 'batch',
                disable=True if total == 1 else wanted)  # fmt: skip


class Inverting(Network):
    """A network by which images become codes."""

    def invert(self, images: Any, c: Any = None) -> Latents:
        """Images -> their latents, in one pass of the encoder: `y, z = lia.invert(images)`.

        Latents.figures has what invert.py prints: mse, psnr, ssim of the reconstruction, z_norm2, typicality … Of a
        y+ encoder, y is the first layer's code alone: the Latents, or their `code`, are what draws the image.

        Args:
            images: N of any kind, or one.
            c: Their class, classes [N] or labels [N, c_dim], for a conditional network; files bring those of their
                dataset.json.

        Raises:
            ValueError: the network has no encoder, or images or labels don't fit.
        """
        self._check_encoder()
        inverter = Inverter(self.G, calibration=self.calibration, noise_mode=self.noise_mode)
        return self._invert(self._given(images), c, inverter)

    @in_python
    def refine(
        self,
        images: Any,
        steps: int = 100,
        space: str | None = None,
        c: Any = None,
        *,
        start: Any = None,
        prior_weight: float = 0.0,
        consistency_weight: float = 0.0,
        offset_weight: float = 0.0,
        optimizer: str | None = None,
        lr: float | None = None,
        noise: bool = False,
        percep: str | None = None,
        percep_weight: float | None = None,
    ) -> Latents:
        """Latents improved by optimisation, as `invert.py --refine=N`; works without encoder, and for stock networks.

        The arguments are the command's options: see `lia_plugin.refinement.Settings`. Figures get start_mse and the
        like, of the codes before.

        Args:
            start: 'encoder', 'mean', or codes to go on from, one for each image or one for all: Latents, an array, an
                .npz, seeds. None = the encoder's, or the mean if there is none.
            space: 'y', 'y+' (a code for each layer) or 'z'. None = as the encoder gives codes.
            percep: Features in the loss: 'disc', 'vgg16', 'vgg16-conv4_3' or 'none'. None = those of the pickle's D.
        """
        word = start if isinstance(start, str) and start in ('encoder', 'mean') else None
        weights = dict(prior_weight=prior_weight, consistency_weight=consistency_weight, offset_weight=offset_weight,
                       percep_weight=percep_weight)  # fmt: skip
        for name, weight in weights.items():
            if weight is not None:
                api_checks.number(name, weight, least=0)
        if percep == 'none' and percep_weight:
            raise ValueError("percep_weight: not with percep='none', which has no features to weigh")
        asked = InvertOptions(
            self.network, (), refine=api_checks.whole('steps', steps, 0), space=space, percep=percep, init=word,
            refine_optimizer=optimizer, refine_lr=lr, refine_noise=noise, **weights,  # type: ignore[arg-type]
        )  # fmt: skip
        asked.check_network(self.G)
        given = self._given(images)
        extractor, name = invert_run.load_percep(asked, self.contents.get('D'), self.device)
        init: str | dict[str, StartingPoint] = asked.start(self.G)
        if start is not None and word is None:
            init, layered = self._points(start, c, unique_names(given.names))
            space = asked.chosen_space(self.G, layered)
        settings = asked.refine_settings(
            space or asked.chosen_space(self.G), name, init if isinstance(init, str) else 'codes')
        inverter = Inverter(self.G, space, init, settings, extractor, calibration=self.calibration)
        return self._invert(given, c, inverter)

    def _points(self, start: Any, c: Any, names: Sequence[str]) -> tuple[dict[str, StartingPoint], bool]:
        """Where each image starts from, and whether that is a code for each layer."""
        found = self._read(start, None if isinstance(start, Latents) else c)[0]
        if len(found) not in (1, len(names)):
            raise ValueError(f'start: expected codes of one image, or of {len(names)}, got {len(found)}')
        rows = found[[0] * len(names)] if len(found) == 1 else found
        points = {name: StartingPoint(code, dict(noise)) for name, code, noise in zip(names, rows.code, rows.noise)}
        return points, found.code.ndim == 3

    @functools.cached_property
    def calibration(self) -> Calibration | None:
        """What audit found usual among a set's codes, if NAME.calibration.npz lies beside NAME.pkl."""
        return invert_run.load_calibration(None, self.network, self.G)

    def _invert(self, given: Given, c: Any, inverter: Inverter) -> Latents:
        names = unique_names(given.names)
        labels = self._labels(c, len(given.img), given)
        parts, figures = [], []
        one = given.img[:1].to(self.device), None if labels is None else labels[:1], names[:1]
        groups = self._batches(len(given.img), lambda: inverter.rehearse(*one))
        with _bar(len(groups), 0 if inverter.settings is None else inverter.settings.steps) as bar:
            for rows in groups:
                own = None if labels is None else labels[rows]
                batch = inverter(given.img[rows].to(self.device), own, names[rows], lambda *_told: bar.update())
                bar.update(inverter.settings is None)
                code = self._code_of(batch, inverter.space)
                maps = [{name: value[i] for name, value in (batch.noise or {}).items()} for i in range(len(code))]
                parts.append(made_codes(names[rows], code, own, maps, given.placements[rows]))
                figures.append(batch.figures)
        together = {name: np.concatenate([part[name] for part in figures]) for name in figures[0]}
        lead = () if given.single else (len(given.img),)
        return self._latents(codes.concatenate(self.G, parts), given.form, lead, figures=together, notes=given.notes)

    def _code_of(self, batch: inversion.InvertedBatch, space: str | None) -> torch.Tensor:
        if batch.y is None:  # A stock network's, whose w is repeated unless w+ was looked for.
            return spaces.fit_code(self.G, batch.ws, space == 'y+')
        return batch.y if batch.y_plus is None else batch.y_plus
