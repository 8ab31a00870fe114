"""Adaptive discriminator augmentation: the image transformations of Karras et al. 2020 (ADA), appendix B.

Every image draws its own parameters. All geometry is composed into one affine map and the image is resampled once;
all colour operations are composed into one affine map of RGB. This file travels inside pickles: it uses only what the
StyleGAN2-ADA and StyleGAN3 hosts have, and no syntax or call that their oldest supported versions lack.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from torch_utils import misc, persistence
from torch_utils.ops import conv2d_gradfix, grid_sample_gradfix, upfirdn2d

# Decomposition low-pass filters of the symlets with 2 and 6 vanishing moments (Daubechies, Ten Lectures, table 6.3).
SYM2 = (
    -0.12940952255092145, 0.22414386804185735, 0.836516303737469, 0.48296291314469025,
)
SYM6 = (
    0.015404109327027373, 0.0034907120842174702, -0.11799011114819057, -0.048311742585633,
    0.4910559419267466, 0.787641141030194, 0.3379294217276218, -0.07263748278646252,
    -0.021060292512300564, 0.04472490177066578, 0.0017677118642428036, -0.007800708325034148,
)
NUM_BANDS = 4
WIDEST_FIXED = 64  # Pixels up to which images on a GPU get all the margin there can be, see `_margins`.
BAND_POWER = (10 / 13, 1 / 13, 1 / 13, 1 / 13)  # natural images: 1 / f

_BLIT = dict.fromkeys(('xflip', 'rotate90', 'xint'), 1)
_GEOM = dict.fromkeys(('scale', 'rotate', 'aniso', 'xfrac'), 1)
_COLOR = dict.fromkeys(('brightness', 'contrast', 'lumaflip', 'hue', 'saturation'), 1)
_BGC = {**_BLIT, **_GEOM, **_COLOR}
_BGCFN = {**_BGC, 'imgfilter': 1, 'noise': 1}

# What --augpipe names: arguments of AugmentPipe.
augpipe_specs: dict[str, dict[str, int]] = {
    'blit': _BLIT, 'geom': _GEOM, 'color': _COLOR, 'filter': {'imgfilter': 1}, 'noise': {'noise': 1},
    'cutout': {'cutout': 1}, 'bg': {**_BLIT, **_GEOM}, 'bgc': _BGC, 'bgcf': {**_BGC, 'imgfilter': 1},
    'bgcfn': _BGCFN, 'bgcfnc': {**_BGCFN, 'cutout': 1},
}


class _Draws:
    """The random numbers of one batch, or their fixed stand-ins where a percentile is asked for."""

    def __init__(self, n: int, p: torch.Tensor, percentile: float | None) -> None:
        self.n, self.p = n, p
        self.percentile = None if percentile is None else torch.as_tensor(percentile, dtype=p.dtype, device=p.device)

    def uniform(self, columns: int = 1) -> torch.Tensor:
        """[n, columns] in [0, 1), or the percentile."""
        if self.percentile is None:
            return torch.rand([self.n, columns], device=self.p.device)
        return self.percentile.expand(self.n, columns)

    def normal(self, columns: int = 1) -> torch.Tensor:
        """[n, columns] from N(0, 1). Fixed: erfinv(2q - 1), the hosts' scale, which is the quantile over sqrt(2)."""
        if self.percentile is None:
            return torch.randn([self.n, columns], device=self.p.device)
        return torch.erfinv(self.percentile * 2 - 1).expand(self.n, columns)

    def half_normal(self) -> torch.Tensor:
        """[n, 1], the size of a normal number. Fixed: erfinv(q)."""
        if self.percentile is None:
            return self.normal().abs()
        return torch.erfinv(self.percentile).expand(self.n, 1)

    def sometimes(self, value: torch.Tensor, neutral: float, probability: torch.Tensor | float) -> torch.Tensor:
        """`value` for the images whose turn it is, `neutral` for the others; fixed: always `value`."""
        if self.percentile is not None:
            return value
        turn = torch.rand([self.n, 1], device=self.p.device) < probability
        return torch.where(turn, value, torch.full_like(value, neutral))


class _PixelMap:
    """x_in = linear @ x_out + shift per image, in pixels from the centre: where a result's pixel is read from.

    Operations are appended on the side of the output: the first that is given acts on the image first.
    """

    def __init__(self, n: int, device: torch.device) -> None:
        self.linear = torch.eye(2, device=device).repeat(n, 1, 1)  # [n, 2, 2]
        self.shift = torch.zeros([n, 2], device=device)  # [n, 2] = x, y

    def stretch(self, factors: torch.Tensor) -> None:
        """Enlarge by `factors` [n, 2] or [n, 1]."""
        self.linear = self.linear / factors.unsqueeze(1)

    def rotate(self, angle: torch.Tensor) -> None:
        """Rotate by `angle` [n, 1], in the direction that the hosts call positive."""
        cos, sin = angle.cos(), angle.sin()
        self.linear = self.linear @ torch.cat([cos, -sin, sin, cos], dim=1).reshape(-1, 2, 2)

    def translate(self, pixels: torch.Tensor) -> None:
        """Move the content by `pixels` [n, 2]."""
        self.shift = self.shift - _transform(self.linear, pixels)

    def apply(self, points: torch.Tensor) -> torch.Tensor:
        """Map points [n, 2], or [2] for all images, from the result to the source."""
        return _transform(self.linear, points) + self.shift


def _transform(matrices: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
    """[N, k, k] times [N, k] or [k] -> [N, k]."""
    return (matrices @ vectors.unsqueeze(-1)).squeeze(-1)


@persistence.persistent_class
class AugmentPipe(torch.nn.Module):
    """Differentiable augmentation of images [N, C, H, W], float32 in [-1, 1]; `p` scales every probability.

    The arguments named after an operation are its probability at p = 1 (all 0 by default); the others are its range:

    xint_max, xfrac_std: translation in image sizes; rotate_max, hue_max: in half turns to either side;
    scale_std, aniso_std, contrast_std, saturation_std, imgfilter_std: standard deviations of log2 of the factor;
    imgfilter_bands: probabilities of the frequency bands, lowest first, each times imgfilter;
    cutout_size: side of the square that is blanked, in image sizes.
    """

    p: torch.Tensor
    Hz_geom: torch.Tensor
    Hz_fbank: torch.Tensor

    def __init__(
        self, xflip: float = 0, rotate90: float = 0, xint: float = 0, xint_max: float = 0.125,
        scale: float = 0, rotate: float = 0, aniso: float = 0, xfrac: float = 0,
        scale_std: float = 0.2, rotate_max: float = 1, aniso_std: float = 0.2, xfrac_std: float = 0.125,
        brightness: float = 0, contrast: float = 0, lumaflip: float = 0, hue: float = 0, saturation: float = 0,
        brightness_std: float = 0.2, contrast_std: float = 0.5, hue_max: float = 1, saturation_std: float = 1,
        imgfilter: float = 0, imgfilter_bands: Sequence[float] = (1, 1, 1, 1), imgfilter_std: float = 1,
        noise: float = 0, cutout: float = 0, noise_std: float = 0.1, cutout_size: float = 0.5,
    ) -> None:
        super().__init__()
        if len(imgfilter_bands) != NUM_BANDS:
            raise ValueError(f'imgfilter_bands: got {len(imgfilter_bands)} numbers, expected {NUM_BANDS}')
        self.register_buffer('p', torch.ones([]))
        self.xflip, self.rotate90, self.xint = float(xflip), float(rotate90), float(xint)
        self.scale, self.rotate, self.aniso, self.xfrac = float(scale), float(rotate), float(aniso), float(xfrac)
        self.xint_max, self.rotate_max, self.xfrac_std = float(xint_max), float(rotate_max), float(xfrac_std)
        self.scale_std, self.aniso_std = float(scale_std), float(aniso_std)
        self.brightness, self.contrast, self.lumaflip = float(brightness), float(contrast), float(lumaflip)
        self.hue, self.saturation, self.hue_max = float(hue), float(saturation), float(hue_max)
        self.brightness_std, self.contrast_std = float(brightness_std), float(contrast_std)
        self.saturation_std, self.imgfilter_std = float(saturation_std), float(imgfilter_std)
        self.imgfilter, self.imgfilter_bands = float(imgfilter), [float(band) for band in imgfilter_bands]
        self.noise, self.noise_std = float(noise), float(noise_std)
        self.cutout, self.cutout_size = float(cutout), float(cutout_size)
        self.register_buffer('Hz_geom', upfirdn2d.setup_filter(SYM6))
        self.register_buffer('Hz_fbank', torch.as_tensor(_filter_bank(SYM2), dtype=torch.float32))

    def forward(self, images: torch.Tensor, debug_percentile: float | None = None) -> torch.Tensor:
        """Augmented images of the same shape. debug_percentile: every operation acts, with this percentile's value."""
        recolors = max(self.brightness, self.contrast, self.lumaflip, self.hue, self.saturation) > 0
        if images.ndim != 4 or (recolors and images.shape[1] not in (1, 3)):
            raise ValueError(f'images: got shape {list(images.shape)}, expected [N, C, H, W], C = 1 or 3 for colors')
        draws = _Draws(len(images), self.p, debug_percentile)
        if max(self.xflip, self.rotate90, self.xint, self.scale, self.rotate, self.aniso, self.xfrac) > 0:
            images = _resample(images, self._pixel_map(draws, images.shape[3], images.shape[2]), self.Hz_geom)
        if recolors:
            images = self._recolor(images, draws)
        if self.imgfilter > 0:
            images = self._filter(images, draws)
        if self.noise > 0:
            sigma = draws.sometimes(draws.half_normal() * self.noise_std, 0, self.noise * self.p)
            images = images + torch.randn_like(images) * sigma[:, :, None, None]
        return self._cut_out(images, draws) if self.cutout > 0 else images

    def _pixel_map(self, draws: _Draws, width: int, height: int) -> _PixelMap:
        """Pixel blitting, then general geometric transformations, in the paper's order."""
        p = self.p
        size = misc.constant([width, height], device=p.device)
        pixel_map = _PixelMap(draws.n, p.device)
        if self.xflip > 0:
            flip = draws.sometimes((draws.uniform() * 2).floor(), 0, self.xflip * p)
            pixel_map.stretch(torch.cat([1 - 2 * flip, torch.ones_like(flip)], dim=1))
        if self.rotate90 > 0:
            quarters = draws.sometimes((draws.uniform() * 4).floor(), 0, self.rotate90 * p)
            pixel_map.rotate(quarters * (math.pi / 2))
        if self.xint > 0:
            offset = draws.sometimes((draws.uniform(2) * 2 - 1) * self.xint_max, 0, self.xint * p)
            pixel_map.translate((offset * size).round())
        if self.scale > 0:
            pixel_map.stretch(draws.sometimes((draws.normal() * self.scale_std).exp2(), 1, self.scale * p))
        # Two chances to rotate, before and after the stretch, which make one of probability rotate * p together.
        p_rotate = 1 - (1 - self.rotate * p).clamp(0, 1).sqrt()
        if self.rotate > 0:
            pixel_map.rotate(self._angle(draws, self.rotate_max, p_rotate))
        if self.aniso > 0:
            factor = draws.sometimes((draws.normal() * self.aniso_std).exp2(), 1, self.aniso * p)
            pixel_map.stretch(torch.cat([factor, 1 / factor], dim=1))
        if self.rotate > 0 and draws.percentile is None:
            pixel_map.rotate(self._angle(draws, self.rotate_max, p_rotate))
        if self.xfrac > 0:
            pixel_map.translate(draws.sometimes(draws.normal(2) * self.xfrac_std, 0, self.xfrac * p) * size)
        return pixel_map

    @staticmethod
    def _angle(draws: _Draws, half_turns: float, probability: torch.Tensor) -> torch.Tensor:
        return draws.sometimes((draws.uniform() * 2 - 1) * math.pi * half_turns, 0, probability)

    def _recolor(self, images: torch.Tensor, draws: _Draws) -> torch.Tensor:
        """Brightness, contrast, luma flip, hue, saturation.

        In RGB they scale the grey axis v, scale the plane across it and rotate that plane; such maps commute, so a grey
        gain, a colour gain and an angle say it all. Brightness alone comes first, and is scaled with the grey axis.
        """
        p, one = self.p, torch.ones([draws.n, 1], device=images.device)
        bright, grey, color, angle = 0 * one, one, one, 0 * one
        if self.brightness > 0:
            bright = draws.sometimes(draws.normal() * self.brightness_std, 0, self.brightness * p)
        if self.contrast > 0:
            grey = color = draws.sometimes((draws.normal() * self.contrast_std).exp2(), 1, self.contrast * p)
        if self.lumaflip > 0:
            grey = grey * (1 - 2 * draws.sometimes((draws.uniform() * 2).floor(), 0, self.lumaflip * p))
        if images.shape[1] == 1:  # the grey axis is all there is
            return images * grey[:, :, None, None] + (grey * bright)[:, :, None, None]
        if self.hue > 0:
            angle = self._angle(draws, self.hue_max, self.hue * p)
        if self.saturation > 0:
            color = color * draws.sometimes((draws.normal() * self.saturation_std).exp2(), 1, self.saturation * p)
        matrix = _color_matrix(grey, color * angle.cos(), color * angle.sin())
        mixed = matrix @ images.flatten(2) + (grey * bright).unsqueeze(2)
        return mixed.reshape(images.shape)

    def _filter(self, images: torch.Tensor, draws: _Draws) -> torch.Tensor:
        """Amplify or dampen frequency bands, each with the others' level adjusted so that the power stays."""
        n, channels, height, width = images.shape
        gains = torch.ones([n, NUM_BANDS], device=images.device)
        for band, strength in enumerate(self.imgfilter_bands):
            if strength > 0:
                factor = (draws.normal() * self.imgfilter_std).exp2()
                factor = draws.sometimes(factor, 1, self.imgfilter * self.p * strength)
                boost = torch.ones_like(gains)
                boost[:, band] = factor[:, 0]
                gains = gains * boost / (1 + BAND_POWER[band] * (factor.square() - 1)).sqrt()
        taps = (gains @ self.Hz_fbank).repeat_interleave(channels, dim=0)  # [N * C, taps]
        margin = taps.shape[1] // 2
        planes = _mirror_pad(images, [margin] * 4).reshape(1, n * channels, height + 2 * margin, width + 2 * margin)
        planes = conv2d_gradfix.conv2d(input=planes, weight=taps[:, None, None, :], groups=n * channels)
        planes = conv2d_gradfix.conv2d(input=planes, weight=taps[:, None, :, None], groups=n * channels)
        return planes.reshape(images.shape)

    def _cut_out(self, images: torch.Tensor, draws: _Draws) -> torch.Tensor:
        """Blank a square around a random point."""
        side = torch.full([draws.n, 1], self.cutout_size, device=images.device)
        side = draws.sometimes(side, 0, self.cutout * self.p)
        center = draws.uniform(2)
        height, width = images.shape[2:]
        column = (torch.arange(width, device=images.device) + 0.5) / width
        row = (torch.arange(height, device=images.device) + 0.5) / height
        kept_columns = (column - center[:, :1]).abs() >= side / 2  # [N, W]
        kept_rows = (row - center[:, 1:]).abs() >= side / 2  # [N, H]
        return images * (kept_rows[:, None, :, None] | kept_columns[:, None, None, :])


def _filter_bank(low_pass: Sequence[float]) -> np.ndarray:
    """[band, tap]: zero-phase octave bands, lowest first, that add up to the identity.

    The power responses |H(z)|² / 2 and |H(-z)|² / 2 of a wavelet are complementary halves of the spectrum. Each level
    splits off the upper half of what the level before has left over.
    """
    low = np.asarray(low_pass, dtype=np.float64)
    high = low * (-1.0) ** np.arange(len(low))
    halves = [np.convolve(taps, taps[::-1]) / 2 for taps in (high, low)]
    remaining, bands = np.ones(1), []
    for level in range(NUM_BANDS - 1):
        spread = np.zeros([2, (halves[0].size - 1) * 2 ** level + 1])
        spread[:, ::2 ** level] = halves
        bands.append(np.convolve(remaining, spread[0]))
        remaining = np.convolve(remaining, spread[1])
    margins = [(remaining.size - band.size) // 2 for band in bands]
    rows = [np.pad(band, margin) for band, margin in zip(bands, margins)]
    return np.stack([remaining, *rows[::-1]])


def _color_matrix(grey: torch.Tensor, across: torch.Tensor, turn: torch.Tensor) -> torch.Tensor:
    """[N, 3, 3] from factors [N, 1] on the projection to the grey axis, on the rest, and on the rest turned by 90°."""
    along = torch.full([3, 3], 1 / 3, device=grey.device)
    rest = torch.eye(3, device=grey.device) - along
    a = 1 / math.sqrt(3)
    turned = misc.constant([[0, -a, a], [a, 0, -a], [-a, a, 0]], device=grey.device)
    return grey[:, :, None] * along + across[:, :, None] * rest + turn[:, :, None] * turned


def _mirror_pad(images: torch.Tensor, sides: Sequence[int]) -> torch.Tensor:
    """Reflect at the outermost pixels' centres, on and on where `sides` (x0, x1, y0, y1) exceed the image."""
    left = list(sides)
    while any(left):
        # A whole reflection ends on a mirror again, so the next one may take the padded image for the image.
        height, width = images.shape[2:]
        limits = [width - 1, width - 1, height - 1, height - 1]
        step = [min(side, limit) for side, limit in zip(left, limits)]
        if not any(step):
            return torch.nn.functional.pad(images, left, mode='replicate')
        images = torch.nn.functional.pad(images, step, mode='reflect')
        left = [side - done for side, done in zip(left, step)]
    return images


def _resample(images: torch.Tensor, pixel_map: _PixelMap, wavelet: torch.Tensor) -> torch.Tensor:
    """Apply the map: mirror what lies outside, interpolate bilinearly at twice the resolution, low-pass, downsample."""
    height, width = images.shape[2:]
    device = images.device
    border = len(wavelet) // 4  # pixels around the result that its low-pass filter reaches, on the original scale
    margins = _margins(pixel_map, width, height, border, device)
    if margins is None:
        return images
    x0, x1, y0, y1 = margins
    images = torch.nn.functional.pad(images, [x0, x1, y0, y1], mode='reflect')
    images = upfirdn2d.upsample2d(x=images, f=wavelet, up=2)
    grid = _sampling_grid(pixel_map, [x0 - x1, y0 - y1], [width + 2 * border, height + 2 * border], images)
    images = grid_sample_gradfix.grid_sample(images, grid)
    return upfirdn2d.downsample2d(x=images, f=wavelet, down=2, padding=-2 * border, flip_filter=True)


def _asks_device(device: torch.device, size: int) -> bool:
    """Whether to look at what was drawn, for which a GPU would have to be waited for, and can't be while a graph is
    being recorded. A small image with all its margin is resampled in less time than such a wait; a large one isn't."""
    if device.type == 'cuda' and torch.cuda.is_current_stream_capturing():
        return False
    return device.type == 'cpu' or size > WIDEST_FIXED


def _margins(pixel_map: _PixelMap, width: int, height: int, border: int, device: torch.device) -> list[int] | None:
    """How many mirrored pixels (x0, x1, y0, y1) the map may read; None if it is known to move nothing."""
    if not _asks_device(device, max(width, height)):
        return [width - 1, width - 1, height - 1, height - 1]
    half = misc.constant([(width - 1) / 2, (height - 1) / 2], device=device)
    corners = torch.stack([pixel_map.apply(half * misc.constant(signs, device=device))
                           for signs in ([-1, -1], [1, -1], [1, 1], [-1, 1])])  # [4, N, 2]
    reach = torch.cat([(-corners).amax(dim=(0, 1)), corners.amax(dim=(0, 1))])  # x0, y0, x1, y1 from the centre
    moved = (pixel_map.linear - torch.eye(2, device=device)).abs().amax() + pixel_map.shift.abs().amax()
    *margins, change = torch.cat([reach + 2 * border - half.repeat(2), moved.reshape(1)]).tolist()
    if change == 0:
        return None
    x0, y0, x1, y1 = [min(max(math.ceil(margin), 0), limit - 1)
                      for margin, limit in zip(margins, (width, height, width, height))]
    return [x0, x1, y0, y1]


def _filled(values: Sequence[int], device: torch.device) -> torch.Tensor:
    """A few numbers that are others each time, written by the device itself: copying them there would wait for it, and
    while a graph is being recorded it can't be done at all."""
    return torch.cat([torch.full([1], float(value), device=device) for value in values])


def _sampling_grid(pixel_map: _PixelMap, imbalance: Sequence[int], out_size: Sequence[int],
                   source: torch.Tensor) -> torch.Tensor:
    """Where in the doubled `source` each pixel of the doubled result lies, in [-1, 1]: [N, 2 * out_y, 2 * out_x, 2].

    imbalance: by how much more the source was padded on the left and top, which has moved its centre. The upsampling
    filter leaves pixels half a (doubled) pixel off: the map is carried out between these shifted lattices.
    """
    device = source.device
    shift = pixel_map.shift * 2 + _filled(imbalance, device)
    half_pixel = torch.full([2], 0.5, device=device)
    shift = shift + _transform(pixel_map.linear, half_pixel) - half_pixel
    in_size = _filled([source.shape[3], source.shape[2]], device)
    scale = _filled(out_size, device) * 2
    linear = pixel_map.linear * (scale / in_size[:, None])
    theta = torch.cat([linear, (shift * 2 / in_size).unsqueeze(-1)], dim=2)
    shape = [len(source), source.shape[1], 2 * out_size[1], 2 * out_size[0]]
    return torch.nn.functional.affine_grid(theta, shape, align_corners=False)
