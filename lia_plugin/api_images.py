"""Images of whatever kind a caller has, in and out of the Python API.

    what                        shapes                          values
    file names (str, Path)      a file is one image; a folder, pattern or zip is several
    PIL pictures                any size and mode
    NumPy uint8                 [H, W], [H, W, C], [N, H, W, C]   0 … 255
    NumPy floats                [H, W, C], [N, H, W, C]           as `value_range` states; there is no default
    torch uint8                 [C, H, W], [N, C, H, W]           0 … 255
    torch floats                [C, H, W], [N, C, H, W]           [-1, 1], or as `value_range` states
    lists of any of these       several

C is 1 or 3, of NumPy uint8 also 4, whose last is transparency. Images of another size than the network's are fitted as
the commands fit them: the centre square, resized.
"""

from __future__ import annotations

import dataclasses
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import PIL.Image
import torch

from lia_plugin import targets
from lia_plugin.images import from_range, read_image, to_float, to_pil, to_range, to_uint8, with_channels
from lia_plugin.placement import Placement

Array = npt.NDArray[Any]
Range = tuple[float, float]

KINDS = ('pil', 'numpy', 'torch')
NATIVE: Range = (-1.0, 1.0)
MAX_NOTES = 3  # So many images that were fitted are named in the warning.


@dataclasses.dataclass(frozen=True)
class Form:
    """What came in, so that what goes out is like it."""

    kind: str = 'pil'
    floats: bool = False
    channel_axis: bool = True  # False: [H, W] came in.
    device: torch.device | str = 'cpu'  # Of torch tensors.

    def choose(self, out: str | None) -> Form:
        """The form that `out` asks for: uint8 for 'numpy', floats in [-1, 1] for 'torch'; None = as it came.

        Raises:
            ValueError: another word.
        """
        if out is not None and out not in KINDS:
            raise ValueError(f"out: expected 'pil', 'numpy', 'torch' or 'latents', got {out!r}")
        return self if out in (None, self.kind) else Form(str(out), floats=out == 'torch')


class Given(NamedTuple):
    """N images as the network takes them."""

    img: torch.Tensor  # [N, C, R, R], float32 in [-1, 1], on the CPU.
    names: tuple[str, ...]
    notes: tuple[tuple[str, ...], ...]  # What was changed on the way.
    placements: tuple[Placement | None, ...]  # Where each was cut out of a larger picture; None = it was not.
    files: tuple[targets.Target | None, ...]  # None for what was no file.
    form: Form
    single: bool  # One image, and no list, folder or batch of one.


def is_array(given: Any) -> bool:
    return isinstance(given, np.ndarray | torch.Tensor)


def read_images(given: Any, resolution: int, channels: int, value_range: Range | None = None) -> Given:
    """Everything that the head of this file lists -> images of `channels` channels, resolution x resolution.

    Images that had to be fitted are told of in one warning.

    Raises:
        ValueError: what is no image, or of a kind, shape or range other than those above; names what came.
        UserError: files that can't be read.
    """
    single = not isinstance(given, list | tuple) and not (is_array(given) and given.ndim == 4)
    items = list(_items(given))
    if isinstance(given, str | os.PathLike):
        single = len(items) == 1 and items[0].source is None
    if not items:
        raise ValueError('images: expected at least one, got none')
    form = _form(items[0])
    read = [_read(item, f'image{i}', resolution, channels, value_range) for i, item in enumerate(items)]
    _warn([(one.name, one.notes) for one in read])
    return Given(
        torch.stack([one.img for one in read]), tuple(one.name for one in read), tuple(one.notes for one in read),
        tuple(one.placement for one in read),
        tuple(item if isinstance(item, targets.Target) else None for item in items), form, single,
    )  # fmt: skip


def read_full(given: Any, value_range: Range | None = None, alpha: bool = False) -> tuple[torch.Tensor, Form]:
    """One picture of any size, as it is -> uint8 [C, H, W], and its form.

    C is 1 or 3; with `alpha` 2 or 4 where something is transparent, which else is laid on white.
    """
    items = list(_items(given))
    if len(items) != 1:
        raise ValueError(f'full: expected one picture, got {len(items)}')
    item, form = items[0], _form(items[0])
    if isinstance(item, targets.Target):
        if item.member is not None:
            raise ValueError(f'full: expected a picture, got {item.label}, a zip')
        item = item.path
    if is_array(item) and _is_float(item):
        return to_uint8(_scaled(item, value_range)), form
    return read_image(_picture(item) if is_array(item) else item, alpha=alpha).pixels, form


def _items(given: Any) -> Iterator[Any]:
    """Single images: Targets, PIL pictures, arrays [H, W] or [H, W, C], tensors [C, H, W]."""
    if isinstance(given, list | tuple):
        for i, item in enumerate(given):
            if isinstance(item, list | tuple) or (is_array(item) and item.ndim == 4):
                raise ValueError(f'images: a list holds single images, but its item {i} is several')
            yield from _items(item)
    elif isinstance(given, str | os.PathLike):
        yield from targets.collect([os.fspath(given)], 'images')
    elif is_array(given):
        _check_shape(given)
        yield from (given if given.ndim == 4 else [given])
    elif isinstance(given, PIL.Image.Image):
        yield given
    else:
        raise ValueError('images: expected file names, PIL pictures, NumPy arrays or torch tensors, got '
                         f'{type(given).__name__}')  # fmt: skip


def _check_shape(array: Any) -> None:
    """ValueError for arrays that are no images by their shape."""
    shape = list(array.shape)
    if isinstance(array, torch.Tensor):
        if len(shape) not in (3, 4) or shape[-3] not in (1, 3) or 0 in shape:
            raise ValueError(f'images: torch tensors are [C, H, W] or [N, C, H, W] with 1 or 3 channels, got {shape}')
        return
    if len(shape) == 2 and _is_float(array):
        raise ValueError(f'images: NumPy floats need the axis of channels, [H, W, 1], got {shape}')
    if len(shape) not in (2, 3, 4) or 0 in shape or (len(shape) > 2 and shape[-1] not in (1, 3, 4)):
        raise ValueError('images: NumPy arrays are [H, W], [H, W, C] or [N, H, W, C], channels (1, 3 or 4) last, '
                         f'got {shape}')  # fmt: skip


def _is_float(array: Any) -> bool:
    """ValueError unless it is uint8 or of floats."""
    floats = array.dtype.is_floating_point if isinstance(array, torch.Tensor) else array.dtype.kind == 'f'
    if not floats and str(array.dtype) not in ('uint8', 'torch.uint8'):
        raise ValueError(f'images: expected uint8 (0 … 255) or floats, got {array.dtype}')
    return floats


def _form(item: Any) -> Form:
    if not is_array(item):
        return Form()
    floats = _is_float(item)
    if isinstance(item, torch.Tensor):
        return Form('torch', floats, device=item.device)
    return Form('numpy', floats, channel_axis=item.ndim == 3)


# ---------------------------------------------------------------------------------------------------------------------
# One image


class _Read(NamedTuple):
    img: torch.Tensor  # [C, R, R], float32 in [-1, 1]
    name: str
    notes: tuple[str, ...]
    placement: Placement | None


def _read(item: Any, name: str, resolution: int, channels: int, value_range: Range | None) -> _Read:
    if isinstance(item, targets.Target):
        loaded, name = item.read(resolution, channels), item.name
    elif is_array(item) and _is_float(item):
        img = _scaled(item, value_range)
        if img.shape[1:] == (resolution, resolution):  # As they are: nothing is rounded to 8 bits.
            note = 'grey turned into RGB' if channels == 3 else 'RGB turned into grey'
            return _Read(with_channels(img, channels), name, () if len(img) == channels else (note,), None)
        loaded = read_image(to_pil(img), resolution, channels, name)
    else:
        loaded = read_image(_picture(item) if is_array(item) else item, resolution, channels, name)
    where = loaded.placement
    if where is not None and not isinstance(item, targets.Target):
        where = dataclasses.replace(where, source='')  # `name` is no file's.
    return _Read(to_float(loaded.pixels), name, loaded.notes, where)


def _picture(array: Any) -> PIL.Image.Image:
    """uint8, [H, W] or [H, W, C] of NumPy, [C, H, W] of torch."""
    if isinstance(array, torch.Tensor):
        return to_pil(array)
    return PIL.Image.fromarray(np.ascontiguousarray(array[:, :, 0] if array.shape[2:] == (1,) else array))


def _scaled(array: Any, value_range: Range | None) -> torch.Tensor:
    """Floats [H, W, C] of NumPy or [C, H, W] of torch -> float32 [C, H, W] in [-1, 1]."""
    numpy = isinstance(array, np.ndarray)
    if numpy and array.shape[2] == 4:
        raise ValueError(f'images: floats have 1 or 3 channels, got {list(array.shape)}')
    img = torch.from_numpy(array.astype(np.float32).transpose(2, 0, 1)) if numpy else array.detach().cpu().float()
    least, most = float(img.min()), float(img.max())
    if not (np.isfinite(least) and np.isfinite(most)):
        raise ValueError('images: hold numbers that are not finite')
    if value_range is None:
        _refuse_guess(numpy, least, most)
    low, high = value_range or NATIVE
    slack = 1e-3 * (high - low)
    if least < low - slack or most > high + slack:
        raise ValueError(f'images: expected floats in [{low:g}, {high:g}], got {least:.4g} … {most:.4g}')
    return from_range(img, low, high).clamp(-1, 1) if (low, high) != NATIVE else img


def _refuse_guess(numpy: bool, least: float, most: float) -> None:
    """ValueError for floats whose range is not known."""
    say = 'say which range they have: lia.value_range = (0, 1), (-1, 1) or (0, 255)'
    if numpy:
        raise ValueError(f'images: NumPy floats, here {least:.4g} … {most:.4g}, have no agreed range; {say}')
    if least >= 0:
        raise ValueError(f'images: torch floats are taken to be in [-1, 1], but these, {least:.4g} … {most:.4g}, have '
                         f'none below 0; {say}')  # fmt: skip


def check_range(value_range: Any) -> None:
    """ValueError unless it is None or two numbers, the smaller first."""
    if value_range is None:
        return
    fits = isinstance(value_range, list | tuple) and len(value_range) == 2 and np.isfinite(value_range).all()
    if not fits or not value_range[0] < value_range[1]:
        raise ValueError(f'value_range: expected (low, high), as (0, 1), or None, got {value_range!r}')


def _warn(changes: Sequence[tuple[str, tuple[str, ...]]]) -> None:
    changed = [f'{name}: {"; ".join(notes)}' for name, notes in changes if notes]
    if changed:
        more = f' … and {len(changed) - MAX_NOTES} more' if len(changed) > MAX_NOTES else ''
        warnings.warn(' | '.join(changed[:MAX_NOTES]) + more, UserWarning, stacklevel=_callers_level())


def _callers_level() -> int:
    """The `stacklevel` for whoever calls `_warn` of whoever has called into this package."""
    frame, level = sys._getframe(2), 2
    inside = ('lia_plugin.', 'torch.')  # torch's: decorators.
    while frame.f_back is not None and str(frame.f_globals.get('__name__')).startswith(inside):
        frame, level = frame.f_back, level + 1
    return level


# ---------------------------------------------------------------------------------------------------------------------
# The way out


def as_stored(img: torch.Tensor, form: Form) -> torch.Tensor:
    """NCHW floats -> the same on the CPU, in 8 bits unless floats are to come out."""
    return img.clamp(-1, 1).cpu() if form.floats else to_uint8(img).cpu()


def give_images(stored: torch.Tensor, form: Form, lead: Sequence[int], value_range: Range | None = None) -> Any:
    """What `as_stored` gave, [N, C, H, W] -> images in a form: `lead` is the shape in front of each image's own.

    PIL pictures are nested lists of that shape; lead = () is the picture, array [H, W, C] or tensor [C, H, W] itself.
    """
    if form.kind == 'pil':
        return _nested([to_pil(one) for one in stored], lead)
    if form.floats:
        stored = to_range(stored, *(value_range or NATIVE))
    if form.kind == 'torch':
        return stored.reshape([*lead, *stored.shape[1:]]).to(form.device)
    array = np.ascontiguousarray(stored.permute(0, 2, 3, 1).numpy())
    if not form.channel_axis and array.shape[3] == 1:
        array = array[..., 0]
    return array.reshape([*lead, *array.shape[1:]])


def _nested(pictures: list[Any], lead: Sequence[int]) -> Any:
    if not lead:
        return pictures[0]
    if len(lead) == 1:
        return pictures
    size = len(pictures) // lead[0]
    return [_nested(pictures[i * size : (i + 1) * size], lead[1:]) for i in range(lead[0])]


def give_latents(code: torch.Tensor, form: Form) -> Any:
    """[N, …] as float32: a tensor where those came in, else a NumPy array."""
    return code.to(form.device) if form.kind == 'torch' else code.cpu().numpy()
