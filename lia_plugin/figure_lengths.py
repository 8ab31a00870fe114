"""How long codes are: ‖z‖² of real images against the χ² density that it has under the prior."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy import stats

from lia_plugin import canvas, figure_reconstruction, prior
from lia_plugin.canvas import Key, Panel
from lia_plugin.figure_base import Advance, Exhibit, Figure
from lia_plugin.networks import base_code

Array = npt.NDArray[np.float64]

BINS = 40
BARS_FROM = 50  # With fewer codes than that a histogram says less than their places.
COLOURS = (canvas.BLUE, canvas.GREEN, canvas.ORANGE, canvas.PURPLE)
NAMES = {'encoder': 'encoded', 'refined': 'refined', 'map': 'refined with the prior',
         'optimised': 'optimised from the mean', 'prior': 'drawn from the prior'}  # fmt: skip


@torch.no_grad()
def all_lengths(exhibit: Exhibit, advance: Advance) -> dict[str, Array]:
    """‖z‖² by how codes were found: of all encoded images, of those that were optimised, and of draws of the prior."""
    found: dict[str, Array] = {}
    if exhibit.has_encoder:
        reals = exhibit.reals
        found['encoder'] = _squares(exhibit.G.mapping.y_to_z(base_code(reals.code), reals.c))
    _sitters, methods = figure_reconstruction.attempts(exhibit, advance)
    found |= {name: _squares(methods[name].z) for name in ('refined', 'map', 'optimised') if name in methods}
    stream = torch.Generator().manual_seed(exhibit.options.seed)
    found['prior'] = _squares(torch.randn([exhibit.options.num, exhibit.G.z_dim], generator=stream))
    return found


def _squares(z: torch.Tensor) -> Array:
    return prior.squared_norm(z).cpu().double().numpy()


def describe(values: Array, dim: int) -> dict[str, float]:
    """Of ‖z‖² [n]: mean and spread, and how far from χ² it is (Kolmogorov and Smirnov)."""
    test = stats.kstest(values, stats.chi2(dim).cdf)
    low, high = stats.chi2(dim).ppf([0.025, 0.975])
    inside = float(((values >= low) & (values <= high)).mean())
    return dict(n=len(values), mean=float(values.mean()), std=float(values.std(ddof=1)) if len(values) > 1 else np.nan,
                ks=float(test.statistic), ks_p=float(test.pvalue), typical=inside)  # fmt: skip


def draw(exhibit: Exhibit, advance: Advance) -> Figure:
    """Needs real images; without an encoder there are the optimised codes alone."""
    lengths, dim = all_lengths(exhibit, advance), int(exhibit.G.z_dim)
    figures = {name: describe(values, dim) for name, values in lengths.items()}
    numbers: dict[str, Any] = dict(z_dim=dim, chi2_mean=dim, chi2_std=(2 * dim) ** 0.5, codes=figures)
    header = ['codes', 'n', 'mean |z|²', 'its mean / d', 'standard deviation', 'KS distance to χ²', 'p of KS',
              'inside the middle 95 % of χ²']  # fmt: skip
    rows = [[NAMES[name], str(row['n']), f'{row["mean"]:.1f}', f'{row["mean"] / dim:.2f}',
             f'{row["std"]:.1f}' if row['n'] > 1 else '', f'{row["ks"]:.3f}', f'{row["ks_p"]:.2g}',
             f'{row["typical"]:.0%}']
            for name, row in figures.items()]  # fmt: skip
    rows.append([f'χ² with {dim} degrees', '', f'{dim}', '1.00', f'{(2 * dim) ** 0.5:.1f}', '0', '', '95%'])
    whose = ' (of y+ the base codes)' if exhibit.has_encoder and exhibit.is_deep() else ''
    inside = ', '.join(f'{row["typical"]:.0%} of those {NAMES[name]}' for name, row in figures.items())
    text = (
        f'If codes of real images{whose} filled the prior, |z|² would follow χ² with {dim} degrees of freedom. Codes '
        f'drawn from the prior do, and show what chance does to a sample. Inside the middle 95 % of χ² are {inside}.'
    )
    caption = ('Densities on a logarithmic axis. Of sets with fewer than '
               f'{BARS_FROM} codes each is a tick below the axis of densities.')  # fmt: skip
    return Figure('|z|² of real images', text, {'': (picture(lengths, dim), caption)}, [(header, rows)], numbers)


def picture(lengths: dict[str, Array], dim: int) -> torch.Tensor:
    """Outlines of histograms of log10 ‖z‖², ticks of small sets, and the density of the prior."""
    law = stats.chi2(dim)
    logs = {name: np.log10(values) for name, values in lengths.items() if name != 'prior'}
    ends = np.log10(law.ppf([0.0005, 0.9995]))
    low, high = canvas.span(np.concatenate([ends, *(np.quantile(v, [0.005, 0.995]) for v in logs.values())]))
    u = np.linspace(low, high, 400)
    density = law.pdf(10**u) * 10**u * np.log(10)
    edges = np.linspace(low, high, BINS + 1)
    bars = {name: np.histogram(v.clip(low, high), edges, density=True)[0] for name, v in logs.items()
            if len(v) >= BARS_FROM}  # fmt: skip
    small = [name for name in logs if name not in bars]
    top = max(float(density.max()), *(float(b.max()) for b in bars.values()), 0.0) * 1.12
    room = 0.06 * top
    panel = Panel(canvas.Range(low, high), canvas.Range(-room * (len(small) + 0.5), top),
                  f'|z|^2 against chi-square with {dim} degrees of freedom', 'log10 of |z|^2', 'density',
                  820, 420)  # fmt: skip
    colours = dict(zip(logs, COLOURS))
    for name, heights in bars.items():
        panel.line(np.stack([edges.repeat(2)[1:-1], heights.repeat(2)], axis=1), colours[name], 2)
    panel.line(np.stack([u, density], axis=1), canvas.RED, 2.5)
    panel.line([[low, 0], [high, 0]], canvas.INK, 1)
    for row, name in enumerate(small):
        for value in logs[name]:
            panel.line([[value, -room * (row + 0.25)], [value, -room * (row + 0.95)]], colours[name], 1.5)
    keys = [Key(f'{NAMES[name]} (n = {len(v)})', colours[name]) for name, v in logs.items()]
    panel.legend([Key('chi-square, the prior', canvas.RED), *keys])
    return panel.picture()
