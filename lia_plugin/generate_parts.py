"""What `generate` draws, batch by batch: seeds, each in one class or several, and codes out of files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from lia_plugin import code_files, code_output, codes, inversion, sampling, spaces
from lia_plugin.host import UserError
from lia_plugin.sampling import Truncation

Noise = dict[str, torch.Tensor]


class Drawn(NamedTuple):
    """N pictures as the synthesis network gets them, and where they come from; on G's device."""

    ws: torch.Tensor  # [N, num_ws, w_dim]
    code: torch.Tensor | None  # y or y+ that these ws are of, if it is known; w or w+ in a stock network.
    c: torch.Tensor | None  # [N, c_dim]
    noise: tuple[Noise, ...]  # Noise maps of an image's own, as in codes.Codes; {} = the network's.
    noise_seeds: tuple[int, ...]  # For --noise-mode=random.
    captions: tuple[str, ...]
    facts: tuple[dict[str, Any], ...]  # For JSON.


# ---------------------------------------------------------------------------------------------------------------------
# Classes


def chosen_classes(G: Any, asked: Sequence[int] | str | None) -> tuple[int | None, ...]:
    """Classes to draw seeds in, (None,) for a network without.

    Raises:
        UserError: classes are missing, not wanted, or out of range.
    """
    if asked == 'all':
        asked = tuple(range(G.c_dim)) or (0,)  # For the line that says that there are none.
    chosen: tuple[int | None, ...] = (None,) if asked is None else tuple(int(index) for index in asked)
    for index in chosen:
        inversion.class_labels(G, index, 1, 'cpu')
    return chosen


def one_class(G: Any, asked: Sequence[int] | str | None) -> int | None:
    """The class of codes out of files: None = as stored. Raises UserError for several."""
    if asked is None:
        return None
    chosen = chosen_classes(G, asked)
    if len(chosen) > 1:
        raise UserError('--class: codes of --projected-w are of one class; several are for --seeds alone')
    return chosen[0] if spaces.has_prior(G) else None  # w of a stock network knows no classes.


# ---------------------------------------------------------------------------------------------------------------------
# Parts


class SeedPart:
    """Each seed in each class, classes varying first."""

    def __init__(self, G: Any, seeds: Sequence[int], classes: Sequence[int | None]) -> None:
        self.G = G
        self.pairs = [(seed, index) for seed in seeds for index in classes]
        several = len(classes) > 1
        self.names = [f'seed{seed:04d}' + (f'_class{index}' if several else '') for seed, index in self.pairs]

    def draw(self, rows: slice, trunc: Truncation) -> Drawn:
        """The pictures of some rows."""
        G, pairs = self.G, self.pairs[rows]
        device = G.mapping.w_avg.device
        seeds = [seed for seed, _index in pairs]
        labels = [inversion.class_labels(G, index, 1, device) for _seed, index in pairs]
        c = torch.cat([label for label in labels if label is not None]) if G.c_dim else None
        code = spaces.z_to_code(G, codes.seeds_to_z(seeds, G.z_dim).to(device), c)
        ws, known = sampling.to_ws(G, code, c, trunc)
        captions = tuple(f'seed {seed}' + ('' if index is None else f', class {index}') for seed, index in pairs)
        facts = tuple({'seed': seed} | ({} if index is None else {'class': index}) for seed, index in pairs)
        return Drawn(ws, known, c, ({},) * len(pairs), tuple(seeds), captions, facts)


@dataclass
class FilePart:
    """The codes of one file, in float32 on G's device."""

    G: Any
    names: tuple[str, ...]
    code: torch.Tensor  # As in codes.Codes; w or w+ if `in_w`.
    c: torch.Tensor | None
    noise: tuple[Noise, ...]
    source: str
    in_w: bool = False  # Of a network whose w is not its code.

    @classmethod
    def read(cls, G: Any, path: str, class_idx: int | None, alone: bool) -> FilePart:
        """Reads FILE.npz, or one code of it, FILE.npz:NAME.

        Codes without names are called after the file, and proj00, proj01 … if there is no other file.

        Raises:
            UserError: one line, for whatever is wrong with the file.
        """
        only_w = code_files.read_only_w(path, G)
        if only_w is None:
            found = codes.file_codes(G, path, class_idx)
            part = cls(G, found.names, found.code, found.c, found.noise, path)
        else:
            part = cls._of_w(G, path, only_w)
        if alone and os.path.isfile(path) and not code_files.has_names(path):
            part.names = tuple(f'proj{i:02d}' for i in range(len(part.names)))
        return part

    @classmethod
    def _of_w(cls, G: Any, path: str, found: code_files.CodeFile) -> FilePart:
        device = G.mapping.w_avg.device
        names = codes.file_names(found.names or codes.default_names(path, len(found.codes), found.placements[0]))
        code = torch.from_numpy(found.codes).to(device)
        noise = tuple(codes.noise_row(found, row, device) for row in range(len(names)))
        return cls(G, names, code, None, noise, path, in_w=True)

    def check(self, trunc: Truncation) -> None:
        """UserError if these codes can't be truncated so."""
        if self.in_w and trunc.in_code and trunc.psi != 1:
            raise UserError(f'--trunc-space=y: {self.source}: holds w alone, of no known y; take --trunc-space=w')

    def draw(self, rows: slice, trunc: Truncation) -> Drawn:
        """The pictures of some rows."""
        code, c = self.code[rows], None if self.c is None else self.c[rows]
        if self.in_w:
            ws, known = sampling.pull_ws(self.G, code, trunc), None
        else:
            ws, known = sampling.to_ws(self.G, code, c, trunc)
        numbers = tuple(range(len(self.names))[rows])
        names = tuple(self.names[rows])
        return Drawn(ws, known, c, self.noise[rows], numbers, names, ({'source': self.source},) * len(names))


# ---------------------------------------------------------------------------------------------------------------------
# Latents


def latent_arrays(G: Any, parts: Sequence[Drawn]) -> dict[str, torch.Tensor]:
    """What latents.npz holds of all pictures, as `code_output.latents` tells; y and z if all codes are known."""
    known = [part.code for part in parts if part.code is not None]
    labels = [part.c for part in parts if part.c is not None]
    plus = any(code.ndim == 3 for code in known)
    code = torch.cat([spaces.fit_code(G, code, plus) for code in known]) if len(known) == len(parts) else None
    c = torch.cat(labels) if len(labels) == len(parts) else None
    noise = [maps for part in parts for maps in part.noise]
    return code_output.latents(G, code, c, noise, torch.cat([part.ws for part in parts]))
