"""Pixels and floats: every conversion, every image read and every picture written passes here.

Float images are NCHW (or CHW), float32, in [-1, 1]; pixels are uint8 in the same layout, one channel (grey) or
three (RGB). Both formulas are those of StyleGAN's tools, because published FID figures depend on them.
"""

import dataclasses
import functools
import io
import os
from collections.abc import Sequence
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import PIL.Image
import PIL.ImageDraw
import torch

from lia_plugin.host import UserError, atomic_write, open_data_set
from lia_plugin.lettering import drawable, font
from lia_plugin.picture_decode import MAX_PIXELS as MAX_PIXELS
from lia_plugin.picture_decode import UnusableImageError, decode
from lia_plugin.picture_decode import has_image_extension as has_image_extension
from lia_plugin.placement import Placement, centre_crop

LUMA = (0.299, 0.587, 0.114)  # Rec. 601, as Pillow's conversion to grey.
CAPTION_HEIGHT = 22
WHITE = 255
# What pictures are written as, and how: PNG and WebP as they are, JPEG as near as it can.
WRITTEN: dict[str, dict[str, Any]] = {
    'png': dict(format='PNG'),
    'jpg': dict(format='JPEG', quality=95, subsampling=0),
    'webp': dict(format='WEBP', lossless=True),
}


# ---------------------------------------------------------------------------------------------------------------------
# Pixels <-> floats


def to_float(pixels: torch.Tensor | np.ndarray) -> torch.Tensor:
    """uint8 of any shape -> float32 in [-1, 1], x / 127.5 - 1."""
    x = torch.as_tensor(pixels)
    if x.dtype != torch.uint8:
        raise ValueError(f'pixels: expected uint8, got {x.dtype}')
    return x.to(torch.float32) / 127.5 - 1


def to_uint8(img: torch.Tensor) -> torch.Tensor:
    """Float in [-1, 1] (values outside are clipped) -> uint8, the nearest level. Undoes `to_float` exactly."""
    return (img.to(torch.float32) * 127.5 + 128).clamp(0, 255).to(torch.uint8)


def to_vgg_range(img: torch.Tensor) -> torch.Tensor:
    """Float in [-1, 1] -> float in [0, 255], unrounded and differentiable: what VGG16 detectors read."""
    return (img + 1) * 127.5


def from_range(img: torch.Tensor, low: float, high: float) -> torch.Tensor:
    """Float in [low, high] -> float32 in [-1, 1]."""
    return (img.to(torch.float32) - low) * (2 / (high - low)) - 1


def to_range(img: torch.Tensor, low: float, high: float) -> torch.Tensor:
    """Undoes `from_range`; values outside [-1, 1] are clipped."""
    return (img.to(torch.float32).clamp(-1, 1) + 1) * ((high - low) / 2) + low


def with_channels(img: torch.Tensor, channels: int) -> torch.Tensor:
    """Grey <-> RGB for (N)CHW images, floats or pixels; an image that already fits is returned as it is.

    Raises:
        ValueError: neither side of the conversion is 1 or 3 channels.
    """
    have = img.shape[-3]
    if have == channels:
        return img
    if have == 1 and channels == 3:
        return torch.cat([img] * 3, dim=-3)
    if have == 3 and channels == 1:
        weights = torch.tensor(LUMA, device=img.device)[:, None, None]
        grey = (img.to(torch.float32) * weights).sum(dim=-3, keepdim=True)
        return grey.round().to(torch.uint8) if img.dtype == torch.uint8 else grey.to(img.dtype)
    raise ValueError(f'images: no conversion from {have} to {channels} channels')


# ---------------------------------------------------------------------------------------------------------------------
# Reading


class LoadedImage(NamedTuple):
    """Pixels uint8 [C, H, W] and one note for each thing that was changed on the way, for people to read."""

    pixels: torch.Tensor
    notes: tuple[str, ...]
    placement: Placement | None = None  # Where a crop lies in the full picture; None = this is the full picture.
    profile: bytes | None = None  # ICC profile of the file's colours, if these are still meant by it.


def read_image(
    file: str | os.PathLike[str] | BinaryIO | PIL.Image.Image,
    resolution: int | None = None,
    channels: int | None = None,
    name: str | None = None,
    alpha: bool = False,
) -> LoadedImage:
    """Reads any image file that Pillow knows, or takes a picture that Pillow has read or made.

    EXIF rotation is applied; transparency lies on white, or with `alpha` is one more channel; palettes, CMYK, 16-bit
    grey and bilevel images become 8-bit grey or RGB. `resolution` crops the centre square and resizes it; `channels`
    (1 or 3) converts. `name` is what errors call the file, and its placement, if it is not a path.

    Raises:
        UserError: missing, no image, truncated, too large or of a kind without defined brightness; one line.
    """
    label = name or _path(file) or 'image'
    try:
        loaded, notes = decode(file, alpha)
    except FileNotFoundError:
        raise UserError(f'{label}: no such file') from None
    except (IsADirectoryError, PermissionError) as error:
        raise UserError(f'{label}: cannot be read ({error.strerror})') from None
    except PIL.UnidentifiedImageError:
        raise UserError(f'{label}: not an image file, or of an unknown kind') from None
    except UnusableImageError as error:
        raise UserError(f'{label}: {error}') from None
    except Exception as error:  # On damaged files decoders raise whatever comes: OSError, SyntaxError, struct.error …
        reason = ' '.join(str(error).split()) or type(error).__name__
        raise UserError(f'{label}: damaged image file ({reason})') from None
    profile = loaded.info.get('icc_profile')
    grey = loaded.mode in ('L', 'LA')
    fits = profile is not None and profile[16:20] == (b'GRAY' if grey else b'RGB ')
    full = LoadedImage(from_pil(loaded), tuple(notes), None, profile if fits else None)
    if resolution is None and channels is None:
        return full
    found = fitted(full, resolution, channels)
    if found.placement is None:
        return found
    return found._replace(placement=dataclasses.replace(found.placement, source=name or _path(file)))


def fitted(full: LoadedImage, resolution: int | None = None, channels: int | None = None) -> LoadedImage:
    """A whole picture as `read_image` fits it: its centre square at `resolution`, in so many channels."""
    pixels, notes, placement, profile = full.pixels, list(full.notes), None, full.profile
    if resolution is not None:
        placement = centre_crop((pixels.shape[2], pixels.shape[1]), resolution)
        pixels = from_pil(_fit(to_pil(pixels), resolution, notes))
    if channels is not None and channels != pixels.shape[0]:
        notes.append('grey turned into RGB' if channels == 3 else 'RGB turned into grey')
        pixels, profile = with_channels(pixels, channels), None
    return LoadedImage(pixels, tuple(notes), placement, profile)


def _path(file: object) -> str:
    return os.fspath(file) if isinstance(file, str | os.PathLike) else ''


def _fit(picture: PIL.Image.Image, resolution: int, notes: list[str]) -> PIL.Image.Image:
    """Centre square, then Lanczos to resolution x resolution; notes what it did."""
    side = min(picture.size)
    if picture.width != picture.height:
        notes.append(f'centre {side}x{side} cut from {picture.width}x{picture.height}')
        left, top = (picture.width - side) // 2, (picture.height - side) // 2
        picture = picture.crop((left, top, left + side, top + side))
    if side != resolution:
        notes.append(f'resized from {side}x{side} to {resolution}x{resolution}')
        picture = picture.resize((resolution, resolution), PIL.Image.Resampling.LANCZOS)
    return picture


# ---------------------------------------------------------------------------------------------------------------------
# Writing and arranging


def to_pil(img: torch.Tensor) -> PIL.Image.Image:
    """One CHW image, floats in [-1, 1] or pixels, of 1 or 3 channels; of 2 or 4 with transparency."""
    pixels = img if img.dtype == torch.uint8 else to_uint8(img)
    array = pixels.detach().cpu().permute(1, 2, 0).numpy()
    return PIL.Image.fromarray(np.ascontiguousarray(array[:, :, 0] if array.shape[2] == 1 else array))


def from_pil(picture: PIL.Image.Image) -> torch.Tensor:
    """A picture of one byte a channel -> uint8 CHW; undoes `to_pil`."""
    array = np.asarray(picture)
    return torch.from_numpy(array.reshape(picture.height, picture.width, -1).transpose(2, 0, 1).copy())


def png_bytes(img: torch.Tensor) -> bytes:
    """One CHW image as a PNG file's content."""
    return picture_bytes(img, 'png')


def picture_bytes(img: torch.Tensor, kind: str, profile: bytes | None = None) -> bytes:
    """One CHW image as a file's content, of a kind in WRITTEN, with the ICC profile of its colours if there is one."""
    buffer = io.BytesIO()
    to_pil(img).save(buffer, **WRITTEN[kind], icc_profile=profile)
    return buffer.getvalue()


def save_png(img: torch.Tensor, path: str | os.PathLike[str], profile: bytes | None = None) -> None:
    """Writes one CHW image, floats in [-1, 1] or pixels, whole or not at all; `profile`: of its colours (ICC)."""
    with atomic_write(os.fspath(path)) as file:
        file.write(picture_bytes(img, 'png', profile))


def grid(images: torch.Tensor, columns: int, padding: int = 0, magnify: int = 1) -> torch.Tensor:
    """NCHW (floats or pixels) -> one uint8 picture [C, H, W], row by row; empty places and padding are white.

    Raises:
        ValueError: no image, or no column.
    """
    if len(images) == 0 or columns < 1:
        raise ValueError(f'grid: expected at least one image and one column, got {len(images)} and {columns}')
    pixels = images.detach().cpu() if images.dtype == torch.uint8 else to_uint8(images.detach().cpu())
    pixels = enlarge(pixels, magnify)
    count, channels, height, width = pixels.shape
    rows = -(-count // columns)
    sheet = torch.full(
        [channels, rows * (height + padding) - padding, columns * (width + padding) - padding], WHITE, dtype=torch.uint8
    )
    for i, tile in enumerate(pixels):
        top, left = i // columns * (height + padding), i % columns * (width + padding)
        sheet[:, top : top + height, left : left + width] = tile
    return sheet


def enlarge(pixels: torch.Tensor, factor: int) -> torch.Tensor:
    """Repeats each pixel factor x factor times; no new colours."""
    return pixels.repeat_interleave(factor, dim=-2).repeat_interleave(factor, dim=-1)


def legible_factor(height: int, wanted: int = 128) -> int:
    """The whole factor that brings small images to about `wanted` pixels; 1 for large ones."""
    return max(1, round(wanted / height))


def side_by_side(images: Sequence[torch.Tensor], captions: Sequence[str] = ()) -> torch.Tensor:
    """CHW images of one height in a row, small ones magnified, with captions above -> uint8 [3, H, W].

    Raises:
        ValueError: captions are given, but not one for each image; or the images differ in shape.
    """
    if captions and len(captions) != len(images):
        raise ValueError(f'captions: expected {len(images)}, got {len(captions)}')
    tiles = torch.stack([with_channels(img, 3) for img in images])
    factor = legible_factor(tiles.shape[2])
    row = grid(tiles, columns=len(images), padding=4, magnify=factor)
    if not captions:
        return row
    pitch = tiles.shape[3] * factor + 4
    return torch.cat([_caption_band(row.shape[2], pitch, tuple(captions)), row], dim=1)


def captioned_grid(images: torch.Tensor, columns: int, captions: Sequence[str]) -> torch.Tensor:
    """NCHW images row by row, small ones magnified, a caption above each -> uint8 [3, H, W]; empty places are white.

    Raises:
        ValueError: there is not one caption for each image.
    """
    if len(captions) != len(images):
        raise ValueError(f'captions: expected {len(images)}, got {len(captions)}')
    pixels = images if images.dtype == torch.uint8 else to_uint8(images)
    blank = torch.full_like(pixels[0], WHITE)
    missing = -len(pixels) % columns
    tiles, texts = [*pixels, *[blank] * missing], [*captions, *[''] * missing]
    starts = range(0, len(tiles), columns)
    return torch.cat([side_by_side(tiles[i : i + columns], texts[i : i + columns]) for i in starts], dim=1)


def interpolation_strips(rows: Sequence[torch.Tensor], captions: Sequence[str] = ()) -> torch.Tensor:
    """One NCHW path of images a row, all of one length, a caption above each row -> uint8 [3, H, W]."""
    if captions and len(captions) != len(rows):
        raise ValueError(f'captions: expected {len(rows)}, got {len(captions)}')
    bands: list[torch.Tensor] = []
    for i, path in enumerate(rows):
        strip = grid(with_channels(path, 3), columns=len(path), magnify=legible_factor(path.shape[2], wanted=64))
        if captions:
            bands.append(_caption_band(strip.shape[2], strip.shape[2], (captions[i],)))
        bands.append(strip)
    return torch.cat(bands, dim=1)


@functools.lru_cache(maxsize=4)  # Of a folder all pictures may have the same.
def _caption_band(width: int, pitch: int, captions: tuple[str, ...]) -> torch.Tensor:
    """White band [3, CAPTION_HEIGHT, width] with a text at every multiple of `pitch`."""
    band = PIL.Image.new('RGB', (width, CAPTION_HEIGHT), 'white')
    draw = PIL.ImageDraw.Draw(band)
    for i, text in enumerate(captions):
        draw.text((i * pitch + 3, 4), drawable(text), fill='black', font=font(12))
    return from_pil(band)


# ---------------------------------------------------------------------------------------------------------------------
# Snapshot picture


def reconstruction_rows(reals: torch.Tensor, recons: torch.Tensor, columns: int) -> torch.Tensor:
    """Rows of reals, each with its row of reconstructions beneath: two NCHW batches -> uint8 [C, H, W]."""
    parts = []
    for start in range(0, len(reals), columns):
        for batch in (reals, recons):
            row = batch[start : start + columns].detach().cpu()
            parts.append(grid(row, columns=columns))
    return torch.cat(parts, dim=1)


@torch.no_grad()
def save_reconstruction_grid(
    G: torch.nn.Module,
    run_dir: str,
    kimg: int,
    device: torch.device,
    dataset_kwargs: dict[str, Any],
    num: int = 32,
    batch: int = 8,
) -> str | None:
    """Reals over their reconstructions, as recon{kimg:06d}.png in the run directory; a snapshot function of the loop.

    Takes `num` images spread evenly over the data set, the same ones each time. Returns the path, or None for a
    network of stage 1, which has no encoder to reconstruct with.
    """
    if getattr(G, 'encoder', None) is None:
        return None
    dataset = open_data_set(**dataset_kwargs)
    count = min(num, len(dataset))
    indices = [i * len(dataset) // count for i in range(count)]
    reals, recons = [], []
    for start in range(0, count, batch):
        items = [dataset[i] for i in indices[start : start + batch]]
        img = to_float(np.stack([pixels for pixels, _label in items])).to(device)
        c = torch.from_numpy(np.stack([label for _pixels, label in items])).to(device)
        reals.append(img)
        recons.append(G.decode(G.encode(img, c), c, noise_mode='const'))  # type: ignore[operator]
    picture = reconstruction_rows(torch.cat(reals), torch.cat(recons), columns=min(8, count))
    path = os.path.join(run_dir, f'recon{kimg:06d}.png')
    save_png(picture, path)
    return path
