"""What the demo shows: a trained network's reconstructions, paths, variations and edits of pictures it has never seen.

Every exhibit is made of rows of COLUMNS pictures, NCHW float32 in [-1, 1], so that page and overview look alike.
"""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from lia_plugin import inversion, similarity
from lia_plugin.images import to_float
from training.dataset import ImageFolderDataset

COLUMNS = 12
BATCH = 32  # Pictures that pass through the network at once.
RHOS = (0.95, 0.8, 0.5)  # How much of a picture's z its variations keep.


class Row(NamedTuple):
    """A line of pictures [COLUMNS, C, H, W] and what stands above it, in ASCII: Pillow's own font has little more."""

    caption: str
    images: torch.Tensor


@dataclasses.dataclass(frozen=True)
class Pictures:
    """A split of the demo set: NCHW float32 in [-1, 1], and what people_labels.csv says of each picture."""

    img: torch.Tensor
    labels: list[dict[str, str]]

    def where(self, **wanted: str) -> list[int]:
        """Indices of the pictures whose labels are these."""
        return [i for i, row in enumerate(self.labels) if all(row[k] == v for k, v in wanted.items())]

    def name(self, index: int) -> str:
        row = self.labels[index]
        parts = [row['look'], '' if row['gender'] == 'neutral' else row['gender'], f'{row["skin_tone"]} skin']
        return ', '.join(part for part in parts if part)


def load_pictures(data: str, table: str, split: str) -> Pictures:
    """A data set, whose pictures are in the order of the table's rows for this split."""
    dataset = ImageFolderDataset(data)
    with open(table, encoding='utf-8', newline='') as file:
        labels = [row for row in csv.DictReader(file) if row['split'] == split]
    if len(labels) != len(dataset):
        raise ValueError(f'{table}: has {len(labels)} rows for {split}, {data} has {len(dataset)} pictures')
    pixels = np.stack([dataset[i][0] for i in range(len(dataset))])
    dataset.close()
    return Pictures(to_float(pixels), labels)


# ---------------------------------------------------------------------------------------------------------------------
# Latents


def invert(G: Any, img: torch.Tensor, device: torch.device) -> inversion.InvertedBatch:
    """All of `img` through encoder, φ and generator, in batches; everything on the CPU."""
    inversion.invert_images(G, img[:1].to(device))  # The first pass sets things up, and would spoil the timing.
    parts = [inversion.invert_images(G, batch.to(device)) for batch in img.split(BATCH)]
    y, z, ws, recon = (torch.cat([getattr(part, name).cpu() for part in parts]) for name in ('y', 'z', 'ws', 'recon'))
    figures = {name: [value for part in parts for value in part.figures[name]] for name in parts[0].figures}
    return inversion.InvertedBatch(y, z, ws, recon, figures)


@torch.no_grad()
def decode(G: Any, y: torch.Tensor, device: torch.device) -> torch.Tensor:
    """y [N, z_dim] → images on the CPU, clipped to [-1, 1]."""
    parts = [G.decode(batch.to(device), noise_mode='const').cpu() for batch in y.split(BATCH)]
    return torch.cat(parts).to(torch.float32).clamp(-1, 1)


@torch.no_grad()
def decode_z(G: Any, z: torch.Tensor, device: torch.device) -> torch.Tensor:
    """z [N, z_dim] → images, by way of y = φ⁻¹(z)."""
    return decode(G, G.mapping.z_to_y(z.to(device)).cpu(), device)


def lerp_path(a: torch.Tensor, b: torch.Tensor, steps: int) -> torch.Tensor:
    """A straight line from a to b [D], both ends included → [steps, D]."""
    t = torch.linspace(0, 1, steps)[:, None]
    return a + t * (b - a)


def slerp_path(a: torch.Tensor, b: torch.Tensor, steps: int) -> torch.Tensor:
    """The arc from a to b [D] (Shoemake 1985), its length going evenly from |a| to |b| → [steps, D].

    A straight line between samples of N(0, I) passes too near the origin, where the prior has no mass.
    """
    t = torch.linspace(0, 1, steps)[:, None]
    unit_a, unit_b = a / a.norm(), b / b.norm()
    angle = torch.arccos((unit_a @ unit_b).clamp(-1, 1))
    if angle < 1e-4:  # The formula is 0 / 0 there, and the line is the arc.
        return lerp_path(a, b, steps)
    direction = (torch.sin((1 - t) * angle) * unit_a + torch.sin(t * angle) * unit_b) / torch.sin(angle)
    return direction * lerp_path(a.norm()[None], b.norm()[None], steps)


def vary(z: torch.Tensor, rho: float, count: int, seed: int) -> torch.Tensor:
    """z' = ρz + √(1 − ρ²)e with e ~ N(0, I), which leaves N(0, I) as it is: z [D] → [count, D]."""
    noise = torch.randn([count, z.shape[0]], generator=torch.Generator().manual_seed(seed))
    return rho * z + (1 - rho**2) ** 0.5 * noise


def class_direction(y: torch.Tensor, train: Pictures, label: str, origin: str, goal: str) -> torch.Tensor:
    """Mean code of the training pictures with `label` = goal, less that of those with `label` = origin → [D]."""
    return y[train.where(**{label: goal})].mean(dim=0) - y[train.where(**{label: origin})].mean(dim=0)


# ---------------------------------------------------------------------------------------------------------------------
# Exhibits


def spread(count: int, wanted: int) -> list[int]:
    """`wanted` indices, evenly over `count`."""
    return [i * count // wanted for i in range(wanted)]


def reconstruction_rows(img: torch.Tensor, recon: torch.Tensor, lines: int) -> list[Row]:
    """Lines of originals, each above its reconstructions."""
    chosen = spread(len(img), lines * COLUMNS)
    rows = []
    for start in range(0, len(chosen), COLUMNS):
        indices = chosen[start : start + COLUMNS]
        rows += [Row('originals, never trained on', img[indices]), Row('reconstructions', recon[indices])]
    return rows


def interpolation_rows(
    G: Any, held_out: Pictures, codes: inversion.InvertedBatch, pairs: Sequence[tuple[int, int]], device: torch.device
) -> list[Row]:
    """For each pair a path in y and one in z, the originals at both ends."""
    rows = []
    for a, b in pairs:
        names = f'{held_out.name(a)} to {held_out.name(b)}'
        path_y = decode(G, lerp_path(codes.y[a], codes.y[b], COLUMNS - 2), device)
        path_z = decode_z(G, slerp_path(codes.z[a], codes.z[b], COLUMNS - 2), device)
        for caption, path in ((f'in y, on a line: {names}', path_y), (f'in z, on an arc: {names}', path_z)):
            rows.append(Row(caption, torch.cat([held_out.img[a : a + 1], path, held_out.img[b : b + 1]])))
    return rows


def variation_rows(
    G: Any, held_out: Pictures, codes: inversion.InvertedBatch, chosen: Sequence[int], device: torch.device
) -> list[Row]:
    """For each picture and each ρ: the original, its reconstruction, and variations."""
    rows = []
    for i in chosen:
        start = torch.stack([held_out.img[i], codes.recon[i]])
        for rho in RHOS:
            images = decode_z(G, vary(codes.z[i], rho, COLUMNS - 2, seed=i), device)
            caption = f'rho = {rho:g}: {held_out.name(i)}; original, reconstruction, variations'
            rows.append(Row(caption, torch.cat([start, images])))
    return rows


def edit_rows(
    G: Any, held_out: Pictures, codes: inversion.InvertedBatch, direction: torch.Tensor,
    pairs: Sequence[tuple[int, int]], device: torch.device,
) -> list[Row]:  # fmt: skip
    """For each (picture, what the edit should make of it): the original, steps along the direction, and the truth."""
    rows = []
    for i, truth in pairs:
        path = decode(G, lerp_path(codes.y[i], codes.y[i] + direction, COLUMNS - 2), device)
        images = torch.cat([held_out.img[i : i + 1], path, held_out.img[truth : truth + 1]])
        goal = held_out.labels[truth]['skin_tone']
        rows.append(Row(f"{held_out.name(i)} to {goal} skin; last, the artist's", images))
    return rows


def same_person(held_out: Pictures, origin: str, goal: str) -> list[tuple[int, int]]:
    """(index, index) of each held-out person in two skin tones."""
    pairs = []
    for i in held_out.where(skin_tone=origin):
        person = {key: held_out.labels[i][key] for key in ('look', 'gender')}
        pairs += [(i, j) for j in held_out.where(skin_tone=goal, **person)]
    return pairs


def sample_rows(G: Any, train: Pictures, lines: int, device: torch.device) -> tuple[list[Row], list[Row]]:
    """Pictures drawn from the prior, and as many training pictures."""
    count = lines * COLUMNS
    z = torch.randn([count, G.z_dim], generator=torch.Generator().manual_seed(0))
    drawn, real = decode_z(G, z, device), train.img[spread(len(train.img), count)]
    parts = [slice(start, start + COLUMNS) for start in range(0, count, COLUMNS)]
    return [Row('drawn at random', drawn[s]) for s in parts], [Row('training pictures', real[s]) for s in parts]


# ---------------------------------------------------------------------------------------------------------------------
# Figures


class Figure(NamedTuple):
    """A number of the page: what it is, its value, its unit or meaning, and of how many pictures it is the mean."""

    name: str
    value: float
    unit: str
    n: int


def baseline_mse(img: torch.Tensor, train: torch.Tensor) -> tuple[float, float]:
    """MSE of the training set's mean picture, and of the training picture that is nearest to each of `img`."""
    flat, known = img.flatten(1).double(), train.flatten(1).double()
    nearest = torch.cdist(flat, known).amin(dim=1).square() / flat.shape[1]
    mean = (flat - known.mean(dim=0)).square().mean()
    return float(mean), float(nearest.mean())


def reconstruction_figures(held_out: Pictures, train: Pictures, codes: inversion.InvertedBatch) -> list[Figure]:
    """How well the held-out pictures are reconstructed, and how typical their codes are."""
    n = len(held_out.img)
    likeness = inversion.compare_images(held_out.img, codes.recon.clamp(-1, 1))
    mean_picture, nearest = baseline_mse(held_out.img, train.img)
    mean = inversion.mean_figures([dict(zip(likeness, values)) for values in zip(*likeness.values())])
    codes_mean = {name: float(np.mean(codes.figures[name])) for name in ('ms', 'z_norm2', 'typicality')}
    unit = 'mean squared error, pixels in [-1, 1]'
    figures = [
        Figure('recon_mse', mean['mse'], unit, n),
        Figure('mean_picture_mse', mean_picture, f'{unit}; baseline: the mean training picture', n),
        Figure('nearest_picture_mse', nearest, f'{unit}; baseline: the nearest training picture', n),
        Figure('recon_psnr', mean['psnr'], 'dB, peak 2; mean over pictures', n),
    ]
    if 'ssim' in mean:
        figures.append(Figure('recon_ssim', mean['ssim'], '1 = equal; Gaussian window of 11 pixels', n))
    return figures + [
        Figure('phi_error', max(codes.figures['phi_error']), 'largest |y − φ⁻¹(φ(y))| of all', n),
        Figure('z_norm2', codes_mean['z_norm2'], f'|z|²; its mean under the prior is {codes.z.shape[1]}', n),
        Figure('typicality', codes_mean['typicality'], 'two-sided p of |z|² under χ²; 0.5 for codes of the prior', n),
        Figure('ms', codes_mean['ms'], 'milliseconds a picture: x → y, z and back', n),
    ]


def edit_figures(
    G: Any, held_out: Pictures, codes: inversion.InvertedBatch, direction: torch.Tensor,
    pairs: Sequence[tuple[int, int]], device: torch.device,
) -> list[Figure]:  # fmt: skip
    """How near an edit comes to the picture that the artist drew of the same person."""
    origins, truths = [i for i, _ in pairs], held_out.img[[j for _, j in pairs]]
    unit = 'mean squared error to the same person as the artist drew it in the other skin tone'
    edited = similarity.mse(decode(G, codes.y[origins] + direction, device), truths).mean()
    before = similarity.mse(codes.recon[origins].clamp(-1, 1), truths).mean()
    return [Figure('edit_mse', float(edited), unit, len(pairs)),
            Figure('unedited_mse', float(before), f'{unit}; baseline: no edit', len(pairs))]
