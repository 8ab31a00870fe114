"""One way to invert images, for batch after batch: where codes start, whether they are refined, what is measured."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lia_plugin import noise_maps, refinement, spaces
from lia_plugin.calibration import Calibration
from lia_plugin.initial_codes import StartingPoint
from lia_plugin.inversion import LIKENESS, InvertedBatch, code_figures, compare_images, invert_images, now
from lia_plugin.networks import base_code
from lia_plugin.perceptual import Perceptual


@dataclass
class Inverter:
    """Called with images, labels and the images' names; gives an InvertedBatch on G's device."""

    G: Any
    space: str | None = None  # 'y', 'y+' or 'z'. None = as the encoder gives it.
    init: str | Mapping[str, StartingPoint] = 'encoder'  # Or 'mean', or a start by each image's name.
    settings: refinement.Settings | None = None  # None = no refinement.
    percep: Perceptual | None = None  # Of the refinement's loss.
    lpips: Perceptual | None = None  # Of the figures.
    calibration: Calibration | None = None
    trunc: float = 1
    noise_mode: str = 'const'

    def __post_init__(self) -> None:
        wanted = self.settings is not None or self.init == 'mean'
        self.statistics = spaces.code_statistics(self.G) if wanted else None

    def __call__(
        self,
        img: torch.Tensor,
        c: torch.Tensor | None,
        names: Sequence[str],
        callback: refinement.Callback | None = None,
    ) -> InvertedBatch:
        """Images NCHW in [-1, 1], labels [N, c_dim] or None."""
        start = self.start(img, c, names)
        if self.settings is None:
            return start
        began = now(img.device)
        code = None if self.init == 'mean' else _code(start)
        found = refinement.refine(
            self.G, img, c, code, settings=self.settings, percep=self.percep, callback=callback,
            statistics=self.statistics, noise=start.noise,
        )  # fmt: skip
        seconds = (now(img.device) - began) / len(img)
        end = self.measure(img, c, found.code, found.ws, found.recon)
        figures = {f'start_{name}': value for name, value in start.figures.items() if name not in ('ms', 'phi_error')}
        if 'ms' in start.figures:
            figures['ms'] = start.figures['ms']
        figures.update(end.figures, seconds=[seconds] * len(img))
        return end._replace(figures=figures, noise=found.noise, earlier=(start.recon,))

    def rehearse(self, img: torch.Tensor, c: torch.Tensor | None, names: Sequence[str], steps: int = 1) -> None:
        """Does once, with so many steps, what is to be done; the random state stays as it was.

        The first pass through a network sets things up, and would spoil its timing.
        """
        with torch.random.fork_rng(devices=[img.device] if img.device.type == 'cuda' else []):
            if self.settings is None or steps == 0:
                self.start(img, c, names)
            else:
                short = copy.copy(self)
                short.settings = dataclasses.replace(self.settings, steps=steps)
                short(img, c, names)

    def start(self, img: torch.Tensor, c: torch.Tensor | None, names: Sequence[str]) -> InvertedBatch:
        """The images by the codes that a refinement starts from."""
        if self.init == 'encoder':
            space = 'y' if self.space in ('y', 'z') else None
            return invert_images(
                self.G, img, c, self.trunc, self.noise_mode, self.lpips, self.calibration, space=space
            )
        if isinstance(self.init, str):
            assert self.statistics is not None, "measured, for init is 'mean'"
            code, noise = self.statistics.mean.repeat([len(img), 1]), {}
        else:
            points = [self.init[name] for name in names]
            rows = [spaces.fit_code(self.G, point.code[None], self.space == 'y+') for point in points]
            code = torch.cat(rows).to(img.device)
            noise = {key: torch.stack([point.noise[key] for point in points]).to(img.device) for key in points[0].noise}
        ws = spaces.code_to_ws(self.G, code, c)
        start = self.measure(img, c, code, ws, noise_maps.synthesize(self.G.synthesis, ws, noise))
        return start._replace(noise=noise or None)

    @torch.no_grad()
    def measure(
        self, img: torch.Tensor, c: torch.Tensor | None, code: torch.Tensor, ws: torch.Tensor, recon: torch.Tensor
    ) -> InvertedBatch:
        """Everything about codes that were not encoded just now."""
        figures = compare_images(img, recon, self.lpips)
        if not spaces.has_prior(self.G):
            return InvertedBatch(None, None, ws, recon, figures)
        y = base_code(code)
        z = self.G.mapping.y_to_z(y, c)
        figures.update(code_figures(self.G, y, z, c, self.calibration))
        return InvertedBatch(y, z, ws, recon, figures, code if code.ndim == 3 else None)

    @torch.no_grad()
    def retell(self, tuned: Any, img: torch.Tensor, batch: InvertedBatch) -> InvertedBatch:
        """The same codes in a tuned generator; what they gave before counts as the pivot's."""
        recon = noise_maps.synthesize(tuned.synthesis, batch.ws, batch.noise)
        figures = {f'pivot_{name}': batch.figures[name] for name in LIKENESS if name in batch.figures}
        figures.update({**batch.figures, **compare_images(img, recon, self.lpips)})
        return batch._replace(recon=recon, figures=figures, earlier=(*batch.earlier, batch.recon))


def _code(batch: InvertedBatch) -> torch.Tensor:
    """What a batch's refinement starts from: y+ or y, and in a stock network w+."""
    if batch.y is None:
        return batch.ws
    return batch.y if batch.y_plus is None else batch.y_plus
