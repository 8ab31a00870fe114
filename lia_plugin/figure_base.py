"""What all figures have in common: what they are drawn from, what one is, and how it says that it can't be."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from lia_plugin import codes, images, inversion, perceptual
from lia_plugin.codes import Codes
from lia_plugin.edit_session import Session
from lia_plugin.host import UserError
from lia_plugin.targets import Target

Advance = Callable[[float], None]  # Told which share of a figure is done, 0 to 1.


class CannotDraw(Exception):
    """This network, these data or this machine don't allow a figure. The message, one line, says why."""


@dataclasses.dataclass(frozen=True)
class Options:
    """What the command was told, but for network, data and how to draw."""

    num: int = 256  # Real images that are encoded.
    pairs: int = 32  # Pairs of them that are interpolated.
    opt_num: int = 32  # Those that are refined and optimised.
    shown: int = 6  # Rows in pictures.
    samples: int = 4000  # Points of the t-SNE.
    steps: int = 9  # Images in a strip.
    refine: int = 100  # Steps of refinement and of optimisation.
    percep: str | None = None  # 'disc', 'vgg16' or 'none' (pixels). None = the best that is at hand.
    vgg16: str | None = None  # Path or URL.
    compare: str | None = None
    group_column: str | None = None  # Images with one value there are held out together.
    directions: str | None = None
    direction_space: str | None = None  # Of a file that doesn't tell.
    force: bool = False  # Take directions of another network.
    labels: str | None = None
    split: str | None = None  # Of the labels, in their column `split`.
    roll_steps: int = 2500
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class Figure:
    """One section of the page. Files are NAME-KEY.png, or NAME.png for the key ''."""

    heading: str
    text: str  # What is seen, and what the numbers mean.
    pictures: dict[str, tuple[torch.Tensor, str]]  # Key -> uint8 [C, H, W], caption.
    tables: Sequence[tuple[Sequence[str], Sequence[Sequence[str]]]]  # Header, rows.
    numbers: dict[str, Any]


class Sitters(NamedTuple):
    """Some real images: NCHW float in [-1, 1] on the device, labels, names, and their codes if there is an encoder."""

    img: torch.Tensor
    c: torch.Tensor | None
    names: list[str]
    code: torch.Tensor | None


class Exhibit:
    """A network and real images, encoded when first asked for. Without a network only what needs none can be drawn."""

    def __init__(
        self, options: Options, session: Session | None = None, items: Sequence[Target] = (),
        everything: Sequence[Target] | None = None,  # All images of --data, of which `items` are looked at.
    ) -> None:
        self.options, self._session, self.items = options, session, items
        self.everything = items if everything is None else everything
        self.failures: list[tuple[str, str]] = []
        self._kept: dict[str, Any] = {}

    def once(self, key: str, make: Callable[[], Any]) -> Any:
        """What several figures need is made once."""
        if key not in self._kept:
            self._kept[key] = make()
        return self._kept[key]

    @property
    def session(self) -> Session:
        if self._session is None:
            raise CannotDraw('needs a network: give --network')
        return self._session

    @property
    def G(self) -> Any:
        return self.session.G

    @property
    def has_encoder(self) -> bool:
        return getattr(self.G, 'encoder', None) is not None

    def check_data(self) -> None:
        """CannotDraw unless there are real images."""
        if not self.items:
            raise CannotDraw('needs real images: give --data')

    @cached_property
    def reals(self) -> Codes:
        """The real images with their codes, as the encoder gives them. CannotDraw if that can't be."""
        session = self.session
        if not self.has_encoder:
            raise CannotDraw('needs an encoder, and this network is of stage 1')
        self.check_data()
        found = codes.image_codes(
            session.G, session.network, self.items, session.class_idx, session.batch, self.failures)
        if found is None:
            raise UserError(f'--data: none of its {len(self.items)} images can be read: {self.failures[0][1]}')
        if not torch.isfinite(found.code).all():
            raise UserError(f'{session.network}: gives codes that are not finite; its training has failed')
        return found

    def sitters(self, count: int) -> Sitters:
        """At most `count` of the real images, from all over the set. CannotDraw if there is none."""
        if self.has_encoder:
            rows = spread(len(self.reals), count)
            some = self.reals[rows]
            return Sitters(self.originals(rows).to(self.session.device), some.c, list(some.names), some.code)
        self.check_data()
        items = [self.items[i] for i in spread(len(self.items), count)]
        labels = inversion.target_labels(self.G, self.session.class_idx, items)
        size = (self.G.img_resolution, self.G.img_channels)
        pixels = {}
        for target in items:
            try:
                pixels[target.name] = target.read(*size).pixels
            except UserError as error:
                self.failures.append((target.label, str(error)))
        if not pixels:
            raise UserError(f'--data: none of {len(items)} images can be read: {self.failures[0][1]}')
        device = self.session.device
        c = None if labels is None else torch.stack([labels[name] for name in pixels]).to(device)
        return Sitters(images.to_float(torch.stack(list(pixels.values()))).to(device), c, list(pixels), None)

    def originals(self, rows: Sequence[int]) -> torch.Tensor:
        """Some of the real images, NCHW float in [-1, 1], on the CPU. All of them as floats would be too much."""
        pixels = [self.reals.originals[row] for row in rows]
        return images.to_float(torch.stack([one for one in pixels if one is not None]))

    @torch.no_grad()
    def draw(self, code: torch.Tensor, c: torch.Tensor | None) -> torch.Tensor:
        """Codes -> images NCHW, float32 in [-1, 1], on the CPU, in batches."""
        size, parts = self.session.batch, []
        for start in range(0, len(code), size):
            labels = None if c is None else c[start : start + size]
            img = codes.render(self.G, code[start : start + size], labels, noise_mode=self.session.noise_mode)
            parts.append(img.clamp(-1, 1).cpu())
        return torch.cat(parts)

    def is_deep(self) -> bool:
        """Whether codes are y+."""
        return self.reals.code.ndim == 3

    @cached_property
    def percep(self) -> tuple[perceptual.Perceptual | None, str]:
        """The feature space that images are compared in, and what to call it; None = pixels."""
        wanted, device = self.options.percep, self.session.device
        vgg16 = self.options.vgg16 or perceptual.cached_vgg16()
        D = (self.session.contents or {}).get('D')
        if wanted == 'vgg16' or (wanted is None and vgg16 is not None):
            return perceptual.VGG16Features(vgg16 or perceptual.VGG16_URL).to(device), 'LPIPS (VGG16)'
        if wanted == 'disc' and not hasattr(D, 'block_resolutions'):
            raise CannotDraw('--percep=disc: this pickle holds no discriminator whose features can be had')
        if wanted != 'none' and hasattr(D, 'block_resolutions'):
            return perceptual.DiscriminatorFeatures(D).to(device), "features of the pickle's discriminator"
        return None, 'pixels'


def rows_of(value: torch.Tensor | None, index: Sequence[int]) -> torch.Tensor | None:
    """Some rows of what may not be there."""
    return None if value is None else value[list(index)]


def spread(total: int, count: int) -> list[int]:
    """At most `count` of `total` places, evenly spread: data sets are often sorted."""
    count = min(total, count)
    return [i * total // count for i in range(count)]


def mean_and_error(values: npt.ArrayLike) -> dict[str, float]:
    """Mean, and its standard error (NaN for one value)."""
    v = np.asarray(values, np.float64)
    return dict(mean=float(v.mean()), error=float(v.std(ddof=1) / len(v) ** 0.5) if len(v) > 1 else float('nan'))


def with_error(value: dict[str, float], form: str) -> str:
    """`mean_and_error` as text."""
    error = '' if np.isnan(value['error']) else f' ± {format(value["error"], form.lstrip("+"))}'
    return format(value['mean'], form) + error
