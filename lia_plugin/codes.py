"""What commands edit: codes of real images, of seeds and out of files, all in one form."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from lia_plugin import engine, inversion, noise_maps, sampling, spaces, targets
from lia_plugin.code_files import CodeFile, read_code_file
from lia_plugin.host import UserError
from lia_plugin.images import to_float
from lia_plugin.params import parse_numbers
from lia_plugin.placement import Placement

SEEDS = re.compile(r'(?:seed:)?(\d+(?:-\d+)?(?:,\d+(?:-\d+)?)*)')
ONE_IMAGE = 'projected_w'  # .npz, what invert.py and NVIDIA's projector call the latents of a single image.
MAX_SEEDS = 100_000  # A slip of the finger is no reason to fill the memory.


@dataclass(frozen=True)
class Codes:
    """Codes of N images, on G's device. `codes[i:j]` and `codes[[2, 0]]` are some of them, again as Codes."""

    names: tuple[str, ...]  # Unique, fit for file names.
    code: torch.Tensor  # y [N, dim] or y+ [N, num_ws, dim]; w or w+ of a stock network.
    c: torch.Tensor | None  # [N, c_dim], of a conditional network.
    originals: tuple[torch.Tensor | None, ...]  # Pixels uint8 [C, R, R]; None for what is no image.
    noise: tuple[dict[str, torch.Tensor], ...]  # Noise maps of an image's own, buffer's name -> [1, R, R]; mostly {}.
    placements: tuple[Placement | None, ...]  # Where an image was cut out of a larger picture, or None.
    sources: tuple[str, ...]  # What messages call it.

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: slice | Sequence[int]) -> Codes:
        rows = list(range(len(self))[index]) if isinstance(index, slice) else list(index)

        def pick(values: tuple[Any, ...]) -> tuple[Any, ...]:
            return tuple(values[row] for row in rows)

        return Codes(pick(self.names), self.code[rows], None if self.c is None else self.c[rows], pick(self.originals),
                     pick(self.noise), pick(self.placements), pick(self.sources))

    def with_code(self, code: torch.Tensor) -> Codes:
        """The same images with other codes, [N, dim] or [N, num_ws, dim]."""
        return replace(self, code=code)

    def without_originals(self) -> Codes:
        """The same with their pixels forgotten, for sets that the memory doesn't hold."""
        return replace(self, originals=(None,) * len(self))


def concatenate(G: Any, parts: Sequence[Codes]) -> Codes:
    """All of them in order; codes become y+ if any part has y+. Names that repeat get a number.

    Where some have no labels, as w out of files has none, nobody has: such codes need none.
    """
    plus = any(part.code.ndim == 3 for part in parts)
    labels = [part.c for part in parts if part.c is not None]
    c = torch.cat(labels) if labels and len(labels) == len(parts) else None

    def chain(field: str) -> tuple[Any, ...]:
        return tuple(item for part in parts for item in getattr(part, field))

    return Codes(
        unique_names(chain('names')), torch.cat([spaces.fit_code(G, part.code, plus) for part in parts]),
        c, chain('originals'), chain('noise'), chain('placements'), chain('sources'),
    )  # fmt: skip


def made_codes(
    names: Sequence[str],
    code: torch.Tensor,
    c: torch.Tensor | None = None,
    noise: Sequence[dict[str, torch.Tensor]] = (),
    placements: Sequence[Any] = (),
) -> Codes:
    """What an edit has made, N codes of no input; () = none has its own."""
    none = (None,) * len(names)
    return Codes(tuple(names), code, c, none, tuple(noise) or ({},) * len(names), tuple(placements) or none,
                 tuple(names))  # fmt: skip


def unique_names(names: Sequence[str]) -> tuple[str, ...]:
    """The same names, numbered where one repeats; case makes no difference, as in some file systems."""
    taken: set[str] = set()
    numbers: dict[str, int] = {}  # The next one of each name, so that many equal names take no longer than others.
    found = []
    for stem in names:
        name, key = stem, stem.lower()
        while name.lower() in taken:
            numbers[key] = numbers.get(key, 1) + 1
            name = f'{stem}_{numbers[key]}'
        taken.add(name.lower())
        found.append(name)
    return tuple(found)


# ---------------------------------------------------------------------------------------------------------------------
# Seeds


def parse_seeds(text: str) -> list[int] | None:
    """'7', '0,1,4-6' or 'seed:4-6' -> seeds; None for a text that is none of these.

    Raises:
        UserError: a range that goes backwards, too many, a seed that NumPy does not take.
    """
    match = SEEDS.fullmatch(text.strip())
    if match is None:
        return None
    try:
        return list(parse_numbers(match[1], 2**32 - 1, MAX_SEEDS))
    except ValueError as error:
        raise UserError(f'seeds: {error}') from None


def seeds_to_z(seeds: Sequence[int], z_dim: int) -> torch.Tensor:
    """float32 [N, z_dim], each row as every StyleGAN script draws it from its seed."""
    rows = [np.random.RandomState(seed).randn(1, z_dim) for seed in seeds]
    return torch.from_numpy(np.concatenate(rows)).to(torch.float32)


@torch.no_grad()
def seed_codes(
    G: Any,
    seeds: Sequence[int],
    class_idx: int | None = None,
    psi: float = 1,
    mean: torch.Tensor | None = None,
    c: torch.Tensor | None = None,
) -> Codes:
    """The prior's codes for seeds, y [N, dim] (w of a stock network), pulled towards the mean by `psi`.

    Labels are `c` [N, c_dim], or else all of class `class_idx`. `mean` [dim] is that of the code; None =
    `sampling.mean_code`, which takes a moment where y is not w.
    """
    device = G.mapping.w_avg.device
    c = inversion.class_labels(G, class_idx, len(seeds), device) if c is None else c.to(device)
    z = seeds_to_z(seeds, G.z_dim).to(device)
    code = spaces.z_to_code(G, z, c)
    if psi != 1:
        code = (sampling.mean_code(G) if mean is None else mean).lerp(code, psi)
    count = len(seeds)
    names = tuple(f'seed{seed:04d}' for seed in seeds)
    return Codes(unique_names(names), code, c, (None,) * count, ({},) * count, (None,) * count,
                 tuple(f'seed {seed}' for seed in seeds))


# ---------------------------------------------------------------------------------------------------------------------
# Files and images


def file_codes(G: Any, path: str, class_idx: int | None = None) -> Codes:
    """The codes of an .npz; FILE.npz:NAME picks one that is stored under a name.

    Labels are those of the file, or class `class_idx` for all.
    """
    device = G.mapping.w_avg.device
    path, name = split_name(path)
    found = read_code_file(path, G)
    names = found.names or default_names(path, len(found.codes), found.placements[0])
    rows = list(range(len(names)))
    if name is not None:
        if name not in names:
            raise UserError(f'{path}:{name}: the file has no code of that name; it has {_some(names)}')
        rows = [names.index(name)]
    if found.labels is not None and class_idx is None:
        c: torch.Tensor | None = torch.from_numpy(found.labels[rows].astype(np.float32)).to(device)
    else:
        # w of a stock network needs no label: its synthesis knows no classes.
        c = inversion.class_labels(G, class_idx, len(rows), device) if spaces.has_prior(G) else None
    noise = tuple(noise_row(found, row, device) for row in rows)
    code = torch.from_numpy(found.codes[rows]).to(device)
    picked = file_names([names[row] for row in rows])
    none = (None,) * len(rows)
    placements = tuple(found.placements[row] for row in rows)
    return Codes(picked, code, c, none, noise, placements, tuple(f'{path}:{names[row]}' for row in rows))


def default_names(path: str, count: int, placement: Placement | None = None) -> list[str]:
    """What the codes of a file without names are called: after the file.

    A projected_w.npz, which says nothing, after the picture that it was cut from, if `placement` tells it.
    """
    stem = file_names([os.path.splitext(os.path.basename(path))[0]])[0]
    if stem == ONE_IMAGE and placement is not None:
        return [targets.of_placement(placement).name]
    return [stem] if count == 1 else [f'{stem}_{i}' for i in range(count)]


def file_names(names: Sequence[str]) -> tuple[str, ...]:
    """Stored names as unique ones that are fit for files."""
    return unique_names([re.sub(r'[^\w.-]+', '_', name) or 'code' for name in names])


def noise_row(found: CodeFile, row: int, device: torch.device) -> dict[str, torch.Tensor]:
    """One image's noise maps out of a file, buffer's name -> [1, R, R]."""
    return {key: torch.from_numpy(value[row].astype(np.float32)).to(device) for key, value in found.noise.items()}


def split_name(path: str) -> tuple[str, str | None]:
    """FILE.npz:NAME -> file and name; a drive letter's colon is none of these."""
    match = re.fullmatch(r'(.+\.npz):(.+)', path, re.IGNORECASE)
    return (match[1], match[2]) if match and not os.path.exists(path) else (path, None)


def _some(names: Sequence[str], limit: int = 5) -> str:
    return ', '.join(names[:limit]) + (' …' if len(names) > limit else '')


def is_code_file(text: str) -> bool:
    """Whether an input names latents rather than an image."""
    return split_name(text)[0].lower().endswith('.npz')


@torch.no_grad()
def image_codes(
    G: Any,
    network: str,
    items: Sequence[targets.Target],
    class_idx: int | None = None,
    batch: int = 8,
    failures: list[tuple[str, str]] | None = None,
    originals: bool = True,
) -> Codes | None:
    """Encodes images; labels are of class `class_idx`, or of their folder's or zip's dataset.json.

    Without `originals` pixels are forgotten, for sets that the memory doesn't hold. What can't be read goes to
    `failures` as (what messages call it, reason); without a list it raises. None if nothing could be read.

    Raises:
        UserError: no encoder (in a line that calls the network `network`), no classes, an image that can't be read.
    """
    from tqdm import tqdm

    inversion.check_invertible(G, network)
    labels = inversion.target_labels(G, class_idx, items)
    parts = []
    with tqdm(total=len(items), desc='Encoding', unit='image', disable=None if len(items) > batch else True) as bar:
        for start in range(0, len(items), batch):
            group = items[start : start + batch]
            found = _encode(G, group, labels, failures)
            parts += found if originals else [part.without_originals() for part in found]
            bar.update(len(group))
    return concatenate(G, parts) if parts else None


def _encode(
    G: Any, group: Sequence[targets.Target], labels: dict[str, torch.Tensor] | None,
    failures: list[tuple[str, str]] | None,
) -> list[Codes]:
    """One batch; [] if none of its images can be read."""
    read = []
    for target in group:
        try:
            read.append((target, target.read(G.img_resolution, G.img_channels)))
        except UserError as error:
            if failures is None:
                raise
            failures.append((target.label, str(error)))
    if not read:
        return []
    device = G.mapping.w_avg.device
    img = to_float(torch.stack([loaded.pixels for _target, loaded in read])).to(device)
    c = None if labels is None else torch.stack([labels[target.name] for target, _loaded in read]).to(device)
    count = len(read)
    return [Codes(
        tuple(target.name for target, _loaded in read), engine.of(G).encode(img, c), c,
        tuple(loaded.pixels for _target, loaded in read), ({},) * count,
        tuple(loaded.placement for _target, loaded in read), tuple(target.label for target, _loaded in read),
    )]  # fmt: skip


def read_inputs(
    inputs: Sequence[str],
    G: Any,
    network: str,
    class_idx: int | None = None,
    psi: float = 1,
    batch: int = 8,
    failures: list[tuple[str, str]] | None = None,
    option: str = 'INPUT',
    outdir: str | None = None,
) -> Codes:
    """Codes of all that the inputs name, in their order.

    An input is a list of seeds (`7`, `0,1,4-6`, `seed:4-6`), an .npz that invert or a projector wrote (of several codes
    `latents.npz:NAME` is one), or anything that `targets.collect` takes: an image, a folder, a pattern, a zip. `psi`
    truncates the codes of seeds alone: what is real stays as it is.

    Raises:
        UserError: one line, for whatever can't be used; images that can't be read go to `failures` if it is a list.
    """
    if not inputs:
        raise UserError(f'{option}: give a seed, an .npz or an image')
    mean = sampling.mean_code(G) if psi != 1 and any(parse_seeds(text) for text in inputs) else None
    parts = [_read_input(text, G, network, class_idx, psi, mean, batch, failures, option, outdir) for text in inputs]
    found = [part for part in parts if part is not None]
    if not found:
        reasons = failures or []
        raise UserError(reasons[0][1] if len(reasons) == 1 else f'{option}: none of {len(reasons)} images can be read')
    return concatenate(G, found)


def _read_input(
    text: str, G: Any, network: str, class_idx: int | None, psi: float, mean: torch.Tensor | None, batch: int,
    failures: list[tuple[str, str]] | None, option: str, outdir: str | None,
) -> Codes | None:
    seeds = parse_seeds(text)
    if seeds is not None:
        return seed_codes(G, seeds, class_idx, psi, mean)
    if is_code_file(text):
        return file_codes(G, text, class_idx)
    return image_codes(G, network, targets.collect([text], option, outdir), class_idx, batch, failures)


# ---------------------------------------------------------------------------------------------------------------------
# Back to pictures


def stack_noise(G: Any, noise: Sequence[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Noise maps of N images -> buffer's name -> [N, 1, R, R]; the network's own where an image has none.

    {} if none has any.
    """
    if not any(noise):
        return {}
    own = noise_maps.initial_noise(G.synthesis, 1)
    return {key: torch.stack([maps.get(key, value[0]) for maps in noise]) for key, value in own.items()}


@torch.no_grad()
def render(
    G: Any,
    code: torch.Tensor,
    c: torch.Tensor | None = None,
    noise: Sequence[dict[str, torch.Tensor]] = (),
    noise_mode: str = 'const',
) -> torch.Tensor:
    """Codes [N, dim] or [N, num_ws, dim] -> images NCHW, float32, about [-1, 1], in one batch.

    `noise` is one dict for each image, as in Codes; () = none has its own.
    """
    ws = spaces.code_to_ws(G, code, c)
    maps = stack_noise(G, noise)
    if maps:
        # In the precision of those without: what else is in a batch changes no picture.
        return noise_maps.synthesize(G.synthesis, ws, maps, noise_mode, force_fp32=False)
    return engine.of(G).synthesis(ws, noise_mode=noise_mode).to(torch.float32)
