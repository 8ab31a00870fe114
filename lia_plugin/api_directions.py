"""The Python API's part that knows directions: found, loaded, measured along, and gone along."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from lia_plugin import api_checks, manipulation, results, retargeting
from lia_plugin import directions as direction_store
from lia_plugin.api_base import Layers, Network
from lia_plugin.api_checks import in_python
from lia_plugin.api_images import Array, is_array
from lia_plugin.codes import Codes, unique_names
from lia_plugin.directions import Direction, make_direction, with_scale
from lia_plugin.manipulation_run import FLAT, ManipulateOptions, Move

HEADER = ('direction', 'space', 'std', 'held out', 'by plane', 'of')
UNITS, MODES = ('std', 'raw'), ('shift', 'distance')


class Directions(dict[str, Direction]):
    """Directions by their names; shown as a table."""

    def __missing__(self, name: str) -> Direction:
        raise KeyError(f'{name}; there are {", ".join(self)}')

    def __repr__(self) -> str:
        return '\n'.join(results.aligned([HEADER, *map(_told, self.values())]))


def _told(one: Direction) -> tuple[str, ...]:
    """Name, space, spread, and how well it, and the best plane, tell images held out: 0.5 is chance."""
    shares = [one.figures.get(key) for key in ('balanced_accuracy', 'plane_balanced_accuracy')]
    judged = ['' if share is None else f'{share:.3f}' for share in shares]
    return one.name, one.space, f'{one.scale:.4g}', *judged, str(one.figures.get('n', ''))


class Directed(Network):
    """A network and directions in its latent space."""

    # -----------------------------------------------------------------------------------------------------------------
    # Where directions come from

    @in_python
    def directions(self, path: str | os.PathLike[str], space: str | None = None, force: bool = False) -> Directions:
        """Directions of a file by their names: ours, or one that InterFaceGAN, e4e, GANSpace … have published.

        Args:
            path: .npz, .npy or .pt; FILE:NAME is one of several.
            space: 'y', 'z' or 'w', of a published file that doesn't tell.
            force: Take those of another network.

        Raises:
            UserError (a ValueError): not a file of directions, or of another network.
        """
        if space is not None:
            api_checks.one_of('space', space, direction_store.SPACES)
        found = direction_store.load_directions(path, self.G, space, force)
        return Directions((one.name, one) for one in found)

    @in_python
    def save_directions(
        self, path: str | os.PathLike[str], directions: Mapping[str, Direction] | Sequence[Direction] | Direction
    ) -> None:
        """Writes directions as an .npz that `directions` and the commands read: what the methods here give, or some."""
        listed = _listed(directions)
        if not all(isinstance(one, Direction) for one in listed):
            raise ValueError(f'directions: expected Directions, got {directions!r:.80}')
        if not os.fspath(path).lower().endswith('.npz'):
            raise ValueError(f'path: directions are written as .npz, got {os.fspath(path)}')
        direction_store.save_directions(path, listed)

    @in_python
    def direction(self, given: Any) -> Direction:
        """A Direction, FILE or FILE:NAME of one, or a vector [dim] or [num_ws, dim] of any length -> a Direction.

        What finds directions, or `directions`, gives several: found['pc0'] is one; where there is but one, all do.

        Raises:
            ValueError: it is none of these, or does not fit the network.
        """
        if isinstance(given, Direction):
            direction_store.check_network(given, self.G, given.name)
            return with_scale(self.G, given)
        if isinstance(given, Mapping):
            if len(given) != 1:
                raise ValueError(f'direction: expected one, got {len(given)}: {", ".join(given)}; found[NAME] is one')
            return self.direction(next(iter(given.values())))
        if isinstance(given, str | os.PathLike):
            found = self.directions(given)
            if len(found) != 1:
                raise ValueError(f'direction: {os.fspath(given)} holds {", ".join(found)}; FILE:NAME is one of them')
            return next(iter(found.values()))
        if not is_array(given) or 'float' not in str(given.dtype):
            got = str(given.dtype) if is_array(given) else type(given).__name__
            raise ValueError(f'direction: expected a Direction, FILE:NAME or a vector of floats, got {got}')
        made = make_direction('direction', torch.as_tensor(given), direction_store.code_space(self.G))
        direction_store.check_network(made, self.G, 'direction')
        return with_scale(self.G, made)

    # -----------------------------------------------------------------------------------------------------------------
    # What is done with them

    def distance(self, what: Any, direction: Any, c: Any = None) -> Array:
        """code · vector + bias, float32 [N]: on which side of a boundary images lie, and how far from it.

        In units of the direction's space; its `scale` is the standard deviation over images. Without a boundary (SeFa,
        PCA, published vectors) it is code · vector.
        """
        found = self._read(what, c)[0]
        return manipulation.distance(self.G, found.code, found.c, self.direction(direction)).cpu().numpy()

    @torch.no_grad()
    def manipulate(
        self,
        what: Any,
        direction: Any,
        amounts: float | Sequence[float] | Array = (-2.0, -1.0, 0.0, 1.0, 2.0),
        unit: str = 'std',
        *,
        mode: str = 'shift',
        layers: Layers | None = None,
        conditions: Any = (),
        stay_typical: float | None = None,
        c: Any = None,
        out: str | None = None,
    ) -> Any:
        """Images moved along a direction, as `edit.py manipulate`.

        Of N images and A amounts there are [N, A] pictures; one image, or a single number, has no such axis.

        Args:
            direction: A Direction, FILE:NAME, or a vector [dim] or [num_ws, dim].
            amounts: How far, one number or [A]. The command's --from, --to, --steps are np.linspace(-2, 2, 5).
            unit: Of amounts: 'std', standard deviations of images along the direction, or 'raw', the space's own.
            mode: What amounts are: 'shift', how far each image moves, or 'distance', where it ends, at that signed
                distance from the boundary: 0 is on it.
            layers: Only these move, as [0, 3] or '0-3'; codes become y+. None = those the direction names, else all.
            conditions: Directions along which nothing is to move: a list, or what `directions` gives.
            stay_typical: p-value of ‖z‖² under the prior below which no image is to go: it stops before.
        """
        wanted = api_checks.numbers('amounts', amounts)
        way = self._way(direction, unit, mode, layers, _listed(conditions), stay_typical)
        found, form, lead = self._read(what, c)
        moved = way.codes(found, way.shifts(found, torch.from_numpy(wanted.reshape(-1)))[0])
        return self._give(moved, form, (*lead, *wanted.shape), out)

    def _way(
        self, direction: Any, unit: str, mode: str, layers: Layers | None, conditions: Sequence[Any],
        stay_typical: float | None,
    ) -> Move:  # fmt: skip
        """ValueError for what doesn't go together, or not with this network."""
        api_checks.one_of('unit', unit, UNITS)
        api_checks.one_of('mode', mode, MODES)
        if stay_typical is not None:
            self._check_prior('stay_typical')
            api_checks.share('stay_typical', stay_typical)
        target = self.direction(direction)
        moving = self._layers(layers) or target.layers
        along = target if not conditions else manipulation.project_out(
            target, [self.direction(condition) for condition in conditions], self.num_ws, moving)
        asked = ManipulateOptions('', mode=mode, unit=unit, layers=moving, stay_typical=stay_typical)
        way = Move(self.G, target, along, asked)
        if mode == 'distance' and (target.bias is None or abs(way.pace) < FLAT):
            raise ValueError(f"mode: {target.name} leads to no boundary to be at a distance from; take 'shift'")
        return way

    @torch.no_grad()
    def retarget(
        self,
        before: Any,
        after: Any,
        what: Any,
        strength: float | Sequence[float] = 1.0,
        space: str | None = None,
        *,
        layers: Layers | None = None,
        c: Any = None,
        out: str | None = None,
    ) -> Any:
        """The change from one image to another applied to others, as `edit.py retarget`.

        Args:
            before, after: One image each, or their codes: the same person without and with a smile, say.
            what: Those that are to change.
            strength: 1 = the whole change; [S] of them give S pictures of each.
            space: 'y', 'y+' or 'z', where the change is measured and applied. None = y+ where codes have it, else y.
        """
        ends = [self._read(end, c)[0] for end in (before, after)]
        if [len(end) for end in ends] != [1, 1]:
            raise ValueError(f'before, after: expected one image each, got {len(ends[0])} and {len(ends[1])}')
        plus = any(end.code.ndim == 3 for end in ends)
        edit = retargeting.learn_edit(
            self.G, ends[0].code, ends[1].code, ends[0].c, ends[1].c, space or ('y+' if plus else 'y'))
        wanted = api_checks.numbers('strength', strength)
        found, form, lead = self._read(what, c)
        edited = [retargeting.apply_edit(self.G, found.code, found.c, edit, float(one), self._layers(layers))
                  for one in wanted.ravel()]  # fmt: skip
        many = self._repeat(found, wanted.size).with_code(torch.stack(edited, dim=1).flatten(0, 1))
        return self._give(many, form, (*lead, *wanted.shape), out)

    def _repeat(self, found: Codes, num: int) -> Codes:
        """Codes [N·num, …], `num` of each image, with the labels, noise and placements of that."""
        many = found[[i for i in range(len(found)) for _ in range(num)]]
        return replace(many, names=unique_names(many.names))


def _listed(given: Any) -> list[Any]:
    if isinstance(given, Mapping):
        return list(given.values())
    return list(given) if isinstance(given, list | tuple) else [given]
