"""Reconstructions side by side: by the encoder, refined, by optimisation alone, and those of a comparison."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

import torch

from lia_plugin import compare, compare_report, figure_base, images, inversion, refinement, sheets, spaces
from lia_plugin.figure_base import Advance, Exhibit, Figure, Sitters, rows_of
from lia_plugin.host import UserError
from lia_plugin.networks import base_code

COMPARED = ('mse', 'psnr', 'ssim', 'lpips', 'seconds', 'z_norm2')  # Columns of a comparison that are told again.


class Attempt(NamedTuple):
    """What a method has made of N images, on the CPU."""

    caption: str
    about: str
    recon: torch.Tensor  # NCHW, float32 in [-1, 1]
    z: torch.Tensor  # Of base codes, [N, z_dim]


def attempts(exhibit: Exhibit, advance: Advance) -> tuple[Sitters, dict[str, Attempt]]:
    """The images and all methods; made once for all figures that ask."""
    return exhibit.once('attempts', lambda: _attempts(exhibit, advance))


def _attempts(exhibit: Exhibit, advance: Advance) -> tuple[Sitters, dict[str, Attempt]]:
    sitters = exhibit.sitters(exhibit.options.opt_num)
    found = {}
    if sitters.code is not None:
        is_deep = sitters.code.ndim == 3
        caption, about = ('encoder y+', ', a code for each layer') if is_deep else ('encoder y', '')
        found['encoder'] = _finish(exhibit, sitters, sitters.code, caption, f'one pass of the encoder{about}')
        if is_deep:
            found['encoder-y'] = _finish(exhibit, sitters, base_code(sitters.code), 'base code y',
                                         'its base code alone, for all layers')  # fmt: skip
        found['refined'] = optimise(exhibit, sitters, sitters.code, lambda s: advance(s / 3))
        found['map'] = optimise(exhibit, sitters, sitters.code, lambda s: advance((1 + s) / 3), compare.MAP_WEIGHT)
    start = 2 / 3 if 'map' in found else 0.0
    found['optimised'] = optimise(exhibit, sitters, None, lambda s: advance(start + (1 - start) * s))
    return sitters, found


@torch.no_grad()
def _finish(
    exhibit: Exhibit, sitters: Sitters, code: torch.Tensor, caption: str, about: str, recon: torch.Tensor | None = None
) -> Attempt:
    recon = exhibit.draw(code, sitters.c) if recon is None else recon
    return Attempt(caption, about, recon, exhibit.G.mapping.y_to_z(base_code(code), sitters.c).cpu())


def optimise(
    exhibit: Exhibit, sitters: Sitters, code: torch.Tensor | None, advance: Advance, prior_weight: float = 0
) -> Attempt:
    """Towards the pixels (and the exact prior), by L-BFGS, from the codes given or from the mean."""
    steps = exhibit.options.refine
    space = 'y' if code is None or code.ndim == 2 else 'y+'
    settings = refinement.Settings(steps=steps, space=space, prior_weight=prior_weight)
    settings = settings.resolved(given=code is not None)
    statistics = exhibit.once('statistics', lambda: spaces.code_statistics(exhibit.G))
    size, parts = exhibit.session.batch, []
    for start in range(0, len(sitters.img), size):
        rows = range(start, min(start + size, len(sitters.img)))

        def callback(step: int, losses: torch.Tensor, _recon: torch.Tensor, start: int = start) -> None:
            advance((start + len(losses) * step / steps) / len(sitters.img))

        parts.append(refinement.refine(
            exhibit.G, sitters.img[rows], rows_of(sitters.c, rows), rows_of(code, rows), settings=settings,
            callback=callback, statistics=statistics,
        ))  # fmt: skip
    recon = torch.cat([part.recon for part in parts]).clamp(-1, 1).cpu()
    found = torch.cat([part.code for part in parts])
    caption = f'from mean +{steps}' if code is None else f'{space} +{steps}' + (', prior' if prior_weight else '')
    source = 'the mean of y, without the encoder' if code is None else "the encoder's code"
    about = f'{steps} steps of L-BFGS in {space} from {source}'
    if prior_weight:
        about += f', with −log p(y) per dimension at {prior_weight:g}'
    return _finish(exhibit, sitters, found, caption, about, recon)


def draw(exhibit: Exhibit, advance: Advance) -> Figure:
    """Needs real images; without an encoder only the optimisation is there."""
    sitters, methods = attempts(exhibit, advance)
    original = sitters.img.cpu()
    scores = {name: inversion.compare_images(original, attempt.recon) for name, attempt in methods.items()}
    shown = min(exhibit.options.shown, len(original))
    rows = [[original[i], *(attempt.recon[i] for attempt in methods.values())] for i in range(shown)]
    picture = sheets.sheet(rows, ['original', *(attempt.caption for attempt in methods.values())])
    pictures = {'': (picture, f'{shown} of the {len(original)} images that are measured.')}
    means = {name: {key: figure_base.mean_and_error(values) for key, values in score.items()}
             for name, score in scores.items()}  # fmt: skip
    numbers: dict[str, Any] = dict(n=len(original), steps=exhibit.options.refine, methods={
        name: dict(about=methods[name].about, **row) for name, row in means.items()})
    tables = [table_of(numbers['methods'])]
    text = (f'MSE of images in [-1, 1], means over {len(original)} images of --data ± standard error. '
            'Optimisations go towards the pixels; one of them keeps the code likely by the exact prior.')  # fmt: skip
    if exhibit.options.compare is not None:
        content, grid = read_comparison(exhibit.options.compare)
        numbers['comparison'] = content['summary']
        tables.append(comparison_table(content))
        if grid is not None:
            pictures['compare'] = (grid, f'The comparison in {exhibit.options.compare}: its own held-out images.')
        text += (' The second table and picture are those of the command compare, on held-out images of its own, so '
                 'figures of the two tables are of different images.')  # fmt: skip
    return Figure('Reconstructions', text, pictures, tables, numbers)


def table_of(methods: dict[str, dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    keys = [key for key in next(iter(methods.values())) if key != 'about']
    forms = dict(mse='.4f', psnr='.2f', ssim='.3f')
    rows = [[f'{name}: {row["about"]}', *(figure_base.with_error(row[key], forms[key]) for key in keys)]
            for name, row in methods.items()]  # fmt: skip
    titles = dict(mse='MSE', psnr='PSNR dB', ssim='SSIM')
    return ['method', *(titles[key] for key in keys)], rows


# ---------------------------------------------------------------------------------------------------------------------
# What the command compare has left


def read_comparison(folder: str) -> tuple[dict[str, Any], torch.Tensor | None]:
    """compare.json and grid.png (None if there is none) of a comparison.

    Raises:
        UserError: the folder holds no comparison.
    """
    content = compare.read_json(os.path.join(folder, 'compare.json'))
    if content is None or not isinstance(content.get('summary'), dict) or not content['summary'].get('shared'):
        raise UserError(f'--compare={folder}: holds no compare.json with results, as python -m lia_plugin compare '
                        'writes it')  # fmt: skip
    path = os.path.join(folder, 'grid.png')
    return content, images.read_image(path, channels=3).pixels if os.path.exists(path) else None


def comparison_table(content: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """The same images with all methods of the comparison."""
    shared = content['summary']['shared']
    columns = [(key, title, form) for key, title, form in compare_report.COLUMNS
               if key in COMPARED and any(key in row for row in shared.values())]  # fmt: skip
    labels = {record['name']: record['label'] for record in content.get('records', [])}
    rows = [[labels.get(name, name), *(_cell(row.get(key), form) for key, _title, form in columns)]
            for name, row in shared.items()]  # fmt: skip
    return ['method', *(title for _key, title, _form in columns)], rows


def _cell(value: Any, form: str) -> str:
    """[mean, spread over seeds or null], as JSON has it."""
    return '' if value is None or value[0] is None else compare_report.cell((value[0], value[1]), form)
