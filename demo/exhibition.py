"""The demo's page: exhibits, figures and how they came about, as demo.html, demo.png and results.json."""

from __future__ import annotations

import html
import json
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import exhibits
import torch
from exhibits import Figure, Pictures, Row

from lia_plugin import host, inversion, page
from lia_plugin.images import interpolation_strips, save_png
from lia_plugin.results import save_json

TITLE = 'LIA: real pictures in the latent space of a GAN'
INTRODUCTION = (
    'LIA (Zhu et al., arXiv 1906.08090) is a StyleGAN2 whose mapping network is invertible: z → y = φ⁻¹(z) → picture. '
    'After the GAN has been trained (stage 1), an encoder is trained to find the y of a picture while the generator '
    'stands still (stage 2), and φ gives its exact z. '
    'So any picture of the kind, not only a generated one, can be reconstructed, varied, interpolated and edited, with '
    'one pass through each network.'
)
STAGE_NAMES = {'gan': 'stage 1: generator, φ, discriminator', 'encoder': 'stage 2: encoder'}
FORMATS = {'phi_error': '.1e', 'ms': '.2f', 'z_norm2': '.1f', 'recon_psnr': '.2f'}  # Others: '.4f'.
MAIN_FIGURES = ('recon_mse', 'mean_picture_mse', 'nearest_picture_mse', 'recon_psnr', 'recon_ssim', 'phi_error',
                'typicality')
SKIN_ORIGIN, SKIN_GOAL = 'light', 'dark'


class Exhibit(NamedTuple):
    """A section of pictures: what is said about them, and how many of its rows the overview shows."""

    heading: str
    text: str
    rows: list[Row]
    shown: int


# ---------------------------------------------------------------------------------------------------------------------
# What the run says of itself


def read_statistics(run_path: str) -> list[dict[str, Any]]:
    """The lines of a run's stats.jsonl."""
    with open(os.path.join(run_path, 'stats.jsonl'), encoding='utf-8') as file:
        return [json.loads(line) for line in file if line.strip()]


def stage_costs(statistics: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Stage, kimg and seconds (training and snapshots, all sittings together) of each stage of a run."""
    costs: list[dict[str, Any]] = []
    before = 0.0
    for stage in STAGE_NAMES:
        lines = [line for line in statistics if line['stage'] == stage]
        if not lines:
            continue
        end = max(line['Progress/kimg']['mean'] for line in lines)
        seconds = sum(line[f'Timing/{part}']['mean'] for line in lines for part in ('sec_per_tick', 'maintenance_sec'))
        costs.append(dict(stage=stage, kimg=end - before, seconds=seconds))
        before = end
    return costs


def learning_curve(statistics: Sequence[dict[str, Any]]) -> list[dict[str, float]]:
    """Held-out reconstruction error after so many kimg in all."""
    lines = [line for line in statistics if 'Metrics/recon_mse' in line]
    return [dict(kimg=line['Progress/kimg']['mean'], recon_mse=line['Metrics/recon_mse']['mean']) for line in lines]


# ---------------------------------------------------------------------------------------------------------------------
# The page


def pick_pairs(held_out: Pictures) -> list[tuple[int, int]]:
    """Three pairs of held-out pictures that differ in person and skin tone, far apart in the set."""
    count = len(held_out.img)
    starts = [i + k for k, i in enumerate(exhibits.spread(count, 3))]  # Pictures go through the skin tones in turn.
    return [(i, (i + count // 2 + 2) % count) for i in starts]


def hang(
    G: Any, train: Pictures, held_out: Pictures, codes: inversion.InvertedBatch, device: torch.device
) -> tuple[list[Exhibit], list[Figure]]:
    """All exhibits, and the figures that stand beside them."""
    figures = exhibits.reconstruction_figures(held_out, train, codes)
    train_y = exhibits.invert(G, train.img, device).y
    direction = exhibits.class_direction(train_y, train, 'skin_tone', SKIN_ORIGIN, SKIN_GOAL)
    pairs = exhibits.same_person(held_out, SKIN_ORIGIN, SKIN_GOAL)
    figures += exhibits.edit_figures(G, held_out, codes, direction, pairs, device)
    say = {figure.name: shown(figure) for figure in figures}
    chosen = exhibits.spread(len(held_out.img), 3)
    some_pairs = [pairs[i] for i in exhibits.spread(len(pairs), 5)]
    drawn, real = exhibits.sample_rows(G, train, 3, device)
    people = len({(row['look'], row['gender']) for row in held_out.labels})
    reconstructions = Exhibit(
        'Pictures it has never seen, and their reconstructions',
        f'{len(held_out.img)} pictures of {people} people were kept back, each person in all skin tones. Below each '
        "original stands what the generator makes of the encoder's y. Mean squared error, pixels in [-1, 1]: "
        f'{say["recon_mse"]}. The mean training picture would have {say["mean_picture_mse"]}, and of all training '
        f'pictures the nearest to each {say["nearest_picture_mse"]}.',
        exhibits.reconstruction_rows(held_out.img, codes.recon.clamp(-1, 1), 3), 4)  # fmt: skip
    paths = Exhibit(
        'Paths between two of them',
        'Originals at both ends; between them a line in y, then an arc in z whose length goes evenly from that of one '
        'end to that of the other. Both paths begin and end at the same two reconstructions.',
        exhibits.interpolation_rows(G, held_out, codes, pick_pairs(held_out), device), 4)  # fmt: skip
    variations = Exhibit(
        'Variations of a real picture',
        "z' = ρz + √(1 − ρ²)e with e ~ N(0, I): if z is from the prior, so is z'. The nearer ρ is to 1, the more of "
        'the picture stays.',
        exhibits.variation_rows(G, held_out, codes, chosen, device), 3)  # fmt: skip
    edit = Exhibit(
        'A simple edit',
        f'The mean y of training pictures with {SKIN_GOAL} skin, less that of those with {SKIN_ORIGIN} skin, is added '
        "to a picture's y in steps. The last picture is what the artist drew. Squared error to it, over all "
        f'{len(pairs)} people: {say["edit_mse"]}; without the edit {say["unedited_mse"]}.',
        exhibits.edit_rows(G, held_out, codes, direction, some_pairs, device), 3)  # fmt: skip
    samples = Exhibit(
        'Pictures out of nothing',
        'Drawn from z ~ N(0, I), none of them chosen, above training pictures: what the generator knows.',
        drawn + real, 1)  # fmt: skip
    return [reconstructions, paths, variations, edit, samples], figures


def shown(figure: Figure) -> str:
    """A figure's value as text, the same wherever it stands."""
    return format(figure.value, FORMATS.get(figure.name, '.4f'))


def figure_table(figures: Sequence[Figure]) -> str:
    rows = [[figure.name, shown(figure), figure.unit, str(figure.n)] for figure in figures]
    return page.table(['figure', 'value', 'unit', 'n'], rows)


def making_of(results: dict[str, Any]) -> list[str]:
    """How it was made: time, learning curve, commands."""
    stages = [[STAGE_NAMES[c['stage']], f'{c["kimg"]:.1f}', f'{c["seconds"]:.0f}'] for c in results['stages']]
    curve = [[f'{point["kimg"]:.1f}', f'{point["recon_mse"]:.4f}'] for point in results['curve']]
    return [
        page.table(['stage', 'thousands of images', 'seconds'], stages),
        page.paragraph('Held-out reconstruction error while the encoder learned:'),
        page.table(['kimg in all', 'recon_mse'], curve),
        page.paragraph('The commands, for your own pictures too (in the project\'s folder, with .venv/bin/python):'),
        *(f'<pre>python {html.escape(command)}</pre>' for command in results['commands']),
    ]


def build(
    G: Any, train: Pictures, held_out: Pictures, outdir: str, device: torch.device, history: dict[str, Any]
) -> dict[str, Any]:
    """Writes demo.html, demo.png and results.json; gives what stands in the last.

    `history` has `stages`, `curve` and `commands` (see `make`), which go into the results as they are.
    """
    codes = exhibits.invert(G, held_out.img, device)
    hung, figures = hang(G, train, held_out, codes, device)
    named = {figure.name: dict(value=figure.value, unit=figure.unit, n=figure.n) for figure in figures}
    results = {'figures': named, 'resolution': G.img_resolution, 'z_dim': G.z_dim, **history}
    sections = [page.Section('What it is', [page.paragraph(INTRODUCTION)])]
    for exhibit in hung:
        parts = [page.paragraph(exhibit.text), page.figure(_strips(exhibit.rows), exhibit.heading)]
        sections.append(page.Section(exhibit.heading, parts))
    sections.append(page.Section('Figures', [figure_table(figures)]))
    sections.append(page.Section('How it was made', making_of(results)))
    page.save_page(os.path.join(outdir, 'demo.html'), TITLE, sections)
    overview = [row for exhibit in hung for row in exhibit.rows[: exhibit.shown]]
    save_png(_strips(overview), os.path.join(outdir, 'demo.png'))
    save_json(os.path.join(outdir, 'results.json'), results)
    return results


def _strips(rows: Sequence[Row]) -> torch.Tensor:
    return interpolation_strips([row.images for row in rows], [row.caption for row in rows])


def make(
    run_path: str, network: str, data: str, val: str, table: str, outdir: str, commands: list[str],
    device_name: str | None = None,
) -> dict[str, Any]:  # fmt: skip
    """The page of a finished run: its last network, shown with the two splits of the demo set."""
    device = inversion.pick_device(device_name)
    G = host.load_network_pkl(network)['G_ema'].eval().requires_grad_(False).to(device)
    inversion.check_invertible(G, network)
    train, held_out = (exhibits.load_pictures(*split) for split in ((data, table, 'train'), (val, table, 'val')))
    statistics = read_statistics(run_path)
    history = dict(network=network, stages=stage_costs(statistics), curve=learning_curve(statistics), commands=commands)
    return build(G, train, held_out, outdir, device, history)


def summary(results: dict[str, Any]) -> str:
    """The main figures as lines of text."""
    figures = {name: results['figures'][name] for name in MAIN_FIGURES if name in results['figures']}
    lines = [f'{name:<20} {f["value"]:>9{FORMATS.get(name, ".4f")}}  {f["unit"]}' for name, f in figures.items()]
    times = ', '.join(f'{STAGE_NAMES[c["stage"]]}: {c["seconds"]:.0f} s' for c in results['stages'])
    return '\n'.join([f'{figures["recon_mse"]["n"]} held-out pictures:', *lines, times])
