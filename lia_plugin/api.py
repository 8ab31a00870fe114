"""The Python API: `lia = lia_plugin.load('net.pkl')`, and images of any kind in and out.

Images come in as `lia_plugin.api_images` tells: file names, PIL pictures, NumPy arrays, torch tensors, lists of these.
What goes out is of the kind that came in, or as `out` says: 'pil', 'numpy' (uint8), 'torch' (floats in [-1, 1]), or
'latents': the codes of the pictures, as Latents, for another call. One image in is one image out, without a batch axis;
a list, a batch or a folder gives as many. Latents and arrays of codes always have the batch in front.

Where a method takes `what`, it may be images, Latents, codes as floats [N, dim] or [N, num_ws, dim], an .npz that
invert or a projector wrote ('latents.npz:NAME' is one of several), or seeds: 7, [7, 8], '7-8'. Floats of a code's shape
are taken as codes there, y or y+, never z: `to_y` first.

Arguments have the names of the commands' options, but for psi (--trunc), c (--class), `layers` of `mix` (--styles),
`share` of `variations` (--resample), `amounts` (--from, --to, --steps), and lr, noise, optimizer of `refine`
(--refine-lr, …). Errors name the arguments.

All images of a call are in memory at once: for whole data sets there are the commands.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from lia_plugin import (
    api_checks,
    api_images,
    code_output,
    codes,
    editing,
    inversion,
    invert_run,
    pasting,
    paths,
    sampling,
    spaces,
)
from lia_plugin.api_base import Layers
from lia_plugin.api_checks import in_python
from lia_plugin.api_images import Array, Range, give_images, give_latents
from lia_plugin.api_inversion import Inverting
from lia_plugin.api_learning import Learner
from lia_plugin.codes import Codes, made_codes
from lia_plugin.images import to_float
from lia_plugin.placement import Placement, centre_crop


class Typicality(NamedTuple):
    """What the prior says of N codes, float64 [N] each: it judges the code, not the picture."""

    z_norm2: Array  # ‖z‖²: χ² with dim degrees of freedom under the prior, hence of mean dim.
    p: Array  # Two-sided p-value of it: near 0 for codes that are too long or too short to be of the prior.
    log_p: Array  # log p(y), in nats.


@in_python
def load(
    network: str | os.PathLike[str],
    device: str | None = None,
    *,
    batch: int | Literal['auto'] = 8,
    value_range: Range | None = None,
    noise_mode: str = 'const',
    trust_pickle: bool = False,
) -> Lia:
    """A network pickle (path or URL), or an exported folder, ready for editing.

    Args:
        device: 'cpu', 'cuda', 'cuda:1', 'mps'. None = the best there is.
        batch: Images at once; 'auto' = as many as fit into memory.
        value_range: (low, high) of images in floats. None: torch's are in [-1, 1], of NumPy's nothing is assumed.
        noise_mode: Of the layers: 'const', 'random' or 'none'.
        trust_pickle: Run the code inside the pickle; only for files you trust.

    Raises:
        UserError (a ValueError): no such file, or none that can be used, in one line.
    """
    if not isinstance(network, str | os.PathLike):
        raise ValueError(f'network: expected a path or URL, got {type(network).__name__}')
    where, name = inversion.pick_device(device), os.fspath(network)
    contents = invert_run.load_networks(name, where, trust_pickle, needs_encoder=False)
    return Lia(contents, name, where, batch, value_range, noise_mode)


class Lia(Inverting, Learner):
    """A network and everything that can be done with images through it. Made by `load`.

    >>> y, z = lia.invert(photo)  # A PIL picture, a file name, an array …
    >>> y.shape == z.shape == (1, lia.dim)
    True
    >>> lia.reconstruct(photo).size == (lia.resolution, lia.resolution)
    True
    >>> path = lia.interpolate(photo, 7, steps=8, space='z')  # To the image of seed 7.
    >>> len(path), type(path[0]) is type(lia.reconstruct(photo))
    (9, True)
    >>> lia.variations(y, num=4).shape == (1, 4, lia.resolution, lia.resolution, lia.channels)  # NumPy in, NumPy out.
    True
    >>> direction = lia.pca(1, samples=100)['pc0']
    >>> moved = lia.manipulate(photo, direction, [-1, 0, 1], out='latents')
    >>> lia.typicality(moved).p.shape
    (3,)
    """

    # -----------------------------------------------------------------------------------------------------------------
    # Images <-> codes

    def prepare(self, images: Any, out: str | None = None) -> Any:
        """Images as the network sees them: its size and channels. All methods do that by themselves; this shows it."""
        given = self._given(images)
        form = given.form.choose(out)
        lead = () if given.single else (len(given.img),)
        return give_images(api_images.as_stored(given.img, form), form, lead, self.value_range)

    def encode(self, images: Any, c: Any = None) -> Any:
        """Images -> y, float32 [N, dim], or y+ [N, num_ws, dim] if the encoder is made for it."""
        found, given = self._encode_images(images, c)
        return give_latents(found.code, given.form)

    def decode(self, what: Any, c: Any = None, psi: float = 1, out: str | None = None) -> Any:
        """Latents or codes -> pictures. Arrays give NumPy uint8 [N, H, W, C], tensors floats [N, C, H, W] in [-1, 1].

        Codes are y or y+: of z take `to_y(z)`.

        Args:
            psi: Truncation towards the mean code; 1 = none.
        """
        found, form, lead = self._read(what, c)
        return self._give(self._truncate(found, psi), form, lead, out)

    def _truncate(self, found: Codes, psi: float) -> Codes:
        api_checks.number('psi', psi)
        return found if psi == 1 else found.with_code(sampling.mean_code(self.G).lerp(found.code, psi))

    def reconstruct(self, images: Any, c: Any = None, out: str | None = None) -> Any:
        """Images as the network draws them: `decode(invert(images))`."""
        found, given = self._encode_images(images, c)
        return self._give(found, given.form, () if given.single else (len(found),), out)

    def generate(self, seeds: Any, psi: float = 1, c: Any = None, out: str | None = None) -> Any:
        """Pictures of seeds: 7, [7, 8], range(7, 9), np.arange(7, 9) or '7-8', as generate.py draws them.

        PIL pictures, unless `out` says. `psi` is truncation towards the mean code, in y; 1 = none.
        """
        if api_checks.seed_list(seeds) is None:
            raise ValueError(f"seeds: expected whole numbers, as 7, [7, 8] or '7-8', got {seeds!r:.80}")
        found, form, lead = self._read(seeds, c)
        return self._give(self._truncate(found, psi), form, lead, out)

    @torch.no_grad()
    def to_z(self, y: Any, c: Any = None) -> Any:
        """z = φ(y): floats [N, dim] -> [N, dim]; of y+ layer by layer."""
        self._check_prior('to_z')
        found, form, _lead = self._read_code(y, c)
        return give_latents(paths.to_space(self.G, found.code, found.c, 'z'), form)

    @torch.no_grad()
    def to_y(self, z: Any, c: Any = None) -> Any:
        """y = φ⁻¹(z): undoes `to_z`."""
        self._check_prior('to_y')
        found, form, _lead = self._read_code(z, c)
        return give_latents(paths.from_space(self.G, found.code, found.c, 'z'), form)

    @in_python
    def save(self, path: str | os.PathLike[str], what: Any, c: Any = None) -> None:
        """Writes latents as the .npz that invert.py writes and all commands read: w, y, z, y_plus, names."""
        if not os.fspath(path).lower().endswith('.npz'):
            raise ValueError(f'path: latents are .npz files, got {os.fspath(path)}')
        code_output.save_codes(os.fspath(path), self.G, self._read(what, c)[0])

    @torch.no_grad()
    def typicality(self, what: Any, c: Any = None) -> Typicality:
        """How likely codes are under the prior, [N] each; of y+ the base code is judged."""
        self._check_prior('typicality')
        found = self._read(what, c)[0]
        figures = code_output.prior_figures(self.G, found.code, found.c)
        return Typicality(*(np.asarray(figures[name]) for name in ('z_norm2', 'typicality', 'log_prob')))

    # -----------------------------------------------------------------------------------------------------------------
    # Edits without directions

    def interpolate(
        self,
        *what: Any,
        steps: int = 8,
        space: str | None = None,
        path: str = 'linear',
        loop: bool = False,
        c: Any = None,
        out: str | None = None,
    ) -> Any:
        """From one image to the next: (K − 1)·steps + 1 pictures, keyframe k of K at index k·steps.

        Args:
            what: Keyframes, as several arguments or as several images in one.
            steps: Frames from each to the next.
            space: 'y' or 'y+', straight; 'z', along the sphere. None = y+ where codes have it, else y.
            path: 'linear', or 'cubic': one smooth curve through all.
            loop: Back to the first: K·steps pictures.
            c: Of all keyframes.
        """
        api_checks.whole('steps', steps)
        read = [self._read(one, c) for one in what]
        keys = codes.concatenate(self.G, [found for found, _form, _lead in read]) if read else None
        if keys is None or len(keys) < 2:
            raise ValueError(f'interpolate: expected two images at least, got {0 if keys is None else len(keys)}')
        space = space or ('y+' if keys.code.ndim == 3 else 'y')
        way = editing.interpolate(self.G, keys.code, keys.c, space, steps, path, loop)
        noise = editing.NoisePath(self.G, keys.noise, steps, loop)
        names = [f'frame{i:04d}' for i in range(len(way.code))]
        made = made_codes(names, way.code, way.c, noise[:])
        return self._give(made, read[0][1], (len(way.code),), out)

    def mix(self, coarse: Any, fine: Any, layers: Layers, c: Any = None, out: str | None = None) -> Any:
        """Style mixing: images `coarse` with these layers of images `fine`, every one with every one.

        One of each gives one picture; R coarse ones give R rows, C fine ones C columns: [R, C] pictures, row by row.
        Labels are those of the coarse ones.

        Args:
            layers: Whose codes the fine ones lend: 7, [7, 8], range(4, 8) or '4-7' of 0 to num_ws - 1, the coarsest 0.
        """
        chosen = self._layers(layers) or ()
        rows, form, lead = self._read(coarse, c)
        columns, _form, lead_across = self._read(fine, c)
        below, above = (spaces.fit_code(self.G, found.code, True) for found in (rows, columns))
        if editing.mixes_classes(self.G, [rows.c, columns.c]):
            raise ValueError('mix: images of several classes, and this network makes styles of a code and one class')
        made = self._repeat(rows, len(columns)).with_code(editing.mix(below, above, chosen).flatten(0, 1))
        return self._give(made, form, (*lead, *lead_across), out)

    def variations(
        self,
        what: Any,
        num: int = 4,
        rho: float = 0.9,
        *,
        share: float = 1.0,
        coords: Sequence[int] | None = None,
        layers: Layers | None = None,
        each_layer: bool = False,
        seed: int = 0,
        c: Any = None,
        out: str | None = None,
    ) -> Any:
        """`num` images like each: z' = ρz + √(1−ρ²)·e, which has the distribution of z. One gives [num], N [N, num].

        Args:
            rho: 1 = the same, 0 = as if drawn anew.
            share: Share of the coordinates of z that change; `coords` = those it is taken from.
            layers: Only these layers change, as [0, 3] or '0-3'; codes become y+.
            each_layer: Each layer gets an e of its own; codes become y+.
            seed: Of the e.
        """
        self._check_prior('variations')
        num, seed, chosen = api_checks.whole('num', num), api_checks.whole('seed', seed, 0), self._layers(layers)
        how = editing.Variation(api_checks.number('rho', rho), api_checks.number('share', share),
                                api_checks.places('coords', coords, self.dim), chosen, each_layer)  # fmt: skip
        found, form, lead = self._read(what, c)
        made = editing.vary(self.G, found.code, found.c, num, how, torch.Generator().manual_seed(seed)).flatten(0, 1)
        return self._give(self._repeat(found, num).with_code(made), form, (*lead, num), out)

    # -----------------------------------------------------------------------------------------------------------------
    # Back into the full picture

    def paste(
        self,
        edited: Any,
        full: Any,
        placement: Placement | None = None,
        base: Any = None,
        feather: float = pasting.FEATHER,
        out: str | None = None,
    ) -> Any:
        """An edited crop back in its full picture, whose kind the result has.

        Args:
            edited: One image, resolution x resolution.
            full: The upright picture of any size, or its file.
            placement: Where the crop lies, as Latents.placements tells it. None = the centre square, as images are
                fitted.
            base: The reconstruction before the edit: only the difference is added, so that detail which the network
                cannot draw survives. None = the crop's place is filled.
            feather: Width of the soft edge, as a share of the crop's side.

        Raises:
            ValueError: sizes that don't belong together.
        """
        if not isinstance(placement, Placement | None):
            raise ValueError(f'placement: expected one of Latents.placements, got {type(placement).__name__}')
        picture, form = api_images.read_full(full, self.value_range, alpha=True)
        if placement is None:
            placement = centre_crop((picture.shape[2], picture.shape[1]), self.resolution)
        crops = [None if crop is None else api_images.read_full(crop, self.value_range)[0] for crop in (edited, base)]
        assert crops[0] is not None, 'read_full gives pixels'
        made = pasting.paste(picture, crops[0], placement, crops[1], feather)
        form = form.choose(out)
        return give_images(to_float(made[None]) if form.floats else made[None], form, (), self.value_range)
