"""Arguments of the Python API: what they may be, and errors that call them by their names there.

The API runs the commands' own code, whose errors speak of options: `in_python` turns `--group-column` into
`group_column`.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, TypeVar

import numpy as np
import numpy.typing as npt

from lia_plugin import codes
from lia_plugin.host import UserError

Arguments = ParamSpec('Arguments')
Result = TypeVar('Result')

# Options whose arguments have other names; of all others the name is the option's, with underscores.
ARGUMENTS = {'class': 'c', 'data': 'images', 'init': 'start', 'splits': 'split', 'target': 'images', 'refine-lr': 'lr',
             'refine-noise': 'noise', 'refine-optimizer': 'optimizer'}  # fmt: skip
METHOD = re.compile(r'^--method=\w+: ')  # Which is the method's own name in Python.
OPTION = re.compile(r'(?<![\w-])--([a-z][a-z-]*)')


def in_python(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """The same function, whose UserErrors name arguments in place of options."""

    @functools.wraps(function)
    def spoken(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        try:
            return function(*args, **kwargs)
        except UserError as error:
            raise UserError(argument_names(str(error))) from None

    return spoken


def argument_names(text: str) -> str:
    """'--group-column: …' -> 'group_column: …'."""
    return OPTION.sub(lambda match: ARGUMENTS.get(match[1], match[1].replace('-', '_')), METHOD.sub('', text))


def whole(name: str, given: Any, least: int = 1) -> int:
    """ValueError unless it is a whole number, `least` or more."""
    if not isinstance(given, int | np.integer) or isinstance(given, bool) or given < least:
        raise ValueError(f'{name}: expected a whole number from {least} on, got {given!r:.80}')
    return int(given)


def number(name: str, given: Any, least: float = -math.inf) -> float:
    """ValueError unless it is a finite number, `least` or more."""
    try:
        found = float(given)
    except (TypeError, ValueError):
        found = math.nan
    if not math.isfinite(found) or found < least:
        raise ValueError(f'{name}: expected a finite number{"" if least == -math.inf else f" from {least:g} on"}, '
                         f'got {given!r:.80}')  # fmt: skip
    return found


def share(name: str, given: Any) -> float:
    """ValueError unless it is more than 0 and less than 1."""
    found = number(name, given)
    if not 0 < found < 1:
        raise ValueError(f'{name}: expected more than 0 and less than 1, got {given!r}')
    return found


def numbers(name: str, given: Any) -> npt.NDArray[np.float64]:
    """One number, or [A] of them, as float64 [] or [A]. ValueError for anything else, or what is not finite."""
    try:
        found = np.asarray(given, dtype=np.float64)
    except (TypeError, ValueError):
        found = np.full(1, np.nan)
    if found.ndim > 1 or found.size == 0 or not np.isfinite(found).all():
        raise ValueError(f'{name}: expected finite numbers, one or a list of them, got {given!r:.80}')
    return found


def one_of(name: str, given: Any, known: Sequence[str]) -> None:
    """ValueError unless it is one of these words."""
    if given not in known:
        raise ValueError(f'{name}: expected {" or ".join(map(repr, known))}, got {given!r:.80}')


def places(name: str, given: Any, count: int) -> tuple[int, ...] | None:
    """3, [0, 3], range(4) or '0-3,7', as layers are told; None = all. ValueError unless 0 to count - 1, each."""
    if given is None:
        return None
    found = codes.parse_seeds(given) if isinstance(given, str) else given
    listed = [found] if isinstance(found, int | np.integer) else found
    if not isinstance(listed, Sequence | np.ndarray) or not len(listed) or not all(
        isinstance(one, int | np.integer) and not isinstance(one, bool) and 0 <= one < count for one in listed
    ):
        raise ValueError(f"{name}: expected some of 0 to {count - 1}, as [0, 3] or '0-3', got {given!r:.80}")
    return tuple(int(one) for one in listed)


def seed_list(given: Any) -> list[int] | None:
    """7, [7, 8], range(7, 9), whole numbers [N] of NumPy or '7-8' -> seeds; None for anything else."""
    if isinstance(given, bool):
        return None
    if isinstance(given, np.ndarray) and given.ndim == 1 and given.dtype.kind in 'iu':
        given = given.tolist()
    if isinstance(given, str):
        return codes.parse_seeds(given)
    numbers = [given] if isinstance(given, int | np.integer) else given
    if not isinstance(numbers, list | tuple | range) or not len(numbers):
        return None
    if not all(isinstance(number, int | np.integer) and not isinstance(number, bool) for number in numbers):
        return None
    if not all(0 <= number < 2**32 for number in numbers):
        raise ValueError(f'seeds: expected whole numbers from 0 to {2**32 - 1}, got {list(numbers)[:5]}')
    return [int(number) for number in numbers]
