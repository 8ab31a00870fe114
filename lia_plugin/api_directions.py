"""The Python API's part that knows directions: found, loaded, measured along, and gone along."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from lia_plugin import codes, manipulation, paths, typical_limits
from lia_plugin import directions as direction_store
from lia_plugin.api_base import Network
from lia_plugin.api_images import Array, is_array
from lia_plugin.codes import Codes
from lia_plugin.directions import Direction, make_direction, with_scale

UNITS = ('std', 'space', 'distance')
Directions = dict[str, Direction]


class Directed(Network):
    """A network and directions in its latent space."""

    # -----------------------------------------------------------------------------------------------------------------
    # Where directions come from

    def directions(self, path: str | os.PathLike[str], space: str | None = None, force: bool = False) -> Directions:
        """Directions of a file by their names: ours, or one that InterFaceGAN, e4e, GANSpace … have published.

        Args:
            path: .npz, .npy or .pt; FILE:NAME is one of several.
            space: 'y', 'z' or 'w', of a published file that doesn't tell.
            force: Take those of another network.

        Raises:
            UserError (a ValueError): not a file of directions, or of another network.
        """
        return {one.name: one for one in direction_store.load_directions(path, self.G, space, force)}

    def save_directions(self, path: str | os.PathLike[str], directions: Mapping[str, Direction]) -> None:
        """Writes directions as an .npz that `directions` and the commands read."""
        direction_store.save_directions(path, list(directions.values()))

    def direction(self, given: Any) -> Direction:
        """A Direction, FILE or FILE:NAME of one, or a vector [dim] or [num_ws, dim] of any length -> a Direction.

        Raises:
            ValueError: it is none of these, or does not fit the network.
        """
        if isinstance(given, Direction):
            direction_store.check_network(given, self.G, given.name)
            return with_scale(self.G, given)
        if isinstance(given, str | os.PathLike):
            found = self.directions(given)
            if len(found) != 1:
                raise ValueError(f'direction: {os.fspath(given)} holds {", ".join(found)}; FILE:NAME is one of them')
            return next(iter(found.values()))
        if not is_array(given):
            raise ValueError(f'direction: expected a Direction, FILE:NAME or a vector, got {type(given).__name__}')
        made = make_direction('direction', torch.as_tensor(given), direction_store.code_space(self.G))
        direction_store.check_network(made, self.G, 'direction')
        return with_scale(self.G, made)

    # -----------------------------------------------------------------------------------------------------------------
    # What is done with them

    def distance(self, what: Any, direction: Any, c: Any = None) -> Array:
        """code · vector + bias, float32 [N]: on which side of a boundary images lie, and how far from it.

        In units of the direction's space; its `scale` is the standard deviation over images.
        """
        found = self.read(what, c)[0]
        return manipulation.distance(self.G, found.code, found.c, self.direction(direction)).cpu().numpy()

    @torch.no_grad()
    def manipulate(
        self,
        what: Any,
        direction: Any,
        amounts: float | Sequence[float] | Array = (-2.0, -1.0, 0.0, 1.0, 2.0),
        unit: str = 'std',
        *,
        layers: Sequence[int] | None = None,
        without: Any = (),
        stay_typical: float | None = None,
        c: Any = None,
        out: str | None = None,
    ) -> Any:
        """Images moved along a direction: one a number, or, of several amounts [A], A of each.

        Of N images and A amounts there are [N, A] pictures; one image, or a single number, has no such axis.

        Args:
            direction: A Direction, FILE:NAME, or a vector [dim] or [num_ws, dim].
            amounts: How far.
            unit: Of amounts: 'std', standard deviations of images along the direction; 'space', the plain length of the
                way; 'distance', the place to go to, in distance from the boundary: 0 is on it.
            layers: Only these move; codes become y+. None = those that the direction names, else all.
            without: Directions whose distances are to stay as they are: a list, or what `directions` gives.
            stay_typical: p-value of ‖z‖² under the prior below which no image is to go: it stops before.
        """
        if unit not in UNITS:
            raise ValueError(f"unit: expected 'std', 'space' or 'distance', got {unit!r}")
        wanted = np.asarray(amounts, dtype=np.float64)
        if wanted.ndim > 1 or wanted.size == 0 or not np.isfinite(wanted).all():
            raise ValueError(f'amounts: expected finite numbers, one or [A], got {amounts!r}')
        target = self.direction(direction)
        found, form, lead = self.read(what, c)
        many = self.repeat(found, wanted.size)
        steps = torch.from_numpy(np.tile(wanted.ravel(), len(found)))
        chosen = target.layers if layers is None else tuple(layers)
        self._check_layers(chosen)
        along, pace = self._without(target, _listed(without), chosen)
        reach = self._reach(many, target, steps, unit, pace)
        if stay_typical is not None:
            self.check_prior('stay_typical')
            if not 0 <= stay_typical <= 1:
                raise ValueError(f'stay_typical: a p-value is 0 to 1, got {stay_typical}')
            reach = typical_limits.limits(self.G, many.code, many.c, along, reach, stay_typical, chosen)
        moved = manipulation.shift(self.G, many.code, many.c, along, reach.to(many.code), chosen)
        return self.give(many.with_code(moved), form, (*lead, *wanted.shape), out)

    def _check_layers(self, layers: Iterable[int] | None) -> None:
        if layers is not None and not all(0 <= layer < self.num_ws for layer in layers):
            raise ValueError(f'layers: expected 0 to {self.num_ws - 1}, got {list(layers)}')

    def _without(
        self, target: Direction, conditions: Sequence[Any], layers: Sequence[int] | None
    ) -> tuple[Direction, float]:
        """The direction to go along, and how much distance a step of 1 along it makes."""
        if not conditions:
            return target, 1.0
        others = [self.direction(condition) for condition in conditions]
        along = manipulation.project_out(target, others, self.num_ws, layers)
        return along, manipulation.pace(target, along, self.num_ws, layers)

    def _reach(self, many: Codes, target: Direction, steps: torch.Tensor, unit: str, pace: float) -> torch.Tensor:
        """How far each code goes, in units of the space: [N·A], float64 on the CPU."""
        if unit == 'space':
            return steps
        if unit == 'std':
            return steps * target.scale
        if target.bias is None:
            raise ValueError(f"unit: {target.name} has no boundary to be at a distance from; take 'std' or 'space'")
        return (steps - manipulation.distance(self.G, many.code, many.c, target).cpu().double()) / pace

    @torch.no_grad()
    def retarget(
        self,
        before: Any,
        after: Any,
        what: Any,
        strength: float | Sequence[float] = 1.0,
        space: str = 'y',
        *,
        layers: Sequence[int] | None = None,
        c: Any = None,
        out: str | None = None,
    ) -> Any:
        """The change from one image to another, or between the means of as many, applied to others.

        Args:
            before, after: Images, or codes of them, of the same person with and without a smile, say.
            what: Those that are to change.
            strength: 1 = the whole change; several give as many pictures of each.
            space: 'y' or 'z', where the change is measured and applied.
        """
        if space not in ('y', 'z'):
            raise ValueError(f"space: expected 'y' or 'z', got {space!r}")
        ends = [self._mean_in(space, self.read(end, c)[0]) for end in (before, after)]
        if ends[0].ndim != ends[1].ndim:
            raise ValueError('retarget: expected both images in y, or both in y+')
        change = (ends[1] - ends[0]).cpu().double()
        if not change.any():
            raise ValueError('retarget: both images have the same code; there is no change')
        name = space if space == 'z' else direction_store.code_space(self.G)
        amounts = np.asarray(strength, dtype=np.float64) * direction_store.length(change)
        way = make_direction('change', change, name)
        return self.manipulate(what, way, amounts, 'space', layers=layers, c=c, out=out)

    def _mean_in(self, space: str, found: Codes) -> torch.Tensor:
        if space == 'z':
            self.check_prior('space')
        return paths.to_space(self.G, found.code, found.c, space if space == 'z' else _own(found.code)).mean(dim=0)

    def repeat(self, found: Codes, num: int) -> Codes:
        """Codes [N·num, …], `num` of each image, with the labels, noise and placements of that."""
        made = found[[i for i in range(len(found)) for _ in range(num)]]
        return codes.concatenate(self.G, [made])  # Which makes names unique.


def _listed(given: Any) -> list[Any]:
    if isinstance(given, Mapping):
        return list(given.values())
    return list(given) if isinstance(given, list | tuple) else [given]


def _own(code: torch.Tensor) -> str:
    return 'y+' if code.ndim == 3 else 'y'
