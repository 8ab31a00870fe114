"""What the Python API stands on: a network at hand, inputs of any kind as codes, codes as pictures of any kind."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch

from lia_plugin import api_checks, api_images, codes, engine, inversion, memory, paths, spaces
from lia_plugin.api_images import Array, Form, Given, Range, give_images, give_latents, is_array, read_images
from lia_plugin.codes import Codes, made_codes, unique_names
from lia_plugin.networks import base_code

Layers = int | str | Sequence[int]  # Places in ws: 3, [0, 3], range(4), '0-3,7'.

LATENTS = 'latents'  # As `out`: codes in place of pictures.


@dataclasses.dataclass(frozen=True, eq=False)
class Latents:
    """Codes of images, and what is known of them. `y, z = latents` takes both apart; any method of Lia takes it whole.

    Arrays have the batch in front, N = 1 for a single image, and are tensors where tensors came in, else NumPy's.
    """

    codes: Codes
    _z: torch.Tensor | None
    form: Form  # Of the images they came from.
    lead: tuple[int, ...]  # How N is laid out in pictures: () for a single image, (N,), or (rows, columns).
    figures: Mapping[str, Array] = dataclasses.field(default_factory=dict)  # Name, as in results.json -> [N].
    notes: tuple[tuple[str, ...], ...] = ()  # Of each image that was read, what was changed to fit the network.

    @property
    def y(self) -> Any:
        """The base code y, float32 [N, dim] (w of a stock network)."""
        return give_latents(base_code(self.codes.code), self.form)

    @property
    def z(self) -> Any:
        """z = φ(y), float32 [N, dim]; None for a stock network."""
        return None if self._z is None else give_latents(self._z, self.form)

    @property
    def y_plus(self) -> Any:
        """One code for each layer, float32 [N, num_ws, dim]; None where one code is all there is."""
        return give_latents(self.codes.code, self.form) if self.codes.code.ndim == 3 else None

    @property
    def code(self) -> Any:
        """y+ where there is one, else y."""
        return give_latents(self.codes.code, self.form)

    @property
    def c(self) -> Any:
        """Labels, float32 [N, c_dim]; None for a network without classes."""
        return None if self.codes.c is None else give_latents(self.codes.c, self.form)

    @property
    def names(self) -> tuple[str, ...]:
        return self.codes.names

    @property
    def placements(self) -> tuple[Any, ...]:
        """Where each image was cut out of a larger picture; None = nowhere."""
        return self.codes.placements

    def __iter__(self) -> Any:
        return iter((self.y, self.z))

    @property
    def count(self) -> int:
        return len(self.codes)

    def pick(self, *indices: int | slice | Sequence[int]) -> Latents:
        """Those of some images: pick(3) as of a single image; pick(0, 2), pick([0, 2]), pick(range(2)) as of several.

        Raises:
            IndexError: there is no such image.
            ValueError: none is picked.
        """
        whole = [index for index in indices if isinstance(index, int | np.integer)]
        rows = _rows_of(self.count, indices)
        single = len(indices) == len(whole) == 1
        notes = tuple(self.notes[row] for row in rows) if self.notes else ()
        return Latents(
            self.codes[rows], None if self._z is None else self._z[rows], self.form,
            () if single else (len(rows),), {name: value[rows] for name, value in self.figures.items()}, notes,
        )  # fmt: skip

    def __repr__(self) -> str:
        kind = 'y+' if self.codes.code.ndim == 3 else 'y' if self._z is not None else 'w'
        told = ', '.join(f'{name} {value.mean():.4g}' for name, value in self.figures.items()
                         if name in ('mse', 'typicality'))  # fmt: skip
        images = f'{self.count} image{"s" * (self.count != 1)}'
        return f'<Latents: {kind} {list(self.codes.code.shape)} of {images}{told and "; mean " + told}>'


def _rows_of(count: int, indices: Sequence[Any]) -> list[int]:
    """Numbers, slices and sequences of numbers -> places among `count` images."""
    rows: list[int] = []
    for index in indices:
        found = range(count)[index] if isinstance(index, slice) else index
        listed = [found] if isinstance(found, int | np.integer) else found
        rows += [range(count)[int(one)] for one in listed]
    if not rows:
        raise ValueError(f'pick: expected at least one of {count} images, got none')
    return rows


class Network:
    """G_ema of a pickle, frozen, on its device. Settings are plain attributes; they may be changed at any time."""

    def __init__(
        self,
        contents: Mapping[str, Any],
        network: str,
        device: torch.device,
        batch: int | Literal['auto'] = 8,
        value_range: Range | None = None,
        noise_mode: str = 'const',
    ) -> None:
        if noise_mode not in ('const', 'random', 'none'):
            raise ValueError(f"noise_mode: expected 'const', 'random' or 'none', got {noise_mode!r}")
        self.contents = contents  # The whole snapshot: D and what else it holds.
        self.G = contents['G_ema']
        self.network, self.device, self.batch, self.noise_mode = network, device, batch, noise_mode
        self.value_range = value_range

    @property
    def batch(self) -> int | Literal['auto']:
        """Images at once; 'auto' = as many as fit into memory when they are worked on."""
        return self._batch

    @batch.setter
    def batch(self, batch: int | Literal['auto']) -> None:
        self._batch: int | Literal['auto'] = 'auto' if batch == 'auto' else api_checks.whole('batch', batch)

    @property
    def value_range(self) -> Range | None:
        """(low, high) of images in floats that come in and go out. None: [-1, 1] for torch, and none for NumPy."""
        return self._value_range

    @value_range.setter
    def value_range(self, value_range: Range | None) -> None:
        api_images.check_range(value_range)
        self._value_range = None if value_range is None else (float(value_range[0]), float(value_range[1]))

    @property
    def resolution(self) -> int:
        return int(self.G.img_resolution)

    @property
    def channels(self) -> int:
        """3, or 1 for grey images."""
        return int(self.G.img_channels)

    @property
    def num_ws(self) -> int:
        """Number of the synthesis network's layers, each of which has a code in y+."""
        return int(self.G.num_ws)

    @property
    def dim(self) -> int:
        """Numbers in a code y (w of a stock network)."""
        return spaces.code_dim(self.G)

    @property
    def has_prior(self) -> bool:
        """Whether it is a LIA network, with φ, hence with z."""
        return spaces.has_prior(self.G)

    @property
    def has_encoder(self) -> bool:
        return getattr(self.G, 'encoder', None) is not None

    def __repr__(self) -> str:
        kind = 'LIA' if self.has_prior else 'stock StyleGAN'
        classes = f', {self.G.c_dim} classes' if self.G.c_dim else ''
        encoder = '' if self.has_encoder else ', no encoder'
        colours = 'RGB' if self.channels == 3 else 'grey'
        return (f'<Lia: {os.path.basename(self.network)}, {kind} {self.resolution}x{self.resolution} {colours}{classes}'
                f'{encoder}, codes of {self.dim}, {self.num_ws} layers, on {self.device}>')

    # -----------------------------------------------------------------------------------------------------------------
    # In

    def _given(self, images: Any) -> Given:
        """Images of any kind as the network takes them; see `lia_plugin.api_images`."""
        return read_images(images, self.resolution, self.channels, self.value_range)

    def _labels(self, c: Any, count: int, given: Given | None = None, seeds: bool = False) -> torch.Tensor | None:
        """A class, one for each image, or labels [c_dim] or [N, c_dim] -> float32 [N, c_dim] on the device.

        c=None takes those of a dataset.json that files came with. The result is None for networks without classes, and
        for codes w of stock networks, which know none.

        Raises:
            ValueError: missing, not wanted, or they don't fit.
        """
        c_dim = self.G.c_dim
        if c_dim == 0 or not (self.has_prior or seeds):
            if c is not None:
                who = 'this network has' if c_dim == 0 else 'codes w of a stock network know'
                raise ValueError(f'c: {who} no classes')
            return None
        if c is None:
            return self._stored_labels(given)
        wanted = f'c: this network takes classes, 0 to {c_dim - 1}, or labels [{count}, {c_dim}]; got'
        try:
            array = torch.as_tensor(c).detach().cpu()
        except (TypeError, ValueError, RuntimeError):
            raise ValueError(f'{wanted} {type(c).__name__}') from None
        if not array.dtype.is_floating_point and array.ndim < 2:
            if array.ndim == 1 and len(array) != count or not bool(((array >= 0) & (array < c_dim)).all()):
                raise ValueError(f'{wanted} {array.tolist()}')
            array = torch.nn.functional.one_hot(array.long(), c_dim)
        if list(array.shape) not in ([c_dim], [count, c_dim]) or not bool(array.isfinite().all()):
            raise ValueError(f'{wanted} {list(array.shape)}')
        return array.to(torch.float32).to(self.device).expand(count, c_dim)  # MPS has no float64.

    def _stored_labels(self, given: Given | None) -> torch.Tensor:
        files = [file for file in given.files if file is not None] if given is not None else []
        if files and len(files) == len(given.files):  # type: ignore[union-attr]
            found = [inversion.target_labels(self.G, None, [file]) for file in files]
            rows = [next(iter(table.values())) for table in found if table is not None]
            return torch.stack(rows).to(self.device)
        raise ValueError(f'c: this network needs the class of each image, 0 to {self.G.c_dim - 1}')

    def _read(self, given: Any, c: Any = None) -> tuple[Codes, Form, tuple[int, ...]]:
        """Latents, codes, seeds, .npz files or images -> codes on the device, the form for pictures, and their layout.

        Raises:
            ValueError: it is none of these, or does not fit.
        """
        if isinstance(given, Latents):
            spaces.fit_code(self.G, given.codes.code, plus=True)  # Which refuses those of other networks.
            labels = given.codes.c if c is None else self._labels(c, given.count)
            return dataclasses.replace(given.codes, c=labels), given.form, given.lead
        seeds = api_checks.seed_list(given)
        if seeds is not None:
            labels = self._labels(c, len(seeds), seeds=True)
            found = codes.seed_codes(self.G, seeds, c=labels)
            return found, Form(), () if isinstance(given, int | np.integer) else (len(seeds),)
        if isinstance(given, str | os.PathLike) and codes.is_code_file(os.fspath(given)):
            found = codes.file_codes(self.G, os.fspath(given))
            labels = found.c if c is None else self._labels(c, len(found))
            return dataclasses.replace(found, c=labels), Form(), (len(found),)
        if is_array(given) and self._is_code(given):
            return self._read_code(given, c)
        self._refuse_loose_codes(given)
        found, read = self._encode_images(given, c)
        return found, read.form, () if read.single else (len(found),)

    def _is_code(self, array: Any) -> bool:
        """Whether an array is of floats and of the shape [N, dim] or [N, num_ws, dim]."""
        floats = 'float' in str(array.dtype)
        shape = list(array.shape)
        return floats and (len(shape) == 2 and shape[1:] == [self.dim] or shape[1:] == [self.num_ws, self.dim])

    def _refuse_loose_codes(self, given: Any) -> None:
        """ValueError for codes that lack the batch, or lie in a list: as images they would only be called misshapen."""
        listed = given if isinstance(given, list | tuple) else [given]
        if any(isinstance(one, Latents) for one in listed):
            raise ValueError('images: a list holds images, not Latents, which are several already; take their codes, '
                             'np.concatenate([a.code, b.code])')  # fmt: skip
        if any(is_array(one) and list(one.shape) == [self.dim] for one in listed):
            raise ValueError(f'code: expected the batch in front, [N, {self.dim}], as code[None] or np.stack(codes), '
                             f'got [{self.dim}]')  # fmt: skip

    def _layers(self, given: Layers | None) -> tuple[int, ...] | None:
        """ValueError for layers that the network hasn't; None is none in particular."""
        return api_checks.places('layers', given, self.num_ws)

    def _read_code(self, code: Any, c: Any = None) -> tuple[Codes, Form, tuple[int, ...]]:
        """Floats [N, dim] or [N, num_ws, dim] -> the same as of `_read`; pictures of it are NumPy's or tensors, too."""
        if not is_array(code) or not self._is_code(code) or not len(code):
            got = f'{code.dtype} {list(code.shape)}' if is_array(code) else type(code).__name__
            raise ValueError(f'code: expected floats [N, {self.dim}] or [N, {self.num_ws}, {self.dim}], got {got}')
        tensor = code.detach().float() if isinstance(code, torch.Tensor) else torch.from_numpy(code.astype(np.float32))
        tensor = tensor.to(self.device)
        if not bool(tensor.isfinite().all()):
            raise ValueError('code: holds numbers that are not finite')
        count = len(tensor)
        kind = Form('torch', floats=True, device=code.device) if isinstance(code, torch.Tensor) else Form('numpy')
        return made_codes([f'code{i}' for i in range(count)], tensor, self._labels(c, count)), kind, (count,)

    @torch.no_grad()
    def _encode_images(self, images: Any, c: Any = None) -> tuple[Codes, Given]:
        """Images through the encoder. ValueError without one."""
        self._check_encoder()
        given = self._given(images)
        labels = self._labels(c, len(given.img), given)
        G = engine.of(self.G)
        parts = [G.encode(given.img[rows].to(self.device), None if labels is None else labels[rows])
                 for rows in self._batches(len(given.img))]  # fmt: skip
        names = unique_names(given.names)
        return made_codes(names, torch.cat(parts), labels, placements=given.placements), given

    def _check_encoder(self) -> None:
        """ValueError unless images can be encoded."""
        if not (self.has_prior and self.has_encoder):
            what = 'comes from stage 1' if self.has_prior else 'is not a LIA network'
            hint = 'lia.refine(images) finds codes by optimisation'
            raise ValueError(f'{self.network}: {what} and has no encoder; {hint}')

    def _check_prior(self, what: str) -> None:
        """ValueError unless there is φ."""
        if not self.has_prior:
            raise ValueError(f'{what}: {self.network} is no LIA network, it has no φ, hence neither z nor a prior')

    def _batches(self, count: int, work: Callable[[], object] | None = None) -> list[slice]:
        """Which of so many images are worked on at once. `work` does with one what is to be done, where that is more
        than to encode and draw it."""
        step = self._at_once(work) if count > 1 else 1
        return [slice(start, start + step) for start in range(0, count, step)]

    def _at_once(self, work: Callable[[], object] | None = None) -> int:
        if self.batch != 'auto':
            return self.batch
        return memory.picture_batch(self.G, self.device) if work is None else memory.batch_size(self.device, work)

    # -----------------------------------------------------------------------------------------------------------------
    # Out

    @torch.no_grad()
    def _give(self, found: Codes, form: Form, lead: Sequence[int], out: str | None = None) -> Any:
        """Codes as pictures in the form that `out` asks for, or as Latents; `lead` is their layout."""
        if out == LATENTS:
            return self._latents(found, form, lead)
        form = form.choose(out)
        parts = []
        for rows in self._batches(len(found)):
            part = found[rows]
            img = codes.render(self.G, part.code, part.c, part.noise, self.noise_mode)
            parts.append(api_images.as_stored(img, form))
        return give_images(torch.cat(parts), form, lead, self.value_range)

    @torch.no_grad()
    def _latents(self, found: Codes, form: Form, lead: Sequence[int], **rest: Any) -> Latents:
        z = paths.to_space(self.G, base_code(found.code), found.c, 'z') if self.has_prior else None
        return Latents(found, z, form, tuple(lead), **rest)
